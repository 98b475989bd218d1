"""What a release uploads: the sdist and the wheels.

They are made in FOLDER, and what needs no installation is checked: that a wheel loads on the systems that its tag names
(auditwheel), on each CPython from 3.11 on (abi3audit), and that an index takes the metadata (twine).
`tests/boot/test_release.py` makes them too, and tries each in an empty environment.

Made are the sdist and, each from that sdist: the abi3 wheel for this machine's processor; that for aarch64, by Debian's
cross compiler and its aarch64 packages of Python; and one for each free-threaded CPython that is found and that cffi
supports, 3.14 or newer.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.foreign_root import ForeignRoot, fetch

ROOT = Path(__file__).resolve().parents[1]

CROSS_COMPILER = f"{AARCH64.triplet}-gcc"

_FREE_THREADED = ("python3.14t", "python3.15t", "python3.16t")


def make_release(folder: Path, sysroot: ForeignRoot | None) -> list[Path]:
    """Make and check all of it.

    Args:
        folder: Where to; it has nothing else in it.
        sysroot: The aarch64 packages of Python; None: no wheel for aarch64.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: a release has nothing in it but what is made for it")
    folder.mkdir(parents=True, exist_ok=True)
    sdist = make_sdist(folder)
    make_wheel(sdist, folder)
    if sysroot is not None:
        make_wheel(sdist, folder, options=["--plat-name=linux_aarch64"], environment=_cross(sysroot))
    for python in free_threaded_pythons():
        make_wheel(sdist, folder, python=python)
    made = sorted(folder.iterdir())
    _run("twine", "check", "--strict", *map(str, made))
    _run("abi3audit", "--strict", *(str(path) for path in made if "-abi3-" in path.name))
    return made


def make_sdist(folder: Path) -> Path:
    """The sdist."""
    _run("build", "--sdist", "--outdir", str(folder), str(ROOT))
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def make_wheel(
    sdist: Path, folder: Path, *, options: list[str] | None = None, environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Path:  # fmt: skip
    """A wheel from the sdist, in a folder that nothing was built in before, tagged by the symbols that it needs."""
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        settings = [f"-C=--build-option={option}" for option in options or ()]
        (source,) = Path(place).iterdir()
        out = Path(place, "wheel")
        # Stripped by the linker, which knows the machine that it links for.
        variables = {"LDFLAGS": "-s"} | dict(environment or {})
        _run("build", "--wheel", "--outdir", str(out), *settings, str(source), environment=variables, of=python)
        (wheel,) = out.iterdir()
        before = set(folder.iterdir())
        _run("auditwheel", "repair", "--wheel-dir", str(folder), str(wheel))
        (repaired,) = set(folder.iterdir()) - before
    return repaired


def free_threaded_pythons() -> Iterator[str]:
    """The free-threaded interpreters on the PATH that have `build`; before 3.15 each needs a wheel of its own."""
    return (path for name in _FREE_THREADED if (path := shutil.which(name)) is not None)


def can_cross() -> bool:
    """Whether this machine has the compiler and the packages for an aarch64 wheel."""
    return platform.machine() == "x86_64" and all(map(shutil.which, (CROSS_COMPILER, "apt-get", "dpkg-deb")))


def _cross(sysroot: ForeignRoot) -> dict[str, str]:
    compiler = f"{CROSS_COMPILER} --sysroot={sysroot.root}"
    return {"CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": f"-O2 -I{sysroot.headers}"}


def _run(*command: str, environment: Mapping[str, str] | None = None, of: str = sys.executable) -> None:
    done = subprocess.run(
        [of, "-m", *command], env=os.environ | dict(environment or {}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


def main() -> None:
    """Make a release, saying what was made."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__, formatter_class=raw)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="dist", help="an empty or a new one [dist]")
    folder = Path(parser.parse_args().folder).absolute()
    made = make_release(folder, fetch(AARCH64) if can_cross() else None)
    print(*made, sep="\n")
    if not any("aarch64" in path.name for path in made):
        print(f"no wheel for aarch64: that takes an x86-64 Debian or Ubuntu with {CROSS_COMPILER}")
    if not any(path.name.endswith(".whl") and "-abi3-" not in path.name for path in made):
        print(f"no wheel for a free-threaded CPython: none of {', '.join(_FREE_THREADED)} is there")


if __name__ == "__main__":
    main()
