"""A guest's QEMU process: started, watched, and ended with this process however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyiommufd.testing.errors import GuestError, GuestTimeoutError
from pyiommufd.testing.guest.channel import Channel, Request
from pyiommufd.vmm.launch import launch_command

if TYPE_CHECKING:
    from pyiommufd.testing.guest.monitor import Monitor

ANSWER_TIME = 5.0
"""Seconds that a guest in good health may take to answer."""


class GuestProcess:
    """A QEMU process, its agent and its files.

    The process is started and waited for by one thread of its own: `launch_command` ties it to the life of the thread
    that starts it, and the caller's may end before the guest does.

    Args:
        work: A folder of its own for the console and logs; removed by `close`.
        lock: The open file descriptor that holds the folder's lock, for QEMU as well; closed by `close`.
        arguments: QEMU's command line, without what connects it to this process.
        ports: Names of further virtio ports; each a character device ``port0``, ``port1``, … of QEMU.

    Raises:
        GuestError: QEMU could not be started.
    """

    def __init__(self, work: Path, lock: int, arguments: list[str], ports: Sequence[str]) -> None:
        self._work = work
        self._lock = lock
        self.trace_log = work / "trace"
        agent_host, agent_guest = socket.socketpair()
        qmp_host, qmp_guest = socket.socketpair()
        self.channel = Channel(agent_host)
        port_pairs = [socket.socketpair() for _ in ports]
        self.ports = {name: pair[0] for name, pair in zip(ports, port_pairs, strict=True)}
        self._sockets = (agent_host, qmp_host, *self.ports.values())
        self._qmp_socket = qmp_host
        self._monitor_lock = threading.Lock()
        self._monitor: Monitor | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: BaseException | None = None
        self._begun = time.monotonic()
        self._started = threading.Event()
        self._closing = False
        fds = (agent_guest.fileno(), qmp_guest.fileno())
        arguments = [
            *arguments,
            *("-chardev", f"socket,id=agent,fd={fds[0]}"),
            *("-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control"),
        ]
        for number, (_, theirs) in enumerate(port_pairs):
            arguments += ["-chardev", f"socket,id=port{number},fd={theirs.fileno()}"]
        all_theirs = (agent_guest, qmp_guest, *(theirs for _, theirs in port_pairs))
        command = launch_command(arguments)
        self._thread = threading.Thread(
            target=self._supervise, args=(command, all_theirs), name="pyiommufd-guest", daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            raise GuestError(f"cannot start QEMU: {self._start_error}") from self._start_error

    def _supervise(self, command: list[str], theirs: tuple[socket.socket, ...]) -> None:
        try:
            with (self._work / "qemu.log").open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[self._lock, *(end.fileno() for end in theirs)],
                    # Not the terminal's process group: the launcher decides what Ctrl-C does to the guest.
                    start_new_session=True,
                )
        except BaseException as error:
            self._start_error = error  # raised again by the thread that waits for the start
            for end in self._sockets:
                end.close()
            return
        finally:
            for end in theirs:
                end.close()
            self._started.set()
        failure: Exception | None = None
        try:
            self.channel.read()
        except Exception as error:
            failure = error  # the guest sent what is no frame
            self._process.kill()
        # The agent hangs up only when the machine goes; a QEMU that stays behind without it is of no use.
        try:
            self._process.wait(ANSWER_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.channel.fail_all(self._death(failure))

    def _death(self, failure: Exception | None) -> GuestError:
        console = self.console()
        if self._closing:
            return GuestError("the guest was closed")
        status = self._process.returncode if self._process else None
        said = self._written("qemu.log").strip()
        if failure is not None:
            reason = f"its agent sent something that is not an answer ({failure})"
        elif "Kernel panic" in console:
            reason = next(line for line in console.splitlines() if "Kernel panic" in line).strip()
        elif last := [line for line in console.splitlines() if line.startswith("guest: ")]:
            reason = last[-1].removeprefix("guest: ")  # the start-up script gave up
        elif status and status < 0:
            reason = f"QEMU was ended by signal {-status} ({signal.strsignal(-status)})"
        elif status:
            reason = f"QEMU ended with status {status}"
        else:
            reason = "it turned itself off"
        return GuestError(f"the guest died: {reason}" + (f"\n{said}" if said else ""), console=console_tail(console))

    def wait_ready(self, timeout: float) -> None:
        """Wait until the agent takes commands.

        Raises:
            GuestTimeoutError: It does not within so many seconds.
            GuestError: The guest died.
        """
        if not self.channel.greeted.wait(timeout):
            raise GuestTimeoutError(
                f"the guest was not ready after {timeout:.3g} s", console=console_tail(self.console())
            )
        if self.channel.hello is None:
            self._thread.join()
            raise self._death(None)

    def clock_runs_ahead(self) -> bool:
        """Whether more time has passed in the guest than here, by what its agent said when it was ready.

        An emulated machine on a busy host may measure its TSC against a late PIT, and its clock then runs fifty times
        too fast: every time limit in the guest would pass at once (Linux, ``pit_hpet_ptimer_calibrate_cpu``).
        """
        assert self.channel.hello is not None  # noqa: S101 - it is ready
        return bool(self.channel.hello["up"] > 1500 * (self.channel.greeted_at - self._begun))

    def settle(self, request: Request, what: str, timeout: float | None) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            GuestTimeoutError: The guest does not answer; it has been ended.
        """
        if not request.wait(timeout):
            console = console_tail(self.console())
            self.kill()
            raise GuestTimeoutError(f"{what}: the guest does not answer; it was ended", console=console)
        if request.failure is not None:
            raise request.failure
        assert request.answer is not None  # noqa: S101 - settled, and not failed
        if request.answer["op"] == "error":
            number, message = request.answer.get("errno"), f"{what}: {request.answer['reason']}"
            raise OSError(number, message) if number else GuestError(message)
        return request.answer

    def console(self) -> str:
        """What the serial console printed so far."""
        return self._written("console").replace("\r", "")

    def _written(self, name: str) -> str:
        try:
            return (self._work / name).read_text(errors="replace")
        except OSError:  # QEMU has not made it, or somebody has removed the folder
            return ""

    def kill(self) -> None:
        """End QEMU at once."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def close(self) -> str:
        """End the guest and give its console back."""
        if self.channel.hello is not None and self._thread.is_alive():
            # The agent writes out what is in flight to the results folder; the rest of the guest is thrown away.
            with contextlib.suppress(GuestError):
                self.channel.ask("shutdown").wait(ANSWER_TIME)
        self._closing = True
        with self._monitor_lock:
            if self._monitor is not None:
                self._monitor.close()
        self.kill()
        self._thread.join()
        for end in self._sockets:
            end.close()
        console = self.console()
        shutil.rmtree(self._work, ignore_errors=True)
        os.close(self._lock)
        return console

    def monitor(self) -> Monitor:
        """The connection to QEMU's monitor."""
        from pyiommufd.testing.guest.monitor import Monitor

        with self._monitor_lock:
            if self._monitor is None:
                self._monitor = Monitor(self._qmp_socket)
            return self._monitor


def console_tail(console: str, lines: int = 40) -> str:
    """The last lines of a console, without control characters."""
    clean = "".join(character for character in console if character.isprintable() or character == "\n")
    return "\n".join(clean.strip().splitlines()[-lines:])
