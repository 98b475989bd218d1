"""What the options of a guest are called where the user is: in a program, on the command line, or in pytest."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

_FORMS = {"program": "Guest({}=…)", "command": "--{}", "pytest": "--guest-{}"}
_MARKER = "@pytest.mark.guest({}=…)"
_form = _FORMS["program"]
_marked: Collection[str] = ()


def speak_of(place: Literal["program", "command", "pytest"], marked: Collection[str] = ()) -> None:
    """Set where the user of this process is, for the texts of errors.

    Args:
        place: Where.
        marked: The arguments of `Guest` that a test's marker has given.
    """
    global _form, _marked
    _form, _marked = _FORMS[place], marked


def option_name(name: str) -> str:
    """What the option is called there.

    Args:
        name: The argument of `Guest`: ``kernel``, ``qemu``, ``iommu``.
    """
    return (_MARKER if name in _marked else _form).format(name)
