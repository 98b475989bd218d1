"""Which guest a test wants: the `guest` marker and the options, as a value that groups tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from pyiommufd.printable import counted
from pyiommufd.testing.guest.arguments import check_arguments
from pyiommufd.testing.guest.guest import CONFIGURATION_VARIABLE, Guest
from pyiommufd.testing.guest.machine import GuestDevice, default_iommu, device_arguments
from pyiommufd.testing.provision.kernels import VERSION, is_version


@dataclass(frozen=True, slots=True)
class GuestConfiguration:
    """What kind of guest.

    Attributes:
        iommu: One of `machine.IOMMU_KINDS`.
        kernel: The path of a kernel image, or the version of one built earlier, such as ``6.12``; None: `find_kernel`.
        qemu: The QEMU to run; None: `find_qemu`.
        devices: The PCI devices in slot order; None: `machine.default_devices`.
        memory: MiB of memory.
        cpus: The number of CPUs.
        kernel_arguments: More for the kernel's command line.
        qemu_arguments: More for QEMU's command line.
    """

    iommu: str = field(default_factory=default_iommu)
    kernel: str | None = None
    qemu: str | None = None
    devices: tuple[GuestDevice, ...] | None = None
    memory: int = 1024
    cpus: int = 2
    kernel_arguments: tuple[str, ...] = ()
    qemu_arguments: tuple[str, ...] = ()

    def changed(self, wishes: Mapping[str, Any]) -> Self:
        """The same with what a marker asks for.

        Args:
            wishes: Attributes of this class, as `Guest` takes them.

        Raises:
            TypeError, ValueError: There is no such attribute, or it cannot have that value.
        """
        known = [one.name for one in fields(self)]
        for name in wishes:
            if name not in known:
                raise ValueError(f"guest({name}=…): there is only {', '.join(known)}")
        return replace(self, **check_arguments("guest", wishes))

    def guest(
        self,
        *,
        folder: Path,
        results: Path | None = None,
        read_only: Sequence[Path] = (),
        ports: Sequence[str] = (),
        boot_timeout: float = 120,
    ) -> Guest:
        """A guest of this kind, not started yet; the arguments are those of `Guest`."""
        return Guest(
            iommu=self.iommu,
            kernel=self.kernel,
            qemu=self.qemu,
            devices=self.devices,
            memory=self.memory,
            cpus=self.cpus,
            kernel_arguments=self.kernel_arguments,
            qemu_arguments=self.qemu_arguments,
            folder=folder,
            results=results,
            read_only=read_only,
            ports=ports,
            boot_timeout=boot_timeout,
        )

    def __str__(self) -> str:
        parts = [f"{self.iommu} IOMMU" if self.iommu != "none" else "no IOMMU"]
        parts += [f"kernel {self.kernel}"] if self.kernel else []
        if self.devices is not None:
            parts.append(f"{counted(len(self.devices), 'device')} of its own")
        return ", ".join(parts)


def misfits(wishes: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """How this machine is not what a marker asks for.

    Args:
        wishes: The marker's arguments.
        environment: This process's, which in a guest says what guest it is.

    Returns:
        One line each; nothing where all fits.
    """
    if not wishes:
        return []
    described = environment.get(CONFIGURATION_VARIABLE)
    if described is None:
        return ["this machine is not one of the project's guests"]
    have = json.loads(described)
    want = GuestConfiguration().changed(wishes)
    result = []
    if "iommu" in wishes and have["iommu"] != want.iommu:
        result.append(f"the IOMMU is {have['iommu']}, not {want.iommu}")
    if want.devices is not None and have["devices"] != device_arguments(want.devices):
        result.append("the devices differ")
    if want.kernel is not None and not _is_kernel(want.kernel, have["kernel"]):
        result.append(f"the kernel is {have['kernel'] or 'the default one'}, not {want.kernel}")
    for name in ("memory", "cpus"):
        if name in wishes and have[name] != getattr(want, name):
            result.append(f"{name} is {have[name]}, not {getattr(want, name)}")
    for name in ("kernel_arguments", "qemu_arguments"):
        if name in wishes and have[name] != list(getattr(want, name)):
            result.append(f"{name} differ")
    return result


def _is_kernel(wanted: str, running: str | None) -> bool:
    if VERSION.fullmatch(wanted):
        return is_version(os.uname().release, wanted)
    return running is not None and Path(wanted).absolute() == Path(running)
