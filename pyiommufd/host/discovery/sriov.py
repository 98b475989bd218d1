"""SR-IOV: from a physical function to its virtual ones and back, by the links between their folders in sysfs."""

from __future__ import annotations

import os
from pathlib import Path


def physical_function(path: Path) -> Path | None:
    """The folder of the device that one is a virtual function of; None: it is none."""
    try:
        return (path / "physfn").resolve(strict=True)
    except OSError:
        return None


def virtual_functions(path: Path) -> list[Path]:
    """The folders of a device's virtual functions, in the order of their numbers."""
    links = [link for link in path.glob("virtfn*") if link.name.removeprefix("virtfn").isdigit()]
    return [link.resolve() for link in sorted(links, key=lambda link: int(link.name.removeprefix("virtfn")))]


def has_virtual_functions(path: Path) -> bool:
    """Whether a device has any: one look, where thousands of devices are asked."""
    return os.path.lexists(f"{path}/virtfn0")
