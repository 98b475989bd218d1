"""QEMU: which one, what it can do, and how fast: by hardware virtualisation or by emulation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.guest.machine import machine_arguments
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.kernels import build_command, cache_folder

OLDEST = {X86_64: (7, 2), AARCH64: (10, 0)}
"""The oldest QEMU whose IOMMUs and devices are known to do, by the machine's architecture."""

# Red Hat's names of the QEMU for the machine's own architecture.
_PROGRAMS = ("/usr/libexec/qemu-kvm", "qemu-kvm")


@dataclass(frozen=True, slots=True)
class QEMU:
    """A QEMU program.

    Attributes:
        path: The program.
        version: Its major and minor version.
    """

    path: str
    version: tuple[int, int]

    @property
    def emulation(self) -> str:
        """Its ``-accel`` argument without hardware virtualisation: a thread for each processor, where that is safe.

        Before 8.2 a processor may use the memory map that another is replacing, as a device's reset does: QEMU 7.2 died
        of it in ``memory_region_dispatch_write``, once in some hours. One thread for all processors cannot.
        """
        return "tcg,thread=multi" if self.version >= (8, 2) else "tcg,thread=single"

    def device_properties(self, device: str) -> frozenset[str]:
        """The names of the properties that this QEMU's device of that name has; none where it has no such device."""
        return _device_properties(self.path, device)


def find_qemu(
    option: str | None = None, environment: Mapping[str, str] | None = None, *, architecture: Architecture = X86_64
) -> QEMU:
    """The QEMU to use: the one named, else ``PYIOMMUFD_QEMU``, else this machine's.

    ``PYIOMMUFD_QEMU`` is passed over where it names one of another architecture. For aarch64 one fetched earlier
    serves where this machine's is missing or too old.

    Args:
        option: A path, or the name of a program on the PATH.
        environment: In place of this process's own.
        architecture: The guest's.

    Raises:
        GuestMissingError: There is none, it is too old, or the one named is of another architecture.
    """
    environment = os.environ if environment is None else environment
    for origin, program in ((option_name("qemu"), option), ("PYIOMMUFD_QEMU", environment.get("PYIOMMUFD_QEMU"))):
        if program:
            path = shutil.which(program, path=environment.get("PATH"))
            if path is None:
                raise GuestMissingError(f"{origin}: {program} is not a program that can be run")
            qemu = _checked(path, architecture, f"{origin}: ")
            if not _is_of_another(qemu.path, architecture):
                return qemu
            if program is option:
                raise GuestMissingError(
                    f"{origin}: {path} has no machines of {architecture.name}: name {architecture.qemu}"
                )
    for program in (architecture.qemu, *(_PROGRAMS if architecture.native else ())):
        if path := shutil.which(program, path=environment.get("PATH")):
            try:
                return _checked(path, architecture)
            except GuestMissingError as error:
                if (fetched := _fetched(architecture, environment)) is None:
                    raise GuestMissingError(f"{error}{_or_fetch(architecture)}") from None
                return fetched
    if fetched := _fetched(architecture, environment):
        return fetched
    raise GuestMissingError(
        f"the guest needs QEMU: apt-get install {architecture.qemu_package}{_or_fetch(architecture)}"
    )


def _fetched(architecture: Architecture, environment: Mapping[str, str]) -> QEMU | None:
    """That for aarch64 in the cache: few systems have one that is new enough."""
    if architecture is X86_64:
        return None
    from pyiommufd.testing.provision.newer_qemu import fetched_qemus  # slow to import, and for such guests only

    fetched = fetched_qemus(cache_folder(environment), architecture)
    return _checked(str(fetched[0].program), architecture) if fetched else None


def _or_fetch(architecture: Architecture) -> str:
    if architecture is X86_64:
        return ""
    return f" ({'.'.join(map(str, OLDEST[architecture]))} or newer), or {build_command(architecture)} fetches one"


def _is_of_another(path: str, architecture: Architecture) -> bool:
    """Whether a QEMU has no machines of this architecture, but of another."""
    command = [path, "-machine", "help"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    boards = {line.partition(" ")[0] for line in result.stdout.splitlines()}
    return "none" in boards and {X86_64: "q35", AARCH64: "virt"}[architecture] not in boards


def _checked(path: str, architecture: Architecture, origin: str = "") -> QEMU:
    path = str(Path(path).absolute())
    try:
        result = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise GuestMissingError(f"{origin}{path} cannot be run: {error.strerror}") from None
    match = re.search(r"^QEMU emulator version (\d+)\.(\d+)", result.stdout, re.MULTILINE)
    if result.returncode != 0 or match is None:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise GuestMissingError(
            f"{origin}{path} is not a QEMU that works: its --version says: "
            f"{said[0] if said else f'nothing, with status {result.returncode}'}"
        )
    version = int(match[1]), int(match[2])
    if version < OLDEST[architecture]:
        found, wanted = ".".join(map(str, version)), ".".join(map(str, OLDEST[architecture]))
        raise GuestMissingError(
            f"{path} is QEMU {found}, and the guest needs {wanted} or newer: "
            f"name one with {option_name('qemu')} or PYIOMMUFD_QEMU"
        )
    return QEMU(path, version)


@cache
def _device_properties(path: str, device: str) -> frozenset[str]:
    command = [path, "-machine", "none", "-device", f"{device},help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"^\s+([\w.-]+)=", result.stdout, re.MULTILINE))


def cpu_virtualises(cpuinfo: str) -> bool:
    """Whether ``/proc/cpuinfo`` of this content shows hardware virtualisation."""
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE) is not None


def kvm_openable() -> bool:
    """Whether this user may use ``/dev/kvm``."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def choose_accelerator(qemu: QEMU, kernel: Path, cache_folder: Path, *, architecture: Architecture = X86_64) -> str:
    """``kvm`` where a guest really runs by it, else emulation.

    ``/dev/kvm`` alone proves nothing: nested virtualisation may accept a machine and then fail to run it. So a
    probe guest is booted once per boot of this machine, and the outcome kept.

    Args:
        qemu: The QEMU that will run the guest.
        kernel: The kernel to probe with.
        cache_folder: Where the outcome is kept.
        architecture: The guest's; another than this machine's is always emulated.
    """
    if not architecture.native or not kvm_openable():
        return qemu.emulation
    if architecture is X86_64 and not cpu_virtualises(Path("/proc/cpuinfo").read_text()):
        return qemu.emulation
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    marker = cache_folder / "kvm-probe"
    key = f"{boot} {qemu.path} {os.getuid()} "
    try:
        known = marker.read_text()
    except FileNotFoundError:
        known = ""
    if known.startswith(key):
        return "kvm" if known.split()[-1] == "works" else qemu.emulation
    works = probe_boots(qemu, kernel, "kvm", architecture=architecture)
    cache_folder.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_name(f"{marker.name}.{os.getpid()}")
    temporary.write_text(key + ("works" if works else "fails"))
    temporary.replace(marker)
    return "kvm" if works else qemu.emulation


def probe_boots(
    qemu: QEMU, kernel: Path, accelerator: str, timeout: float = 30, *, architecture: Architecture = X86_64
) -> bool:
    """Boot a guest without an operating system on top; whether its kernel gets as far as wanting one.

    Args:
        qemu: The QEMU to run.
        kernel: The kernel image to boot.
        accelerator: QEMU's ``-accel`` argument.
        timeout: Seconds to wait.
        architecture: The guest's.
    """
    command = [qemu.path, "-accel", accelerator, *machine_arguments(architecture, accelerator), *BASE_ARGUMENTS]
    command += ["-m", "256", "-kernel", str(kernel), "-append", f"console={architecture.console} panic=-1"]
    command += ["-serial", "stdio"]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    # Without a root file system a kernel that works ends in this panic.
    return b"Unable to mount root" in result.stdout or b"No working init" in result.stdout


BASE_ARGUMENTS = (
    "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none", "-vga", "none",
)  # fmt: skip
"""What every guest machine has: nothing that was not asked for, and a reboot ends it."""


def iommu_error(qemu: QEMU, missing: str) -> GuestError:
    """The error for a virtual IOMMU that this QEMU does not have."""
    version = ".".join(map(str, qemu.version))
    return GuestMissingError(
        f"QEMU {version} ({qemu.path}) has no {missing}: name a newer one with {option_name('qemu')} or PYIOMMUFD_QEMU"
    )
