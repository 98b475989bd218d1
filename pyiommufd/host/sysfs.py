"""Reading and writing sysfs: the one place that touches its files.

Nothing is kept between calls, so everything here can be used from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")

_PIECE = 1 << 18

_log = logging.getLogger(__name__)

# Run by an interpreter of its own: writes argv[2] to the file argv[1] when told to, exits with errno.
_WRITER = """
import os, sys
try:
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(1, b".")
    if os.read(0, 1):
        os.write(fd, sys.argv[2].encode())
except OSError as error:
    sys.exit(error.errno)
"""


def read(path: Path | str) -> str | None:
    """The text of an attribute without its newline, or None where there is no such attribute."""
    # Bare system calls: a look at a large machine is made of tens of thousands of these.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _PIECE)
        if data:  # the files of /proc and of modules come in pieces
            while more := os.read(fd, _PIECE):
                data += more
    except OSError:
        return None
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace").strip()


def link_name(path: Path | str) -> str | None:
    """The last part of what a symbolic link points to, or None where there is no such link."""
    try:
        return os.path.basename(os.readlink(path))  # noqa: PTH119, PTH115 (hot in an enumeration)
    except OSError:
        return None


def write(path: Path, text: str) -> None:
    """Write an attribute.

    Raises:
        OSError: What the kernel answered, with the attribute's path.
    """
    _log.debug("write %r to %s", text, path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_with_limit(path: Path, text: str, seconds: float) -> None:
    """Write an attribute that may block, such as a driver's ``unbind``, from another process.

    The kernel does not let a process go that waits in an unbind, not even when it is killed. So a process
    of its own does the write; past the time limit it is left to finish by itself.

    Raises:
        TimeoutError: The write has not returned; it may still do.
        OSError: What the kernel answered, with the attribute's path.
    """
    if not sys.executable:
        write(path, text)
        return
    _log.debug("write %r to %s, at most %g s", text, path, seconds)
    # A new program, not a fork: a forked child would hold copies of this process's device files and register
    # mappings, and wait for itself.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WRITER, str(path), text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    # It starts slowly, and this process may be killed meanwhile: the write must not come after somebody has
    # recovered what was left behind. So it waits for the word, and takes the end of the pipe for a no.
    with process.stdin as word, process.stdout as ready, contextlib.suppress(BrokenPipeError):  # type: ignore[union-attr]
        ready.read(1)
        word.write(b".")
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # takes effect once the kernel lets it go
        _abandoned.append(process)
        raise TimeoutError(
            f"writing {text!r} to {path} did not return within {seconds:g} s: something still uses the device"
        ) from None
    if status:
        raise OSError(status, os.strerror(status), str(path))


# Kept so that Popen's finalizer does not warn of a running child; there is nothing more to do for it.
_abandoned: list[subprocess.Popen[bytes]] = []
