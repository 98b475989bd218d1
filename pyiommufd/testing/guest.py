"""A QEMU guest with a virtual IOMMU, in which the host's own Python environment runs on a real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyiommufd.testing import launch
from pyiommufd.testing.agent import PORT_NAME
from pyiommufd.testing.channel import Channel, Request, Sink
from pyiommufd.testing.errors import GuestError, GuestTimeoutError
from pyiommufd.testing.filesystem import GuestFiles, guest_environment
from pyiommufd.testing.initramfs import build_initramfs
from pyiommufd.testing.kernels import Kernel, cache_folder, find_kernel
from pyiommufd.testing.machine import (
    GuestDevice,
    default_devices,
    device_arguments,
    escape,
    iommu_arguments,
    iommu_device,
    iommu_kernel_arguments,
)
from pyiommufd.testing.qemu import BASE_ARGUMENTS, QEMU, choose_accelerator, find_qemu, iommu_error

_ANSWER_TIME = 5.0

# The launcher's own devices go to the last free slots of the root bus, all in one group, so that the
# devices under test have the first slots whatever else the guest needs.
_OWN_SLOTS = (0x1E, 0x1D, 0x1C)


class Guest:
    """A guest that runs commands in this Python environment. A context manager.

    Commands may be run from several threads at once. The guest ends with the ``with`` block, and with this
    process even if that is killed.

    Args:
        iommu: One of `machine.IOMMU_KINDS`.
        devices: The PCI devices under test, in slot order; None: `machine.default_devices`.
        kernel: The kernel image to boot; see `find_kernel` for what None means.
        qemu: The QEMU to run; see `find_qemu` for what None means.
        memory: MiB of memory.
        cpus: The number of CPUs.
        kernel_arguments: More for the kernel's command line.
        qemu_arguments: More for QEMU's command line.
        folder: The working folder, seen at the same path, writable but not kept; None: the current one.
        results: The host's folder that the guest sees as ``/results`` and may write to; None: none.
        read_only: More folders of the host that the guest sees, read-only.
        boot_timeout: Seconds that the guest may take to be ready.
        accelerator: QEMU's ``-accel`` argument; None: KVM where it works, else emulation.
    """

    def __init__(
        self,
        *,
        iommu: str = "intel",
        devices: Iterable[GuestDevice] | None = None,
        kernel: str | os.PathLike[str] | None = None,
        qemu: str | os.PathLike[str] | None = None,
        memory: int = 1024,
        cpus: int = 2,
        kernel_arguments: Sequence[str] = (),
        qemu_arguments: Sequence[str] = (),
        folder: str | os.PathLike[str] | None = None,
        results: str | os.PathLike[str] | None = None,
        read_only: Iterable[str | os.PathLike[str]] = (),
        boot_timeout: float = 120,
        accelerator: str | None = None,
    ) -> None:
        self.folder = Path.cwd() if folder is None else Path(folder).absolute()
        self._iommu = iommu
        self._devices = default_devices(iommu) if devices is None else tuple(devices)
        self._kernel_option = None if kernel is None else os.fspath(kernel)
        self._qemu_option = None if qemu is None else os.fspath(qemu)
        self._memory = memory
        self._cpus = cpus
        self._kernel_arguments = tuple(kernel_arguments)
        self._qemu_arguments = tuple(qemu_arguments)
        self._results = None if results is None else Path(results).absolute()
        self._read_only = [Path(path).absolute() for path in read_only]
        self._boot_timeout = boot_timeout
        self._accelerator = accelerator
        self._state: _Running | None = None
        self._console = ""

    def start(self) -> None:
        """Boot the guest and wait until it takes commands.

        Raises:
            GuestMissingError: QEMU, a kernel or busybox is missing.
            GuestError: The guest did not come up.
        """
        if self._state is not None:
            raise GuestError("the guest runs already")
        qemu = find_qemu(self._qemu_option)
        kernel = find_kernel(self._kernel_option)
        files = GuestFiles.plan(folder=self.folder, results=self._results, extra=self._read_only)
        accelerator = self._accelerator or choose_accelerator(qemu, kernel.image, cache_folder())
        work = Path(tempfile.mkdtemp(prefix="pyiommufd-guest-"))
        try:
            (work / "initramfs").write_bytes(build_initramfs(files, list(kernel.boot_modules), list(kernel.modules)))
            arguments = self._arguments(qemu, kernel, files, accelerator, work)
            self._state = _Running(work, arguments)
            self._state.wait_ready(self._boot_timeout)
        except BaseException:
            if self._state is None:
                shutil.rmtree(work, ignore_errors=True)
            self.close()
            raise

    def _arguments(self, qemu: QEMU, kernel: Kernel, files: GuestFiles, accelerator: str, work: Path) -> list[str]:
        device = iommu_device(self._iommu)
        try:
            iommu = iommu_arguments(self._iommu, qemu.device_properties(device) if device else frozenset())
        except LookupError as error:
            raise iommu_error(qemu, str(error)) from None
        result = [qemu.path, *BASE_ARGUMENTS, "-accel", accelerator, "-cpu", "max"]
        result += ["-m", str(self._memory), "-smp", str(self._cpus)]
        result += iommu
        places = (f"bus=pcie.0,addr={slot:#x}.{function}" for slot in _OWN_SLOTS for function in range(8))
        result += ["-device", f"virtio-serial-pci,id=agent-bus,multifunction=on,{next(places)}"]
        result += ["-device", f"virtserialport,bus=agent-bus.0,nr=1,chardev=agent,name={PORT_NAME}"]
        for number, export in enumerate(files.exports):
            read_only = "" if export.writable else ",readonly=on"
            path = escape(str(export.source))
            result += [
                "-fsdev",
                f"local,id=fs{number},path={path},security_model=none,multidevs=remap{read_only}",
                "-device",
                f"virtio-9p-pci,fsdev=fs{number},mount_tag=fs{number},multifunction=on,{next(places)}",
            ]
        result += device_arguments(self._devices)
        result += ["-chardev", f"file,id=console,path={escape(str(work / 'console'))}", "-serial", "chardev:console"]
        result += ["-kernel", str(kernel.image), "-initrd", str(work / "initramfs")]
        result += ["-append", " ".join(self._kernel_command_line())]
        return [*result, *self._qemu_arguments]

    def _kernel_command_line(self) -> list[str]:
        return [
            "console=ttyS0",
            "loglevel=5",
            # A panic, or an oops, ends the guest at once: -no-reboot makes QEMU exit.
            "panic=-1",
            "oops=panic",
            "random.trust_cpu=on",
            *iommu_kernel_arguments(self._iommu),
            *self._kernel_arguments,
        ]

    def close(self) -> None:
        """End the guest; once is enough."""
        state, self._state = self._state, None
        if state is not None:
            self._console = state.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise GuestError("the guest does not run")
        return self._state

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the guest and wait for its end. It has no standard input.

        Args:
            argv: The program and its arguments; the program is looked up on the environment's PATH.
            env: Added to `guest_environment`.
            cwd: The folder to run it in; None: the working folder.
            timeout: Seconds that it may take; then it is killed, and if the guest does not answer, that too.
            stdout: Called with each piece of its output as it comes; None: collected into the result.
            stderr: Likewise.
            check: Raise for any exit status but 0.

        Returns:
            As `subprocess.run`: the status is negative for a command that a signal ended.

        Raises:
            GuestTimeoutError: The time limit passed.
            GuestError: The guest died, or the command could not be asked for.
            subprocess.CalledProcessError: With ``check``.
        """
        argv = [os.fspath(argument) for argument in argv]
        collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        sinks = {"stdout": stdout or collected["stdout"].extend, "stderr": stderr or collected["stderr"].extend}
        state = self._running
        request = state.channel.ask(
            "run",
            sinks=sinks,
            argv=argv,
            env=guest_environment() | dict(env or {}),
            cwd=os.fspath(self.folder if cwd is None else cwd),
            timeout=None if timeout is None else max(1, round(timeout * 1000)),
        )
        what = f"{argv[0]} in the guest"
        answer = state.settle(request, what, None if timeout is None else timeout + _ANSWER_TIME)
        if answer["timed_out"]:
            raise GuestTimeoutError(
                f"{what} did not finish within {timeout:.3g} s", console=console_tail(state.console())
            )
        result = subprocess.CompletedProcess(
            argv, int(answer["status"]), bytes(collected["stdout"]), bytes(collected["stderr"])
        )
        if check:
            result.check_returncode()
        return result

    def put(self, content: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file in the guest.

        Raises:
            OSError: The guest's refusal, with its errno.
            GuestError: The guest died.
        """
        size = 1 << 18
        for start in range(0, max(len(content), 1), size):
            piece = content[start : start + size]
            request = self._running.channel.ask("put", data=piece, path=path, mode=mode, append=start > 0)
            self._running.settle(request, f"writing {path}", None)

    def get(self, path: str) -> bytes:
        """Read a regular file of the guest, /proc and /sys included.

        Raises:
            OSError: The guest's refusal, with its errno.
            GuestError: The guest died.
        """
        content = bytearray()
        request = self._running.channel.ask("get", sinks={"data": content.extend}, path=path)
        self._running.settle(request, f"reading {path}", None)
        return bytes(content)

    def dmesg(self) -> str:
        """The guest kernel's log."""
        return self.run(["/.guest/busybox", "dmesg"], cwd="/", check=True).stdout.decode(errors="replace")

    @property
    def console(self) -> str:
        """What the serial console printed so far; also after the guest's end."""
        return self._console if self._state is None else self._state.console()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Ask QEMU's monitor, such as ``qmp("device_del", id="dev0")``.

        Returns:
            What the command returns.

        Raises:
            GuestError: QEMU refused, or is gone.
        """
        return self._running.qmp(command, arguments)


class _Running:
    """A QEMU process, its agent and its files.

    The process is started and waited for by one thread of its own: `launch` ties it to the life of the thread
    that starts it, and the caller's may end before the guest does.
    """

    def __init__(self, work: Path, arguments: list[str]) -> None:
        self._work = work
        agent_host, agent_guest = socket.socketpair()
        qmp_host, qmp_guest = socket.socketpair()
        self.channel = Channel(agent_host)
        self._sockets = (agent_host, qmp_host)
        self._qmp_socket = qmp_host
        self._qmp_lock = threading.Lock()
        self._qmp_file: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: OSError | None = None
        self._started = threading.Event()
        self._closing = False
        fds = (agent_guest.fileno(), qmp_guest.fileno())
        arguments = [
            *arguments,
            *("-chardev", f"socket,id=agent,fd={fds[0]}"),
            *("-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control"),
        ]
        command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *arguments]
        self._thread = threading.Thread(
            target=self._supervise, args=(command, (agent_guest, qmp_guest)), name="pyiommufd-guest", daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            raise GuestError(f"cannot start QEMU: {self._start_error}")

    def _supervise(self, command: list[str], theirs: tuple[socket.socket, ...]) -> None:
        try:
            with (self._work / "qemu.log").open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[end.fileno() for end in theirs],
                    # Not the terminal's process group: the launcher decides what Ctrl-C does to the guest.
                    start_new_session=True,
                )
        except OSError as error:
            self._start_error = error
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
            self._process.wait(_ANSWER_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.channel.fail_all(self._death(failure))

    def _death(self, failure: Exception | None) -> GuestError:
        console = self.console()
        if self._closing:
            return GuestError("the guest was closed")
        status = self._process.returncode if self._process else None
        said = (self._work / "qemu.log").read_text(errors="replace").strip()
        if failure is not None:
            reason = f"its agent sent something that is no answer ({failure})"
        elif "Kernel panic" in console:
            reason = next(line for line in console.splitlines() if "Kernel panic" in line).strip()
        elif status:
            reason = f"QEMU ended with status {status}"
        else:
            reason = "it turned itself off"
        return GuestError(f"the guest died: {reason}" + (f"\n{said}" if said else ""), console=console_tail(console))

    def wait_ready(self, timeout: float) -> None:
        if not self.channel.greeted.wait(timeout):
            raise GuestTimeoutError(
                f"the guest was not ready after {timeout:.3g} s", console=console_tail(self.console())
            )
        if self.channel.hello is None:
            self._thread.join()
            raise self._death(None)

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
        try:
            return (self._work / "console").read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def close(self) -> str:
        """End the guest and give its console back."""
        if self.channel.hello is not None and self._thread.is_alive():
            # The agent writes out what is in flight to the results folder; the rest of the guest is thrown away.
            with contextlib.suppress(GuestError):
                self.channel.ask("shutdown").wait(_ANSWER_TIME)
        self._closing = True
        self.kill()
        self._thread.join()
        for end in self._sockets:
            end.close()
        console = self.console()
        shutil.rmtree(self._work, ignore_errors=True)
        return console

    def qmp(self, command: str, arguments: dict[str, Any]) -> Any:
        with self._qmp_lock:
            if self._qmp_file is None:
                self._qmp_socket.settimeout(_ANSWER_TIME)
                self._qmp_file = self._qmp_socket.makefile("rwb")
                self._qmp_file.readline()  # the greeting
                self._qmp_exchange({"execute": "qmp_capabilities"})
            return self._qmp_exchange({"execute": command, "arguments": arguments})

    def _qmp_exchange(self, request: dict[str, Any]) -> Any:
        try:
            self._qmp_file.write(json.dumps(request).encode() + b"\n")
            self._qmp_file.flush()
            while line := self._qmp_file.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise GuestError(f"QEMU refuses {request['execute']}: {answer['error']['desc']}")
                if "return" in answer:  # everything else is an event
                    return answer["return"]
        except OSError as error:
            raise GuestError(f"QEMU's monitor: {error}") from error
        raise GuestError("QEMU's monitor hung up")


def console_tail(console: str, lines: int = 40) -> str:
    """The last lines of a console, without control characters."""
    clean = "".join(character for character in console if character.isprintable() or character == "\n")
    return "\n".join(clean.strip().splitlines()[-lines:])
