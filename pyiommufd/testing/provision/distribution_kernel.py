"""A distribution's kernel as the guest's: whether it has what is needed, and the modules it wants at once."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.provision import kernel_config

_NEEDED = ("CONFIG_IOMMUFD", "CONFIG_VFIO_DEVICE_CDEV")

_WANTED = (
    # The agent's port and the host's files.
    "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay",
    # What a built kernel has inside.
    "iommufd", "vfio_pci", "vfio_iommu_type1", "virtio_iommu", "virtio_rng", "pci_stub", "nvme",
)  # fmt: skip


def find(release: str, root: Path = Path("/")) -> Path | None:
    """The image of that kernel release, if it has iommufd and VFIO device files."""
    boot, modules = root / "boot", root / "lib/modules" / release
    images = [path for path in (boot / f"vmlinuz-{release}", modules / "vmlinuz") if path.is_file()]
    for config in (boot / f"config-{release}", modules / "config"):
        if config.is_file() and images:
            options = kernel_config.parse(config.read_text())
            return images[0] if all(options.get(name) in ("y", "m") for name in _NEEDED) else None
    return None


def release_of(image: Path) -> tuple[str, Path] | None:
    """The release of a distribution's kernel image, by where it lies, and the root that it lies in.

    None where that does not tell.
    """
    if image.name.startswith("vmlinuz-") and image.parent.name == "boot":
        release, root = image.name.removeprefix("vmlinuz-"), image.parent.parent
        return (release, root) if (root / "lib/modules" / release).is_dir() else None
    if image.name == "vmlinuz" and image.parent.parent.name == "modules":
        return image.parent.name, image.parents[3]
    return None


def boot_modules(release: str, root: Path = Path("/")) -> tuple[Path, ...]:
    """The modules to load at the guest's start, in order: each after those that it needs.

    What is built in, or not there, is left out: the guest says what it then lacks.
    """
    folder = root / "lib/modules" / release
    table = folder / "modules.dep"
    if not table.is_file():
        return ()
    needs: dict[str, list[str]] = {}
    for line in table.read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {module_name(path): path for path in needs}
    order: list[str] = []
    for name in _WANTED:
        if name in by_name:
            # modules.dep lists what a module needs from the nearest to the farthest.
            for path in (*reversed(needs[by_name[name]]), by_name[name]):
                if path not in order:
                    order.append(path)
    return tuple(folder / path for path in order)


def module_name(path: str) -> str:
    """A module's name, from its file's."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def module_content(path: Path) -> bytes:
    """A module's file, decompressed.

    Raises:
        GuestMissingError: It is compressed by zstd, and that program is not here.
    """
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            try:
                return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
            except FileNotFoundError:
                raise GuestMissingError(f"{path} needs zstd: apt-get install zstd") from None
    return data
