"""Another architecture's system in a folder, for what plans a guest by it."""

from __future__ import annotations

import sys
from pathlib import Path

from pyiommufd.testing.guest.foreign import PACKAGES, ForeignSystem

OWN = f"python{sys.version_info[0]}.{sys.version_info[1]}"
BACKEND = "_cffi_backend.cpython-311-aarch64-linux-gnu.so"


def make_system(folder: Path, python: str = OWN) -> ForeignSystem:
    """Another architecture's system: its files are empty but for what is looked at."""
    root = folder / "root"
    for name in ("usr/bin", "usr/share", "etc", PACKAGES.relative_to("/")):
        (root / name).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin" / python).write_bytes(b"Python")
    (root / "usr/bin/python3").symlink_to(python)
    (root / PACKAGES.relative_to("/") / BACKEND).write_bytes(b"cffi")
    (root / "etc/passwd").write_bytes(b"theirs")
    (folder / "extension").write_bytes(b"extension")
    return ForeignSystem(root, folder / "extension", folder / "packages")
