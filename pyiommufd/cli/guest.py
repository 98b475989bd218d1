"""``pyiommufd guest``: run a command, or a shell, in a QEMU guest that has a virtual IOMMU."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import Choice
from pyiommufd.cli.output import echo, show_progress
from pyiommufd.cli.status import FAILED, MISSING
from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError
from pyiommufd.testing.guest.folders import RESULTS, make_folder
from pyiommufd.testing.guest.guest import Guest
from pyiommufd.testing.guest.machine import IOMMU_KINDS, RawDevice, architecture_of, default_iommu
from pyiommufd.testing.guest.qemu import find_qemu
from pyiommufd.testing.option_names import speak_of
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.kernels import VERSION

COULD_NOT_START = 125
"""The exit status where the command has none of its own: the guest did not start, died, or ran out of time."""

NEWEST = "newest"


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--iommu",
    type=Choice(IOMMU_KINDS),
    default=default_iommu(),
    show_default=True,
    help="The virtual IOMMU. With amd and virtio binds take --append iommufd.allow_unsafe_interrupts=1. With Arm's the "
    "guest is an aarch64 machine; smmuv3-nested has virtual IOMMUs and nested translation besides.",
)
@click.option(
    "--kernel",
    metavar="FILE",
    shell_complete=candidates.kernels,
    help="The kernel image to boot, or the version of one that --build-kernel made. [PYIOMMUFD_KERNEL]",
)
@click.option("--qemu", metavar="PROGRAM", help="The QEMU to run. [PYIOMMUFD_QEMU]", shell_complete=candidates.files)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ARG",
    help="A device, as QEMU's -device takes it; may be repeated. Without: an edu device alone in its group, and a "
    "group of two more and a virtio-rng; with --iommu virtio two edu devices, each alone; with --iommu none the first "
    "edu's DMA mask has 64 bits.",
)
@click.option("--memory", type=click.IntRange(min=64), default=1024, show_default=True, metavar="MIB")
@click.option("--cpus", type=click.IntRange(1, 8), default=2, show_default=True, metavar="N")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The time for booting and COMMAND together; then the guest is ended. [none]",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The folder that COMMAND may write to, as $PYIOMMUFD_RESULTS (/results). [a new one, kept if it is used]",
)
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="One more folder that COMMAND sees, read-only; may be repeated.",
)
@click.option("--append", default="", metavar="KERNELARGS", help="More for the kernel's command line.")
@click.option(
    "--qemu-arg",
    "qemu_arguments",
    multiple=True,
    metavar="ARG",
    help="One more argument for QEMU, as it is; may be repeated: --qemu-arg -device --qemu-arg qemu-xhci.",
)
@click.option("--shell", is_flag=True, help="Run a shell on this terminal, as without COMMAND on a terminal.")
@click.option(
    "--build-kernel",
    "build",
    is_flag=False,
    flag_value=NEWEST,
    metavar="[VERSION]",
    help="First build a kernel from the distribution's source, unless that was done before: the newest on offer, or "
    "VERSION, such as 6.12. It is for the machine of --iommu; one of another architecture gets all else that it takes, "
    "too. Without COMMAND: print its path.",
)
@click.argument(
    "command", nargs=-1, metavar="[-- COMMAND [ARGS]...]", type=click.UNPROCESSED, shell_complete=candidates.files
)
@click.pass_context
def guest(
    ctx: click.Context,
    iommu: str,
    kernel: str | None,
    qemu: str | None,
    devices: tuple[str, ...],
    memory: int,
    cpus: int,
    timeout: float | None,
    results: str | None,
    mounts: tuple[str, ...],
    append: str,
    qemu_arguments: tuple[str, ...],
    shell: bool,
    build: str | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND, or a shell, in a QEMU guest with a virtual IOMMU.

    COMMAND runs as root in this Python environment and this folder, on a real kernel with /dev/iommu. It sees /usr,
    the Python environment and this folder at their usual paths. What it writes is lost with the guest, except in
    $PYIOMMUFD_RESULTS. Its output appears here and its exit status becomes this one's: 128+N for signal N, and 125
    where the guest could not be started or died.

    It reads this command's standard input, from a terminal line by line, as with ssh; in a loop that reads a file, or
    where what is typed is for the next command, give it </dev/null. Without COMMAND, on a terminal: a shell in the
    guest, with job control and the terminal's size; its end is the guest's, and Ctrl-C is for what runs in it.

    Results come out as plain files and folders of the user who runs this (with sudo: root), with the mode that the
    umask gives; a symbolic link as a file that holds its target, a device, fifo or socket as an empty one. An archive
    keeps owners, modes and links: tar -cf $PYIOMMUFD_RESULTS/all.tar FOLDER
    """
    if shell and command:
        raise click.UsageError("--shell and COMMAND exclude each other", ctx)
    if not command and build is None:
        shell = True
    if shell and not (sys.stdin.isatty() and sys.stdout.isatty()):  # noqa: TID251 - what it is, not what goes there
        raise click.UsageError("no COMMAND, and no terminal for a shell: pyiommufd guest [OPTIONS] -- COMMAND", ctx)
    speak_of("command")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    if build is not None:
        if kernel is not None:
            raise click.UsageError("--kernel and --build-kernel exclude each other", ctx)
        if build != NEWEST and not VERSION.fullmatch(build):
            raise click.UsageError(f"--build-kernel: {build} is not a version; put -- before COMMAND", ctx)
        kernel = str(_build(build, architecture_of(iommu), qemu, alone=not command and not shell))
    if not command and not shell:
        echo(kernel)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    results_folder, lock = _results_folder(results)
    machine = Guest(
        iommu=iommu,
        devices=list(map(RawDevice, devices)) or None,
        kernel=kernel,
        qemu=qemu,
        memory=memory,
        cpus=cpus,
        kernel_arguments=append.split(),
        qemu_arguments=qemu_arguments,
        results=results_folder,
        read_only=mounts,
        boot_timeout=120 if timeout is None else min(timeout, 120),
    )
    try:
        sys.exit(_run(machine, command, deadline))
    finally:
        machine.close()
        if lock is not None:
            _leave_results(results_folder)
            os.close(lock)


def _build(version: str, architecture: Architecture, qemu: str | None, *, alone: bool) -> Path:
    """Build the kernel, and exit where that fails."""
    # apt and the build's parts are imported by those who build only: every other guest starts sooner.
    from pyiommufd.testing.provision.parts import provide

    try:
        return provide(architecture, None if version == NEWEST else version, qemu=_lacks_qemu(architecture, qemu)).image
    except (GuestError, OSError) as error:
        status = MISSING if isinstance(error, GuestMissingError) else FAILED
        sys.exit(_failed(error, status=status if alone else COULD_NOT_START))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _lacks_qemu(architecture: Architecture, qemu: str | None) -> bool:
    """Whether a QEMU is to be fetched: few distributions have one that does for aarch64."""
    from pyiommufd.testing.provision.newer_qemu import find_firmware

    try:
        found = find_qemu(qemu, architecture=architecture)
        if architecture is AARCH64:
            find_firmware(Path(found.path))
    except GuestMissingError:
        return architecture is not X86_64
    return False


def _run(machine: Guest, command: tuple[str, ...], deadline: float | None) -> int:
    try:
        with show_progress("booting the guest"):
            machine.start()
        left = None if deadline is None else max(deadline - time.monotonic(), 0.1)
        status = _run_command(machine, command, left) if command else _run_shell(machine, left)
    except GuestTimeoutError as error:
        return _failed(error, "" if deadline is None else "; that is the time limit, booting included")
    except (GuestError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            # Nobody reads our output any more: end as a program does that SIGPIPE ends.
            return 128 + signal.SIGPIPE
        return _failed(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status if status >= 0 else 128 - status


def _run_command(machine: Guest, command: tuple[str, ...], timeout: float | None) -> int:
    return machine.run(
        command,
        timeout=timeout,
        stdin=sys.stdin,
        stdout=_Writer(sys.stdout.buffer).write,  # noqa: TID251 - COMMAND's output, as it is
        stderr=_Writer(sys.stderr.buffer).write,  # noqa: TID251
    ).returncode


def _run_shell(machine: Guest, timeout: float | None) -> int:
    from pyiommufd.testing.guest.shell import run_shell

    echo(
        "a shell in the guest: exit or Ctrl-D ends both, and what it writes is lost, except in $PYIOMMUFD_RESULTS",
        err=True,
    )
    return run_shell(machine, timeout=timeout)


class _Writer:
    """Passes output on at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()


def _failed(error: Exception, note: str = "", *, status: int = COULD_NOT_START) -> int:
    console = error.console if isinstance(error, GuestError) else ""
    if console:
        echo("--- the guest's console, its end ---", err=True)
        echo(console, err=True)
        echo("---", err=True)
    echo(f"pyiommufd guest: {error}{note}", err=True)
    return status


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


def _results_folder(option: str | None) -> tuple[Path, int | None]:
    """The folder for results and, if it is a new one of ours, the file descriptor that holds its lock."""
    if option is None:
        return make_folder(RESULTS)
    folder = Path(option)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, None


def _leave_results(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        echo(f"pyiommufd guest: results in {folder}", err=True)
