"""A worker process that reads and writes sysfs attributes, for accesses that may block for ever."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyiommufd.closing import Closing
from pyiommufd.host import sysfs

_log = logging.getLogger(__name__)

SECONDS = 30.0
"""How long an access may take before the caller is told. A disk flushes its cache in an unbind."""

GRACE = 5.0
"""Seconds that an access still gets after the caller has stopped waiting: unless it hangs, it completes by then and
its result is known."""

_SLICE = 0.1  # seconds between looks at whether the caller still wants to wait

# Run by an interpreter of its own. A request is what one read returns: "w", the path and the text, or "r" and the path,
# in hexadecimal; the answer is errno and what was read. It ends with the other end of the pipe.
_PROGRAM = """
import os
os.write(1, b".")
while request := os.read(0, 1 << 16):
    kind, path, text = request.decode().split(" ")
    data, status = b"", 0
    try:
        fd = os.open(bytes.fromhex(path), os.O_WRONLY if kind == "w" else os.O_RDONLY)
        try:
            if kind == "w":
                os.write(fd, bytes.fromhex(text))
            else:
                data = os.read(fd, 1 << 14)
        finally:
            os.close(fd)
    except OSError as error:
        status = error.errno
    os.write(1, f"{status} {data.hex()}\\n".encode())
"""


class StuckError(TimeoutError):
    """An access has not returned in time; it may still do so.

    Attributes:
        pid: The process that waits for it in the kernel.
    """

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class Worker(Closing):
    """Reads and writes attributes from a process of its own, which is started when it is first needed.

    A process that blocks in an unbind cannot be interrupted, not even by SIGKILL. After its time limit an access is
    left running, and the next one uses a new worker process. If this process dies, the worker finishes the current
    access and starts no other. A context manager; for one thread at a time.

    Args:
        keep: File descriptors that the worker holds as well, such as that of a lock.
    stop: Asked while an access blocks; true: give it up after `GRACE`.
    """

    def __init__(self, keep: Sequence[int] = (), stop: Callable[[], bool] = lambda: False) -> None:
        self.keep = tuple(keep)
        self.stop = stop
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, path: Path, text: str, seconds: float | None = None) -> None:
        """Write an attribute.

        Args:
            path: The attribute.
            text: What to write.
            seconds: How long to wait; None: `SECONDS`.

        Raises:
            StuckError: The write has not returned in time; it may still do.
            OSError: What the kernel answered, with the attribute's path.
        """
        _log.debug("write %r to %s", text, path)
        if not sys.executable:
            sysfs.write(path, text)
            return
        status, _ = self._request("w", path, text, seconds, f"writing {text.strip()!r} to {path}")
        if status:
            raise OSError(status, os.strerror(status), str(path))

    def read(self, path: Path, seconds: float | None = None) -> str | None:
        """The text of an attribute without its newline, or None where there is no such attribute.

        Args:
            path: The attribute.
            seconds: How long to wait; None: `SECONDS`.

        Raises:
            StuckError: The read has not returned in time.
        """
        if not sys.executable:
            return sysfs.read(path)
        status, data = self._request("r", path, "", seconds, f"reading {path}")
        return None if status else os.fsdecode(data.strip())

    def _request(self, kind: str, path: Path, text: str, seconds: float | None, what: str) -> tuple[int, bytes]:
        seconds = SECONDS if seconds is None else seconds
        process = self._process = self._process or self._start()
        assert process.stdin is not None  # noqa: S101 (what Popen was asked for)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{kind} {os.fsencode(path).hex()} {text.encode().hex()}".encode())
        answer = self._answer(process, seconds)
        if answer is None:
            self._process = None
            _abandon(process)
            how = "was given up" if self.stop() else f"did not return within {seconds:g} s"
            raise StuckError(f"{what} {how}: something still uses the device", process.pid)
        if not answer.endswith(b"\n"):
            self.close()
            raise OSError(errno.ECHILD, "the worker process has been killed", str(path))
        status, _, data = answer.decode().strip().partition(" ")
        return int(status), bytes.fromhex(data)

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """What the worker answers; not a whole line where it has died, None where it takes too long."""
        assert process.stdout is not None  # noqa: S101
        end, answer, wanted = time.monotonic() + seconds, b"", True
        poll = select.poll()  # fds may be larger than select() takes
        poll.register(process.stdout, select.POLLIN)
        while not answer.endswith(b"\n"):
            if wanted and self.stop():
                wanted, end = False, min(end, time.monotonic() + GRACE)
            left = end - time.monotonic()
            if left <= 0:
                return None
            if poll.poll(1000 * min(left, _SLICE)):
                piece = process.stdout.read(1 << 16)
                if not piece:
                    break
                answer += piece
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # A new program, not a fork: a forked child would hold copies of this process's device files and register
        # mappings, and wait for itself. A session of its own: ^C is for this process, which knows what to do.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=self.keep,
            start_new_session=True,
        )
        # It starts slowly, and this process may be killed meanwhile: a request already in the pipe would be carried out
        # late, after a recovery. So requests are sent only once it has reported that it is ready.
        assert process.stdout is not None  # noqa: S101
        process.stdout.read(1)
        return process

    def close(self) -> None:
        """End the process, if there is one. Does nothing when called again."""
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            process.wait()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _abandon(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # takes effect once the kernel lets it go
    _close_pipes(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SLICE)
    _abandoned[:] = [other for other in _abandoned if other.poll() is None]
    _abandoned.append(process)


# Kept so that Popen's finalizer does not warn of a running child; there is nothing more to do for it.
_abandoned: list[subprocess.Popen[bytes]] = []
