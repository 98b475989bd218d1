"""Reading and writing sysfs: the one place that touches its files.

Nothing is kept between calls, so everything here can be used from any thread.
"""

from __future__ import annotations

import os
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")
MODULES = Path("/lib/modules")
BOOT = Path("/boot")

_PIECE = 1 << 18
_PAGE = 1 << 12


def read(path: Path | str) -> str | None:
    """The text of an attribute without blanks around it, or None where there is no such attribute.

    Bytes that are no UTF-8 come as `os.fsdecode` has them: a name compares equal to that of a file.
    """
    data = content(path)
    return None if data is None else os.fsdecode(data.strip())


def number(path: Path | str, base: int = 10) -> int | None:
    """The number of an attribute, or None where there is no such attribute, or it is no number."""
    try:
        return int(content(path) or b"", base)
    except ValueError:
        return None


def lines(path: Path | str) -> list[str]:
    """The lines of an attribute or of a file of /proc; none where there is no such file.

    They end in newlines alone, as the kernel writes them: `str.splitlines` ends them at further characters, which a
    path may contain (U+2028, carriage return …).
    """
    found = os.fsdecode(content(path) or b"").split("\n")
    return found if found[-1] else found[:-1]


def content(path: Path | str) -> bytes | None:
    """The bytes of an attribute or of a file of /proc as they are, or None where there is no such file."""
    # Bare system calls: a look at a large machine is made of tens of thousands of these.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # the latter for a path with a null byte
        return None
    try:
        data = os.read(fd, _PIECE)
        # An attribute comes at once, as a page at most; a large file, or one of /proc, in pieces.
        if len(data) >= _PAGE or (data and os.fspath(path).startswith("/proc/")):
            while more := os.read(fd, _PIECE):
                data += more
    except OSError:
        return None
    finally:
        os.close(fd)
    return data


def link_name(path: Path | str) -> str | None:
    """The last part of what a symbolic link points to, or None where there is no such link."""
    try:
        return os.readlink(path).rpartition("/")[2]  # noqa: PTH115 (hot in an enumeration)
    except OSError:
        return None


def write(path: Path, text: str) -> None:
    """Write an attribute.

    Raises:
        OSError: What the kernel answered, with the attribute's path.
    """
    import logging  # here, as most only read

    logging.getLogger(__name__).debug("write %r to %s", text, path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
