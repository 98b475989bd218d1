"""Text that others have chosen, made safe to print: paths, interface names, commands, model names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that is not printable written as its number, such as ``\x1b`` or ``\u2028``.

    A mount point or the name of an interface may hold any byte, and a terminal takes some for orders: to set its title,
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


class Sentences:
    """Base of a frozen dataclass whose texts are a line each: they are made printable when it is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        this: Any = self
        for field in fields(this):
            text = getattr(self, field.name)
            if isinstance(text, str) and not text.isprintable():
                # Newlines as well: what follows one would pass for a line of ours.
                object.__setattr__(self, field.name, printable(text))


def _number(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # PEP 383
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
