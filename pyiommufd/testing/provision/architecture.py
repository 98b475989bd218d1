"""The processor architectures of guests: what a kernel, a QEMU and a root are called for each."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """A processor architecture that a guest can have.

    Attributes:
        name: As ``uname -m`` has it.
        linux: As the kernel's source has it: ``ARCH`` of make, and the folder below ``arch``.
        debian: As Debian's packages have it.
        triplet: Debian's folder of libraries, and with ``-`` behind it the prefix of its cross compiler.
        image: The kernel's image, below ``arch/<linux>/boot``, which is also what make is to build.
        qemu: QEMU's program.
        qemu_package: Debian's package of it.
        console: The kernel's name of the machine's serial port.
    """

    name: str
    linux: str
    debian: str
    triplet: str
    image: str
    qemu: str
    qemu_package: str
    console: str

    @property
    def native(self) -> bool:
        """Whether it is this machine's."""
        return platform.machine() == self.name

    @property
    def cross_compile(self) -> str:
        """The prefix of the compiler's programs here; empty where it is this machine's."""
        return "" if self.native else f"{self.triplet}-"


X86_64 = Architecture(
    "x86_64", "x86", "amd64", "x86_64-linux-gnu", "bzImage", "qemu-system-x86_64", "qemu-system-x86", "ttyS0"
)
AARCH64 = Architecture(
    "aarch64", "arm64", "arm64", "aarch64-linux-gnu", "Image", "qemu-system-aarch64", "qemu-system-arm", "ttyAMA0"
)

ARCHITECTURES = {architecture.name: architecture for architecture in (X86_64, AARCH64)}
"""By name."""


def own_architecture() -> Architecture:
    """This machine's; x86-64 for one that guests are not known to have."""
    return ARCHITECTURES.get(platform.machine(), X86_64)
