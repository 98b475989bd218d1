"""Arguments that are gone through: what is no list of them is a TypeError that says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import plan_claim, release
from pyiommufd.host.claims.rebind import plan_rebind
from pyiommufd.iterables import iterate, pairs
from pyiommufd.vmm import Handover

MANY = memoryview(bytes(8)).cast("B", shape=[4, 2])
GONE = memoryview(bytes(8))
GONE.release()


@pytest.mark.parametrize("wrong", [MANY, GONE], ids=["several dimensions", "released"])
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (plan_claim, "devices are HostDevice objects, names or paths"),
        (lambda wrong: plan_claim(["0000:00:01.0"], force=wrong), "force names kinds of refusals"),
        (plan_rebind, "devices are HostDevice objects, names or paths"),
        (release, "devices are HostDevice objects, names or paths"),
        (lambda wrong: release(leave=wrong), "devices are HostDevice objects, names or paths"),
        (Handover.open, "devices are HostDevice objects, names or paths"),
    ],
    ids=["plan_claim", "force", "plan_rebind", "release", "leave", "Handover.open"],
)
def test_a_memoryview_is_no_list(call: Callable[[Any], object], expected: str, wrong: memoryview) -> None:
    with pytest.raises(TypeError, match=expected):
        call(wrong)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: plan_claim(5), "devices are HostDevice objects, names or paths, not int"),  # type: ignore[arg-type]
        (lambda: plan_claim([5]), "a device is a HostDevice, or a name or Path of one, not int"),  # type: ignore[list-item]
        (lambda: plan_rebind(5), "devices are HostDevice objects, names or paths, not int"),  # type: ignore[arg-type]
        (lambda: release(5, dry_run=True), "devices are HostDevice objects, .* not int"),  # type: ignore[arg-type]
        (lambda: plan_claim("x", force="held"), "force names kinds of refusals, as in .*, not .held."),
        (lambda: plan_claim("x", force=b"held"), "force names kinds of refusals"),  # type: ignore[arg-type]
        (lambda: plan_claim("x", force=5), "force names kinds of refusals, .*, not 5"),  # type: ignore[arg-type]
        (lambda: plan_claim("x", force=["held", 5]), "force names .*, and has no int"),  # type: ignore[list-item]
    ],
)
def test_wrong_types_are_named(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        call()


def test_what_is_iterable() -> None:
    assert list(iterate({"a": 1, "b": 2}, "")) == ["a", "b"]
    assert list(iterate((number for number in (1, 2)), "")) == [1, 2]
    assert list(iterate(memoryview(b"12"), "")) == [49, 50]
    with pytest.raises(TypeError, match="numbers, not int"):
        iterate(5, "numbers")  # type: ignore[arg-type]


class Changing(dict[int, str]):
    """A dict that a finalizer changes while its items are listed for the first time."""

    changes = 1

    def items(self) -> Any:
        for item in super().items():
            if self.changes:
                self.changes -= 1
                self[2] = "new"
            yield item


def test_pairs_of_a_dict_that_changes_meanwhile() -> None:
    table = Changing({1: "one"})
    with pytest.raises(RuntimeError):
        list(table.items())
    table = Changing({1: "one"})
    assert pairs(table) == [(1, "one"), (2, "new")]
