"""Text that others have chosen, made safe to print: paths, interface names, commands, model names."""

from __future__ import annotations

from pyiommufd.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

_LONGEST = 130


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that is not printable written as its number, such as ``\x1b`` or ``\u2028``.

    A mount point or interface name may hold any byte, and terminals interpret some as commands: to set the title,
    to clear lines that were printed before. Bytes that are no UTF-8 (`os.fsdecode` makes lone surrogates of them) are
    written as bytes. What is printable is what `str.isprintable` says, so neither are marks of the direction of
    writing. A second time changes nothing.

    Args:
        text: The text.
        keep: Characters that are left as they are, such as newlines between lines of one's own.
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or one.isprintable() else _number(ord(one)) for one in text)


def shortened(text: str) -> str:
    """The text as part of a line: printable, and cut where it is long."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2].rstrip()} …"


def listed(names: Collection[object], most: int = 3) -> str:
    """The names, or as many as a line takes and how many more there are."""
    first = ", ".join(map(str, list(names)[:most]))
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def counted(count: int, noun: str) -> str:
    """So many of something, as in ``1 device`` or ``2 devices``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class OneLine:
    """Base of a dataclass, made with ``repr=False``, whose repr is a line: its text, or its fields without one."""

    __slots__ = ()

    def _line(self) -> str:
        """What the repr says beside the name of the class."""
        if type(self).__str__ is not object.__str__:
            return str(self)
        this: Any = self
        return ", ".join(f"{name} {brief(getattr(self, name))}" for name in this.__dataclass_fields__)

    def __repr__(self) -> str:
        return f"<{f'{type(self).__name__} {shortened(self._line())}'.rstrip()}>"


def brief(value: object) -> str:
    """A value as part of a line: numbers in hex, bools and flags by their names, of bytes how many there are."""
    from enum import Enum  # here, as an import of the library makes no repr

    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple):
        return listed([brief(each) for each in value], most=6)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Enum) and value.name is not None:
        return value.name
    return f"{value:#x}" if isinstance(value, int) else str(value)


class Sentences(OneLine):
    """Base of a frozen dataclass whose texts are a line each: they are made printable when it is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        this: Any = self
        for name in this.__dataclass_fields__:
            text = getattr(self, name)
            if isinstance(text, str) and not text.isprintable():
                # Newlines as well: what follows one would pass for a line of ours.
                object.__setattr__(self, name, printable(text))


def _number(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # PEP 383
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
