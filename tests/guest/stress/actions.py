"""Actions of a state machine, each drawn as one number, since hypothesis draws composite values far more slowly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st

Method = TypeVar("Method", bound=Callable[..., None])

_PIECE = st.integers(0, (1 << 24) - 1)
_SPREAD = 0x9E37_79B9_7F4A_7C15


@dataclass(frozen=True)
class IntRange:
    """A whole number from the first to the last."""

    first: int
    last: int

    def decode(self, number: int) -> tuple[int, int]:
        """Decode a value from a number. Returns it, and the rest of the number."""
        rest, digit = divmod(number, self.last - self.first + 1)
        return self.first + digit, rest


@dataclass(frozen=True)
class TupleList:
    """One to ``most`` tuples of numbers."""

    most: int
    of: tuple[IntRange, ...]

    def decode(self, number: int) -> tuple[list[tuple[int, ...]], int]:
        """Decode up to ``most`` tuples from a number. Returns them, and the rest of the number."""
        number, more = divmod(number, self.most)
        found = []
        for _ in range(1 + more):
            one = []
            for one_range in self.of:
                value, number = one_range.decode(number)
                one.append(value)
            found.append(tuple(one))
        return found, number


class Action(NamedTuple):
    """A method of the machine, and what it is called with."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


NO_ACTION = Action("no_action", {})
"""Does nothing. The simplest numbers decode to it, of which hypothesis tries hundreds first."""


def action(**kinds: IntRange | TupleList) -> Callable[[Method], Method]:
    """Have a method be an action, with arguments of these kinds."""

    def mark(method: Method) -> Method:
        method.kinds = kinds  # type: ignore[attr-defined]
        return method

    return mark


def actions_of(machine: type) -> st.SearchStrategy[Action]:
    """Each action of a machine as likely as the others."""
    marked = [(name, method.kinds) for name, method in vars(machine).items() if hasattr(method, "kinds")]

    def decode(high: int, low: int) -> Action:
        if not high | low:
            return NO_ACTION
        # Small numbers are drawn more often; all of their digits shall be as likely.
        number, which = divmod((high << 24 | low) * _SPREAD % (1 << 48), len(marked))
        name, kinds = marked[which]
        arguments = {}
        for argument, kind in kinds.items():
            arguments[argument], number = kind.decode(number)
        return Action(name, arguments)

    @st.composite
    def actions(draw: st.DrawFn) -> Action:
        return decode(draw(_PIECE), draw(_PIECE))

    return actions()
