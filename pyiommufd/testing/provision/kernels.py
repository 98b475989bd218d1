"""Which kernel a guest boots: one that is named, one built earlier, or this machine's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision import distribution_kernel
from pyiommufd.testing.provision.architecture import (
    AARCH64,
    ARCHITECTURES,
    X86_64,
    Architecture,
    own_architecture,
)
from pyiommufd.testing.provision.entry import named_for

_MANIFEST = "manifest.json"
_FORMAT = 1

OLDEST = (6, 12)
"""The oldest kernel that the guest is known to work with."""

VERSION = re.compile(r"\d+(\.\d+)+[\w.+~-]*")
"""A kernel's version, and not its path."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to boot.

    Attributes:
        image: The image: a bzImage or an Image.
        boot_modules: Modules that the guest needs to find its files, in loading order.
        modules: Modules that lie ready in the guest, in ``filesystem.MODULES``.
    """

    image: Path
    boot_modules: tuple[Path, ...] = ()
    modules: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedKernel:
    """A kernel built earlier, in a folder of its own.

    Attributes:
        folder: The folder: the `image`, ``config``, ``modules/``, ``headers/`` (as ``make headers_install``
            leaves them), ``source/`` (what tests read of the source) and ``build.log``.
        manifest: What it is: ``architecture`` (x86-64 where it is not said), ``release``, ``package``,
            ``package_version``, ``source`` (the package's file, below the cache's ``sources/``), ``compiler``,
            ``unmet`` (options that this version does not have).
    """

    folder: Path
    manifest: Mapping[str, Any] = field(hash=False)

    @classmethod
    def load(cls, folder: Path) -> CachedKernel | None:
        """The kernel in the folder, or None where there is none that is whole."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
                return None
            kernel = cls(folder, manifest)
            digest = hashlib.sha256(kernel.image.read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError):
            return None
        return kernel if manifest.get("sha256") == digest else None

    @staticmethod
    def write_manifest(folder: Path, architecture: Architecture = X86_64, **facts: Any) -> None:
        """Describe the kernel in the folder; the last step of making one."""
        digest = hashlib.sha256((folder / architecture.image).read_bytes()).hexdigest()
        manifest = {"format": _FORMAT, "sha256": digest, "architecture": architecture.name, **facts}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    @property
    def architecture(self) -> Architecture:
        """Whose processor it is for."""
        return ARCHITECTURES[self.manifest.get("architecture", X86_64.name)]

    @property
    def image(self) -> Path:
        """What boots."""
        return self.folder / self.architecture.image

    @property
    def release(self) -> str:
        """What ``uname -r`` says in it."""
        return str(self.manifest["release"])

    def kernel(self) -> Kernel:
        """What to boot."""
        return Kernel(self.image, modules=tuple(sorted((self.folder / "modules").glob("*.ko"))))


def cached_releases(cache: Path) -> list[str]:
    """The releases of the kernels built earlier for any architecture, by what is on record of them alone."""
    found: dict[str, None] = {}
    for manifest in sorted((cache / "kernels").glob(f"[!.]*/{_MANIFEST}")):
        try:
            found[str(json.loads(manifest.read_text())["release"])] = None
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return list(found)


def is_version(release: str, version: str) -> bool:
    """Whether a kernel of this release is one of that version, such as 6.12.117 of 6.12."""
    return f"{release}.".startswith((f"{version}.", f"{version}-"))


def release_order(release: str) -> tuple[int, ...]:
    """What sorts kernel releases by age."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where built kernels and what was found out about this machine are kept."""
    environment = os.environ if environment is None else environment
    base = environment.get("XDG_CACHE_HOME", "")
    # The specification of XDG_CACHE_HOME: relative paths are to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pyiommufd"


def cached_kernels(
    cache: Path, architecture: Architecture = X86_64, *, damaged: list[Path] | None = None
) -> list[CachedKernel]:
    """The kernels built earlier for an architecture, the newest first.

    Args:
        cache: The `cache_folder`.
        architecture: The guest's.
        damaged: Gets the folders of those that are not as they were built.
    """
    found: list[tuple[tuple[int, ...], float, CachedKernel]] = []
    for folder in sorted((cache / "kernels").glob("[!.]*")):
        if folder.is_dir() and named_for(folder) is architecture:
            if kernel := CachedKernel.load(folder):
                found.append((release_order(kernel.release), (folder / _MANIFEST).stat().st_mtime, kernel))
            elif damaged is not None:
                damaged.append(folder)
    return [kernel for *_, kernel in sorted(found, key=lambda item: item[:2], reverse=True)]


def find_kernel(
    option: str | None = None, environment: Mapping[str, str] | None = None, *, architecture: Architecture = X86_64,
    root: Path = Path("/"),
) -> Kernel:  # fmt: skip
    """The kernel to boot: the one named, ``PYIOMMUFD_KERNEL``, the newest built earlier, or this machine's own.

    Args:
        option: The path of a kernel image, or the version of one built earlier, such as ``6.12``.
        environment: In place of this process's own.
        architecture: The guest's. This machine's own kernel serves a guest of its own architecture alone.
        root: Where this machine's own kernels are looked for.

    Raises:
        GuestMissingError: There is none.
    """
    environment = os.environ if environment is None else environment
    for origin, name in ((option_name("kernel"), option), ("PYIOMMUFD_KERNEL", environment.get("PYIOMMUFD_KERNEL"))):
        if name:
            return _named(origin, name, cache_folder(environment), architecture)
    damaged: list[Path] = []
    cached = cached_kernels(cache_folder(environment), architecture, damaged=damaged)
    for folder in damaged:
        sys.stderr.write(f"the kernel in {folder} is damaged; {build_command(architecture)} makes it anew\n")
    if cached:
        return cached[0].kernel()
    if architecture is own_architecture():
        own = distribution_kernel.find(os.uname().release, root)
        if own is not None:
            return Kernel(own, boot_modules=distribution_kernel.boot_modules(os.uname().release, root))
        missing = "no kernel for the guest, and this machine's own has no IOMMUFD and VFIO_DEVICE_CDEV"
    else:
        missing = f"no kernel for {architecture.name} has been built here"
    raise GuestMissingError(
        f"{missing}: {build_command(architecture)} makes one, {option_name('kernel')} or PYIOMMUFD_KERNEL name one"
    )


def _named(origin: str, name: str, cache: Path, architecture: Architecture) -> Kernel:
    image = Path(name).absolute()
    if VERSION.fullmatch(name) and not image.is_file():
        built = next((one for one in cached_kernels(cache, architecture) if is_version(one.release, name)), None)
        if built is not None:
            return built.kernel()
        whose = f"kernel {name}" if architecture is X86_64 else f"kernel {name} for {architecture.name}"
        how = _how_to_get(name, cache, architecture)
        raise GuestMissingError(f"{origin}: no {whose} has been built here: {how}")
    if image.is_dir():
        raise GuestMissingError(f"{origin}: {image} is a folder, not a kernel image")
    if not image.is_file():
        raise GuestMissingError(f"{origin}: there is no kernel image {image}")
    if image.name == architecture.image and (image.parent / _MANIFEST).is_file():
        cached = CachedKernel.load(image.parent)
        if cached is None:
            raise GuestMissingError(f"{origin}: the kernel in {image.parent} is damaged: build it anew")
        return cached.kernel()
    _check_image(origin, image, architecture)
    if distribution := distribution_kernel.release_of(image):
        return Kernel(image, boot_modules=distribution_kernel.boot_modules(*distribution))
    return Kernel(image)


def build_command(architecture: Architecture, version: str = "") -> str:
    """The command that builds a kernel, and sees to what else a guest of that architecture takes."""
    words = ["pyiommufd guest", "--iommu smmuv3" if architecture is AARCH64 else "", "--build-kernel", version]
    return " ".join(filter(None, words))


def _how_to_get(version: str, cache: Path, architecture: Architecture) -> str:
    if release_order(version) >= OLDEST:
        return f"{build_command(architecture, version)} makes one, where the distribution offers its source"
    built = ", ".join(kernel.release for kernel in cached_kernels(cache, architecture)) or "none"
    return f"{too_old(version)}; built are: {built}"


def too_old(version: str) -> str:
    """What is wrong with a version older than `OLDEST`."""
    return f"the guest needs {'.'.join(map(str, OLDEST))} or later, not {version}"


def _check_image(origin: str, image: Path, architecture: Architecture) -> None:
    """Refuse what QEMU takes for a kernel of the last century: it would say that it is too old to load a RAM disk."""
    try:
        with image.open("rb") as file:
            head = file.read(0x206)
    except OSError as error:
        raise GuestMissingError(f"{origin}: {image}: {error.strerror}") from None
    if architecture is AARCH64:
        # Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image".
        if head[0x38:0x3C] != b"ARM\x64":
            raise GuestMissingError(f"{origin}: {image} is no kernel image for arm64, an Image")
    # Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"; QEMU boots some ELF files (PVH) as well.
    elif head[0x202:] != b"HdrS" and not head.startswith(b"\x7fELF"):
        raise GuestMissingError(f"{origin}: {image} is no kernel image for x86, a bzImage or vmlinuz")
