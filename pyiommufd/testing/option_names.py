"""What the options of a guest are called where the user is: in a program, on the command line, or in pytest."""

from __future__ import annotations

from typing import Literal

_FORMS = {"program": "Guest({}=…)", "command": "--{}", "pytest": "--guest-{}"}
_form = _FORMS["program"]


def speak_of(place: Literal["program", "command", "pytest"]) -> None:
    """Set where the user of this process is, for the texts of errors."""
    global _form
    _form = _FORMS[place]


def option_name(name: str) -> str:
    """What the option is called there.

    Args:
        name: The argument of `Guest`: ``kernel``, ``qemu``, ``iommu``.
    """
    return _form.format(name)
