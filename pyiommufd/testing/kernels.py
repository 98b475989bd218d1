"""Which kernel a guest boots: one that is named, one built earlier, or this machine's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyiommufd.testing.errors import GuestMissingError


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to boot.

    Attributes:
        image: The bzImage.
        boot_modules: Modules that the guest needs to find its files, in loading order.
        modules: Modules that lie ready in the guest's ``/modules``.
    """

    image: Path
    boot_modules: tuple[Path, ...] = ()
    modules: tuple[Path, ...] = ()


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where built kernels and what was found out about this machine are kept."""
    environment = os.environ if environment is None else environment
    base = environment.get("XDG_CACHE_HOME", "")
    # The specification of XDG_CACHE_HOME: relative paths are to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "pyiommufd"


def find_kernel(option: str | None = None, environment: Mapping[str, str] | None = None) -> Kernel:
    """The kernel to boot.

    Raises:
        GuestMissingError: There is none.
    """
    environment = os.environ if environment is None else environment
    for origin, name in (("--kernel", option), ("PYIOMMUFD_KERNEL", environment.get("PYIOMMUFD_KERNEL"))):
        if name:
            image = Path(name).absolute()
            if not image.is_file():
                raise GuestMissingError(f"{origin}: there is no kernel image {name}")
            return Kernel(image)
    raise GuestMissingError("no kernel for the guest: pyiommufd guest --build-kernel makes one")
