"""The compiled parts of this environment's packages for a guest of another architecture: from their wheels, by pip.

What is Python in them the guest sees as it is here. Of each wheel of the same version for the guest's architecture and
Python the compiled files are kept in the cache.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.testing.provision.architecture import Architecture
from pyiommufd.testing.provision.foreign_root import ForeignRoot
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

# pyiommufd's own is compiled here; that of cffi is of the root.
_ELSEWHERE = ("pyiommufd", "cffi")

# Wheels are named after the oldest C library that they run with; Debian's since 12 is newer than each of these.
_C_LIBRARIES = range(17, 37)


def packages_folder(architecture: Architecture, root: ForeignRoot, cache: Path) -> Path:
    """The folder of the compiled parts: in it a folder each, such as ``numpy-2.4.1``, laid out as site-packages is."""
    return cache / "packages" / f"{architecture.name}-{root.manifest['python']}"


def compiled_parts(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The compiled files of those packages that this environment has in just that version.

    Args:
        folder: The `packages_folder`.

    Yields:
        The file's path below `folder`, and where it belongs here.
    """
    for package in sorted(folder.glob("[!.]*-*")):
        name, _, version = package.name.rpartition("-")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            for path in sorted(path for path in package.rglob("*") if path.is_file()):
                place = Path(str(distribution.locate_file(path.relative_to(package))))
                yield path.relative_to(folder), place


def fetch_packages(architecture: Architecture, root: ForeignRoot, cache: Path, progress: Progress) -> list[str]:
    """Fetch the compiled parts that the cache does not have yet.

    A package without a wheel for that architecture stays without them: importing it in the guest fails.

    Args:
        architecture: The guest's.
        root: Its root, whose Python they are for.
        cache: The `cache_folder`.
        progress: What is told how far it is, and which packages have no such wheel.

    Returns:
        The packages that have none.
    """
    folder = packages_folder(architecture, root, cache)
    lacking = []
    with locked(cache / "packages" / ".lock", progress, "packages for a guest"):
        for name, version in sorted(_compiled()):
            place = folder / f"{name}-{version}"
            if not place.is_dir():
                progress.step(f"fetching {name} {version} for {architecture.name}")
                if not _fetch(f"{name}=={version}", architecture, str(root.manifest["python"]), place):
                    lacking.append(f"{name} {version}")
    if lacking:
        progress.step(f"without their compiled parts in guests of {architecture.name}: {', '.join(lacking)}")
    return lacking


def _compiled() -> set[tuple[str, str]]:
    """Names and versions of the packages here that have compiled parts."""
    return {
        (distribution.name, distribution.version)
        for distribution in importlib.metadata.distributions()
        if distribution.name not in _ELSEWHERE and any(file.suffix == ".so" for file in distribution.files or ())
    }


def _fetch(requirement: str, architecture: Architecture, python: str, place: Path) -> bool:
    options = ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for abi in (f"cp{python.replace('.', '')}", "abi3"):
        options += ["--abi", abi]
    for version in _C_LIBRARIES:
        options += ["--platform", f"manylinux_2_{version}_{architecture.name}"]
    options += ["--platform", f"manylinux2014_{architecture.name}"]
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", work, requirement]
        if subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            return False
        parts = Path(work, "parts")
        parts.mkdir()
        for wheel in Path(work).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    # What a wheel brings of foreign libraries is in NAME.libs.
                    if name.endswith(".so") or ".libs/" in name:
                        archive.extract(name, parts)
        shutil.move(parts, place)
    return True
