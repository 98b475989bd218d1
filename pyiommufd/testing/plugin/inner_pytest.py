"""One run of pytest in a guest, as the host sees it: a stream of what happens, until it ends one way or another."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.inside import wire

_CHUNK = 1 << 18
_KEPT = 1 << 16
_BUSYBOX = "/.guest/busybox"

# What may pass besides while no test runs: pytest starts and collects on what may be an emulated CPU.
_OTHER_TIME = 300.0
_LAST_WORDS = 10.0


@dataclass(slots=True)
class End:
    """How the run ended.

    Attributes:
        status: Pytest's exit status, negative for a signal; None where there is none.
        error: What ended the guest early, its time limit included; or None.
    """

    status: int | None = None
    error: BaseException | None = None

    @property
    def console(self) -> str:
        """The end of the guest's console, where the guest died."""
        return self.error.console if isinstance(self.error, GuestError) else ""

    def __str__(self) -> str:
        if self.error is not None:
            return str(self.error)
        if self.status is not None and self.status < 0:
            return f"pytest in the guest was ended by signal {-self.status}"
        return f"pytest in the guest ended with status {self.status}"


@dataclass(slots=True)
class InnerPytest:
    """Pytest in a guest.

    Attributes:
        guest: The guest, started, with the port `wire.PORT`.
        arguments: Pytest's arguments, as on the host.
        folder: The folder to run it in.
        timeout: Seconds that may pass while a test runs.
        environment: Added to the guest's.
    """

    guest: Guest
    arguments: Sequence[str]
    folder: Path
    timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    end: End | None = None
    stderr: bytearray = field(default_factory=bytearray)
    _pid: int | None = None
    _output: deque[tuple[str, bytes]] = field(default_factory=deque)
    _result: End | None = None
    _thread: threading.Thread | None = None
    _wake: tuple[int, int] = (-1, -1)

    def messages(
        self, files: Sequence[str], tests: Sequence[str], *, one_by_one: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Run these tests: what pytest in the guest says, as it comes. Afterwards `end` is set.

        Args:
            files: The files to collect.
            tests: The node ids to run, in order.
            one_by_one: Run none before `run` asks for it, and then that one only.
        """
        port = self.guest.port(wire.PORT)
        port.settimeout(_OTHER_TIME)  # for sending: of receiving select says when
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="pyiommufd-inner-pytest", daemon=True)
        self._thread.start()
        buffer = bytearray()
        limit = self.timeout + _OTHER_TIME
        deadline = time.monotonic() + limit
        try:
            while True:
                ended = self._result is not None
                # What pytest wrote before it ended is in the socket already: read until nothing is left.
                wait = 0 if ended else max(0.0, deadline - time.monotonic())
                ready = select.select([port.fileno(), self._wake[0]], [], [], wait)[0]
                self._pass_output_on()
                if self._wake[0] in ready:
                    os.read(self._wake[0], 1 << 12)
                if port.fileno() in ready:
                    data = port.recv(_CHUNK)
                    if not data:
                        break  # QEMU is gone
                    buffer += data
                    while message := wire.decode(buffer):
                        if message["op"] == "ready":
                            # Not before it reads: a job may be larger than what the socket holds.
                            self._pid = message["pid"]
                            self._send("job", files=list(files), tests=list(tests), one_by_one=one_by_one)
                        now = time.monotonic()
                        if message["op"] in ("collected", "start", "finish"):
                            del self.stderr[:]
                            limit = self.timeout + (0 if message["op"] == "start" else _OTHER_TIME)
                            deadline = now + limit
                        yield message
                        # What the caller takes, perhaps for a shell in the guest, is not the test's time.
                        deadline += time.monotonic() - now
                elif ended:
                    break
                elif not ready and time.monotonic() >= deadline:
                    self._give_up(limit)
                    break
            self._thread.join()
            self.end = self.end or self._result
        finally:
            if not self._thread.is_alive():
                for fd in self._wake:
                    os.close(fd)
            self._pass_output_on()

    def run(self, test: int, following: int | None) -> None:
        """Ask for a test by its number, with that of the next one, for which fixtures may stay."""
        self._send("run", test=test, next=following)

    def finish(self) -> None:
        """Say that no more tests will be asked for."""
        self._send("end")

    def answer(self, *, stop: bool) -> None:
        """Tell pytest in the guest to go on after a failure, or to stop."""
        self._send("stop" if stop else "go")

    def _send(self, op: str, **message: Any) -> None:
        with contextlib.suppress(OSError):  # QEMU is gone: reading says so
            self.guest.port(wire.PORT).sendall(wire.encode({"op": op, **message}))

    def _run(self) -> None:
        command = [sys.executable]
        # As it is here: `python -m pytest` has the working folder on its path, `pytest` does not.
        if not {"", str(self.folder)} & set(sys.path):
            command.append("-P")
        command += ["-m", "pytest", "-p", "pyiommufd.testing.inside.in_guest", *self.arguments]
        try:
            result = self.guest.run(
                command,
                cwd=self.folder,
                env={"PYTEST_CURRENT_TEST": "", **self.environment},
                stdout=lambda data: self._take("stdout", data),
                stderr=lambda data: self._take("stderr", data),
            )
            self._result = End(status=result.returncode)
        except BaseException as error:
            self._result = End(error=error)
        os.write(self._wake[1], b"x")

    def _take(self, stream: str, data: bytes) -> None:
        self._output.append((stream, data))
        os.write(self._wake[1], b"x")

    def _pass_output_on(self) -> None:
        while self._output:
            stream, data = self._output.popleft()
            if stream == "stderr":
                self.stderr += data
                del self.stderr[:-_KEPT]
            file = sys.stdout if stream == "stdout" else sys.stderr
            file.write(data.decode(errors="replace"))
            file.flush()

    def _give_up(self, limit: float) -> None:
        """End the guest, after pytest has been asked where it is stuck."""
        if self._pid is not None:
            # Its fault handler answers this with a traceback of every thread.
            with contextlib.suppress(GuestError, OSError):
                self.guest.run([_BUSYBOX, "kill", "-ABRT", str(self._pid)], cwd="/", timeout=_LAST_WORDS)
            assert self._thread is not None  # noqa: S101 - it runs
            self._thread.join(_LAST_WORDS)
            self._pass_output_on()
        console = self.guest.console
        self.guest.close()
        of_what = "of --guest-timeout" if limit == self.timeout else "that pytest in the guest has between tests"
        self.end = End(error=GuestError(f"it took longer than the {limit:g} s {of_what}", console=console))
