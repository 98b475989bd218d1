"""A QEMU guest with a virtual IOMMU, in which the host's own Python environment runs on a real kernel."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError
from pyiommufd.testing.guest import iort
from pyiommufd.testing.guest.arguments import check_arguments
from pyiommufd.testing.guest.channel import Sink
from pyiommufd.testing.guest.filesystem import GuestFiles, guest_environment
from pyiommufd.testing.guest.folders import WORK, make_folder
from pyiommufd.testing.guest.foreign import ForeignSystem, find_system
from pyiommufd.testing.guest.hotplug import hot_plug, unplug
from pyiommufd.testing.guest.initramfs import build_initramfs
from pyiommufd.testing.guest.machine import (
    GuestDevice,
    architecture_of,
    default_devices,
    default_iommu,
    device_arguments,
    escape,
    iommu_arguments,
    iommu_device,
    iommu_kernel_arguments,
    machine_arguments,
)
from pyiommufd.testing.guest.process import ANSWER_TIME, GuestProcess, console_tail
from pyiommufd.testing.guest.qemu import BASE_ARGUMENTS, QEMU, choose_accelerator, find_qemu, iommu_error
from pyiommufd.testing.guest.register_trace import EVENTS as TRACE_EVENTS
from pyiommufd.testing.guest.register_trace import RegisterAccess, parse_ranges, parse_trace
from pyiommufd.testing.guest.standard_input import StandardInput, terminal_size
from pyiommufd.testing.inside.agent import PORT_NAME
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.kernels import Kernel, cache_folder, find_kernel

if TYPE_CHECKING:
    from pyiommufd.testing.guest.monitor import Monitor

__all__ = ["CONFIGURATION_VARIABLE", "Guest", "console_tail"]

CONFIGURATION_VARIABLE = "PYIOMMUFD_GUEST_CONFIGURATION"
"""The environment variable that tells a command in which guest it is; see `Guest.description`."""

# The launcher's own devices go to the last free slots of the root bus, all in one group, so that the
# devices under test have the first slots whatever else the guest needs.
_OWN_SLOTS = (0x1E, 0x1D, 0x1C)

_BOOTS = 3

_X86_KERNEL_ARGUMENTS = (
    # On a busy host the emulated timer may miss the kernel's test of it, which would be a panic.
    "no_timer_check",
    # The guest's /init starts the others. The watchdog of clocks (kernel/time/clocksource.c, 7.3) waits for another CPU
    # with interrupts off, for a time that does not pass while the clock is jiffies, as in early boot: where that CPU is
    # in stop_machine() and waits for this one, both wait for good.
    "maxcpus=1",
)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a guest is made of: found on this machine before it boots."""

    architecture: Architecture
    qemu: QEMU
    kernel: Kernel
    accelerator: str
    firmware: Path | None
    system: ForeignSystem | None


class Guest:
    """A guest that runs commands in this Python environment. A context manager.

    Commands may be run from several threads at once. The guest ends with the ``with`` block, and with this
    process even if that is killed.

    Args:
        iommu: One of `machine.IOMMU_KINDS`, which also says the guest's architecture; None: `machine.default_iommu`.
        devices: The PCI devices under test, in slot order, each one of the classes such as `Edu` or a string as
            QEMU's ``-device`` takes it; None: `machine.default_devices`.
        kernel: The kernel image to boot, or the version of one built earlier, such as ``6.12``; see `find_kernel` for
            what None means.
        qemu: The QEMU to run; see `find_qemu` for what None means.
        memory: MiB of memory.
        cpus: The number of CPUs.
        kernel_arguments: More for the kernel's command line.
        qemu_arguments: More for QEMU's command line.
        folder: The working folder, seen at the same path, writable but not kept; None: the current one.
        results: The host's folder that the guest sees as ``/results`` and may write to; None: none. What comes out
            are plain files and folders of this process's user (with sudo: root), with the mode that its umask gives.
            The owner, mode and kind that a guest gave them only guests see: a symbolic link comes out as a file that
            holds its target, a device, fifo or socket as an empty one; tar in the guest makes an archive that keeps
            them. The guest cannot follow symbolic links that were made in the folder on this machine.
        read_only: More folders of the host that the guest sees, read-only.
        boot_timeout: Seconds that the guest may take to be ready.
        accelerator: QEMU's ``-accel`` argument; None: KVM where it works, else emulation.
        ports: Names of virtio ports for programs in the guest to talk to this process by; see `port`.
        trace: Record every access to a device's registers, for `register_accesses`.

    Raises:
        TypeError, ValueError: An argument is not what it has to be.
    """

    def __init__(
        self,
        *,
        iommu: str | None = None,
        devices: Iterable[GuestDevice | str] | None = None,
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
        ports: Sequence[str] = (),
        trace: bool = False,
    ) -> None:
        given = check_arguments(
            "Guest",
            {
                "iommu": default_iommu() if iommu is None else iommu,
                "devices": devices,
                "kernel": kernel,
                "qemu": qemu,
                "memory": memory,
                "cpus": cpus,
                "kernel_arguments": kernel_arguments,
                "qemu_arguments": qemu_arguments,
                "folder": folder,
                "results": results,
                "read_only": read_only,
                "boot_timeout": boot_timeout,
                "accelerator": accelerator,
                "ports": ports,
                "trace": trace,
            },
        )
        self.folder = Path.cwd() if folder is None else Path(given["folder"]).absolute()
        self._iommu: str = given["iommu"]
        own = default_devices(self._iommu)
        self._devices: tuple[GuestDevice, ...] = own if devices is None else given["devices"]
        self._kernel_option: str | None = given["kernel"]
        self._image: Path | None = None
        self._qemu_option: str | None = given["qemu"]
        self._memory: int = given["memory"]
        self._cpus: int = given["cpus"]
        self._kernel_arguments: tuple[str, ...] = given["kernel_arguments"]
        self._qemu_arguments: tuple[str, ...] = given["qemu_arguments"]
        self._results = None if results is None else Path(given["results"]).absolute()
        self._read_only = [Path(path).absolute() for path in given["read_only"]]
        self._boot_timeout: float = given["boot_timeout"]
        self._accelerator: str | None = given["accelerator"]
        self._ports: tuple[str, ...] = given["ports"]
        self._trace: bool = given["trace"]
        self._state: GuestProcess | None = None
        self._console = ""

    def start(self) -> None:
        """Boot the guest and wait until it takes commands; one whose clock runs too fast is booted again.

        With ``smmuv3-nested`` a machine is booted twice the first time that there is such a one.

        Raises:
            GuestMissingError: QEMU, a kernel or busybox is missing, or what a guest of another architecture takes.
            GuestError: The guest did not come up.
        """
        if self._state is not None:
            raise GuestError("the guest runs already")
        parts = self._find()
        if self._iommu == "smmuv3-nested":
            self._start_nested(parts)
        else:
            self._boot_in_time(parts)

    def _find(self) -> _Parts:
        """What the guest is made of, on this machine."""
        architecture = architecture_of(self._iommu)
        if architecture is X86_64 and not X86_64.native:
            raise GuestMissingError(
                f"{option_name('iommu')}: {self._iommu} takes a machine of {X86_64.name}, not of {platform.machine()}: "
                "choose smmuv3 or smmuv3-nested"
            )
        qemu = find_qemu(self._qemu_option, architecture=architecture)
        kernel = find_kernel(self._kernel_option, architecture=architecture)
        self._image = kernel.image
        accelerator = self._accelerator or choose_accelerator(
            qemu, kernel.image, cache_folder(), architecture=architecture
        )
        firmware = None
        if architecture is AARCH64:
            from pyiommufd.testing.provision.newer_qemu import find_firmware  # slow to import, and for such guests only

            firmware = find_firmware(Path(qemu.path))
        system = None if architecture.native else find_system(architecture)
        return _Parts(architecture, qemu, kernel, accelerator, firmware, system)

    def _start_nested(self, parts: _Parts) -> None:
        """Boot with the machine's IORT edited, after a boot to read it where the cache has none that works."""
        cache, key = iort.TableCache(cache_folder()), self._table_key(parts)
        if (table := cache.get(key)) is not None:
            with contextlib.suppress(GuestError):
                self._boot_with(parts, table)
                return
            cache.drop(key)
        self._boot_in_time(parts)
        try:
            table = iort.offer_nesting(self.get(iort.PLACE))
        except (OSError, ValueError) as error:
            raise GuestError(f"nested translation takes an IORT to edit: {error}", console=self.console) from None
        finally:
            self.close()
        self._boot_with(parts, table)
        cache.put(key, table)

    def _table_key(self, parts: _Parts) -> str:
        assert parts.firmware is not None  # noqa: S101 - machines with an IORT have one
        machine = machine_arguments(parts.architecture, parts.accelerator)
        devices = device_arguments(self._devices)
        return iort.table_key(
            f"{parts.qemu.path} {parts.qemu.version}", parts.firmware, machine, devices, self._qemu_arguments
        )

    def _boot_with(self, parts: _Parts, table: bytes) -> None:
        """Boot with this IORT.

        Raises:
            GuestError: The guest did not come up with it, or its kernel does not use it.
        """
        self._boot_in_time(parts, table)
        if self.get(iort.PLACE) != table:
            self.close()
            raise GuestError(
                "the guest's kernel does not use the edited IORT: it takes CONFIG_ACPI_TABLE_UPGRADE",
                console=console_tail(self._console),
            )

    def _boot_in_time(self, parts: _Parts, table: bytes | None = None) -> None:
        for _ in range(_BOOTS):
            self._boot(parts, table)
            if self._accelerator is not None or not self._running.clock_runs_ahead():
                return
            self.close()
        raise GuestError(f"the guest's clock ran too fast in each of {_BOOTS} boots: is this machine overloaded?")

    def _boot(self, parts: _Parts, table: bytes | None) -> None:
        kernel = parts.kernel
        files = GuestFiles.plan(folder=self.folder, results=self._results, extra=self._read_only, system=parts.system)
        work, lock = make_folder(WORK)
        try:
            initramfs = build_initramfs(files, list(kernel.boot_modules), list(kernel.modules), table)
            (work / "initramfs").write_bytes(initramfs)
            self._state = GuestProcess(work, lock, self._arguments(parts, files, work), self._ports)
            self._state.wait_ready(self._boot_timeout)
            # QEMU has read it; should this process be killed, less of it stays behind.
            (work / "initramfs").unlink()
        except BaseException:
            if self._state is None:
                shutil.rmtree(work, ignore_errors=True)
                os.close(lock)
            self.close()
            raise

    def _arguments(self, parts: _Parts, files: GuestFiles, work: Path) -> list[str]:
        device = iommu_device(self._iommu)
        try:
            iommu = iommu_arguments(self._iommu, parts.qemu.device_properties(device) if device else frozenset())
        except LookupError as error:
            raise iommu_error(parts.qemu, str(error)) from None
        result = [parts.qemu.path, *BASE_ARGUMENTS, "-accel", parts.accelerator]
        result += machine_arguments(parts.architecture, parts.accelerator, parts.firmware)
        result += ["-m", str(self._memory), "-smp", str(self._cpus)]
        result += iommu
        places = (f"bus=pcie.0,addr={slot:#x}.{function}" for slot in _OWN_SLOTS for function in range(8))
        result += ["-device", f"virtio-serial-pci,id=agent-bus,multifunction=on,{next(places)}"]
        result += ["-device", f"virtserialport,bus=agent-bus.0,nr=1,chardev=agent,name={PORT_NAME}"]
        for number, name in enumerate(self._ports):
            result += ["-device", f"virtserialport,bus=agent-bus.0,nr={number + 2},chardev=port{number},name={name}"]
        for number, export in enumerate(files.exports):
            path, access = escape(str(export.source)), export.qemu_options()
            result += [
                "-fsdev",
                f"local,id=fs{number},path={path},multidevs=remap,{access}",
                "-device",
                f"virtio-9p-pci,fsdev=fs{number},mount_tag=fs{number},multifunction=on,{next(places)}",
            ]
        result += device_arguments(self._devices)
        result += ["-chardev", f"file,id=console,path={escape(str(work / 'console'))}", "-serial", "chardev:console"]
        result += ["-kernel", str(parts.kernel.image), "-initrd", str(work / "initramfs")]
        result += ["-append", " ".join(self._kernel_command_line(parts))]
        if self._trace:
            result += [argument for event in TRACE_EVENTS for argument in ("-trace", event)]
            result += ["-D", str(work / "trace")]
        return [*result, *self._qemu_arguments]

    def _kernel_command_line(self, parts: _Parts) -> list[str]:
        return [
            f"console={parts.architecture.console}",
            "loglevel=5",
            # A panic, or an oops, ends the guest at once: -no-reboot makes QEMU exit.
            "panic=-1",
            "oops=panic",
            "random.trust_cpu=on",
            *(_X86_KERNEL_ARGUMENTS if parts.architecture is X86_64 else ()),
            # QEMU before 8.0 finds code that it has translated by its virtual address: with random ones it translates
            # Python and its libraries anew for each process, which doubles the time that Python takes to start.
            *(["norandmaps"] if parts.accelerator.startswith("tcg") else []),
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
    def _running(self) -> GuestProcess:
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
        stdin: int | IO[Any] | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        terminal: bool = False,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the guest and wait for its end.

        Args:
            argv: The program and its arguments; the program is looked up on the environment's PATH.
            env: Added to `guest_environment`.
            cwd: The folder to run it in; None: the working folder.
            timeout: Seconds that it may take; then it is killed, and if the guest does not answer, that too.
            stdin: Its standard input: a file descriptor, or a file that has one, which is read as fast as the command
                reads, by a thread of its own, and up to 128 KiB further. None: ``/dev/null``.
            stdout: Called with each piece of its output as it comes; None: collected into the result.
            stderr: Likewise.
            terminal: Run it on a terminal of its own, of the size that the one in ``stdin`` has and gets. What it
                writes all goes to ``stdout``. To be called in the main thread.
            check: Raise for any exit status but 0.

        Returns:
            As `subprocess.run`: the status is negative for a command that a signal ended.

        Raises:
            GuestTimeoutError: The time limit passed.
            GuestError: The guest died, or the command could not be asked for.
            OSError: ``stdin`` cannot be read, or with ``terminal`` is none.
            TypeError: ``argv`` is a string.
            ValueError: ``terminal`` without ``stdin``, or in another thread than the main one.
            subprocess.CalledProcessError: With ``check``.
        """
        if isinstance(argv, str | bytes):
            raise TypeError(f"argv={argv!r:.60}: a list is wanted, such as ['ls', '-l']")
        if terminal and stdin is None:
            raise ValueError("terminal=True takes a terminal as stdin, such as 0")
        if terminal and threading.current_thread() is not threading.main_thread():
            raise ValueError("terminal=True takes SIGWINCH, as only the main thread can: call it there")
        argv = [os.fspath(argument) for argument in argv]
        collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        sinks: dict[str, Sink] = {name: buffer.extend for name, buffer in collected.items()}
        sinks |= {name: sink for name, sink in (("stdout", stdout), ("stderr", stderr)) if sink is not None}
        state = self._running
        environment = guest_environment()
        message: dict[str, Any] = {"argv": argv, "cwd": os.fspath(self.folder if cwd is None else cwd)}
        message["timeout"] = None if timeout is None else max(1, round(timeout * 1000))
        what = f"{argv[0]} in the guest"
        with contextlib.ExitStack() as stack:
            feed = None
            if stdin is not None:
                source = stdin if isinstance(stdin, int) else stdin.fileno()
                feed = stack.enter_context(StandardInput(state.channel, source, follow_size=terminal))
                sinks["more"] = feed.more
                message["input"] = True
                if terminal:
                    message["terminal"] = terminal_size(source)
                    for name in ("LINES", "COLUMNS"):  # programs would believe these and not the terminal
                        environment.pop(name, None)
            message["env"] = environment | {CONFIGURATION_VARIABLE: self.description} | dict(env or {})
            request = state.channel.ask("run", sinks=sinks, **message)
            if feed is not None:
                feed.start(request)
            answer = state.settle(request, what, None if timeout is None else timeout + ANSWER_TIME)
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
            GuestMissingError: The package ``qemu.qmp`` is not installed.
        """
        return self.monitor.execute(command, arguments)

    @property
    def monitor(self) -> Monitor:
        """The connection to QEMU's monitor.

        Raises:
            GuestError: QEMU is gone.
            GuestMissingError: The package ``qemu.qmp`` is not installed.
        """
        return self._running.monitor()

    def hot_plug(self, device: GuestDevice, *, port: str | None = None) -> str:
        """Put a device behind an empty root port (``RootPort()`` among the guest's devices) while the guest runs.

        Args:
            device: One without a bridge of its own.
            port: QEMU's name of the port, such as ``rp1``; None: the first empty one.

        Returns:
            QEMU's name of the device, for `unplug`.

        Raises:
            GuestError: QEMU refused, or no port is empty.
            TypeError: It is no device.
        """
        return hot_plug(self.monitor, device, port)

    def unplug(self, name: str, *, timeout: float = 30) -> None:
        """Take a device that sits behind a root port away, and wait until it is gone.

        Args:
            name: Its ``id``.
            timeout: Seconds to wait. The guest lets go of a device only when its driver, or whoever holds it open
                through vfio, has; 0: ask for it and do not wait.

        Raises:
            GuestError: QEMU refused.
            GuestTimeoutError: The guest did not let go.
        """
        unplug(self.monitor, name, timeout)

    def register_accesses(self, region: str | None = None) -> list[RegisterAccess]:
        """What the guest read from and wrote to device registers so far, in order; needs ``trace=True``.

        Args:
            region: Only those of the memory region that QEMU calls so, such as ``edu-mmio``; None: all, and with
                them every access to the serial console and the interrupt controller.

        Raises:
            GuestError: The guest does not run, or was not made with ``trace=True``.
        """
        if not self._trace:
            raise GuestError("the guest records no register accesses: make it with trace=True")
        ranges = parse_ranges(self.monitor.human("info mtree"))
        with self._running.trace_log.open(errors="replace") as lines:
            return list(parse_trace(lines, ranges, region=region))

    def port(self, name: str) -> socket.socket:
        """This process's end of a virtio port; in the guest the other is ``/dev/vport…``, found by the name.

        Args:
            name: One of those that the guest was made with.

        Raises:
            GuestError: The guest does not run.
            KeyError: It has no such port.
        """
        return self._running.ports[name]

    @property
    def description(self) -> str:
        """What kind of guest this is, as JSON; commands find it in `CONFIGURATION_VARIABLE`."""
        kernel = None if self._kernel_option is None else str(self._image or Path(self._kernel_option).absolute())
        return json.dumps(
            {
                "iommu": self._iommu,
                "kernel": kernel,
                "devices": device_arguments(self._devices),
                "memory": self._memory,
                "cpus": self._cpus,
                "kernel_arguments": self._kernel_arguments,
                "qemu_arguments": self._qemu_arguments,
            }
        )
