"""What a release uploads: each file of it is installed into an environment that has nothing else, and used there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.foreign_extension import find_extension
from pyiommufd.testing.provision.foreign_root import ForeignRoot, fetch
from pyiommufd.version import __version__
from tests.boot.packages import make_environment
from tests.release import can_cross, make_release

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_SDIST = (".ci/", ".gitignore", ".readthedocs.yaml", "debian/")
WHEEL = rf"pyiommufd-{re.escape(__version__)}-cp311-abi3-manylinux_2_\d+_"


@dataclass(frozen=True)
class Release:
    """What was made, and the aarch64 system that its wheel for that is tried on."""

    folder: Path
    sysroot: ForeignRoot | None

    def find(self, pattern: str) -> Path:
        (path,) = (path for path in self.folder.iterdir() if re.fullmatch(pattern, path.name))
        return path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """What PYIOMMUFD_DIST has, about to be uploaded; else it is made."""
    place = tmp_path_factory.mktemp("release")
    sysroot = fetch(AARCH64) if can_cross() else None
    if made := os.environ.get("PYIOMMUFD_DIST"):
        return Release(Path(made).absolute(), sysroot)
    make_release(place / "dist", sysroot)
    return Release(place / "dist", sysroot)


def isolated(python: str, *arguments: str, folder: Path, status: int = 0) -> str:
    """What a program prints, run by an interpreter in a folder that has nothing of ours."""
    command = [python, "-I", "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_sdist_has_the_tree(release: Release) -> None:
    with tarfile.open(release.find(r".*\.tar\.gz")) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    tree = {name for name in listed.stdout.splitlines() if not name.startswith(NOT_IN_SDIST)}
    assert tree - held == set()
    made = {name for name in held - tree if not name.startswith("pyiommufd.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_wheel_has_what_is_used(release: Release) -> None:
    with zipfile.ZipFile(release.find(WHEEL + r"x86_64\.whl")) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        metadata = Parser().parsestr(wheel.read(f"pyiommufd-{__version__}.dist-info/METADATA").decode())
    assert {name.partition("/")[0] for name in names} == {"pyiommufd", f"pyiommufd-{__version__}.dist-info"}
    package = {name for name in names if name.startswith("pyiommufd/")}
    tree = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pyiommufd").rglob("*")
        if path.suffix not in (".pyc", ".so", "")
    }
    assert package == tree | {"pyiommufd/_uapi.abi3.so"}
    assert {"pyiommufd/py.typed", "pyiommufd/_uapi.pyi", "pyiommufd/uapi/__init__.pyi"} <= package
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls.keys() == {"Documentation", "Source", "Changelog", "Issues"}
    # An index shows the README, and knows no files beside it.
    assert re.findall(r"\]\((?!https?://|#)([^)]*)\)", str(metadata.get_payload())) == []


@pytest.mark.parametrize(("kind", "extra"), [("sdist", ""), ("wheel", ""), ("wheel", "[cli]"), ("wheel", "[testing]")])
def test_in_an_empty_environment(release: Release, tmp_path: Path, kind: str, extra: str) -> None:
    artefact = release.find(r".*\.tar\.gz" if kind == "sdist" else WHEEL + r"x86_64\.whl")
    python = make_environment(tmp_path / "venv", f"{artefact}{extra}")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        "import pyiommufd, pyiommufd.uapi; print(pyiommufd.__version__, pyiommufd.DMABuffer(4096), pyiommufd.__file__)"
    )
    said = isolated(python, "-c", code, folder=empty)
    assert said.startswith(f"{__version__} <DMABuffer")
    assert str(tmp_path / "venv") in said
    if not extra:
        assert "pip install 'pyiommufd[cli]'" in isolated(
            python, "-m", "pyiommufd", "--version", folder=empty, status=3
        )
        return
    program = str(tmp_path / "venv/bin/pyiommufd")
    assert isolated(python, program, "--version", folder=empty) == f"pyiommufd, version {__version__}\n"
    assert "claim" in isolated(python, "-m", "pyiommufd", "--help", folder=empty)
    if extra == "[testing]":
        assert "--guest-timeout" in isolated(python, "-m", "pytest", "--help", folder=empty)


def test_on_aarch64(release: Release, tmp_path: Path) -> None:
    """With qemu-user for the processor; the kernel below is this machine's."""
    if release.sysroot is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("this machine lacks what builds for aarch64, or qemu-user")
    wheel = release.find(WHEEL + r"aarch64\.whl")
    platforms = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    options = [*platforms, f"--python-version={release.sysroot.manifest['python']}", "--only-binary=:all:"]
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), *options, f"{wheel}[cli]"]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import platform, runpy, sys; import pyiommufd.uapi; print(platform.machine(), pyiommufd.DMABuffer(4096),"
        " pyiommufd.uapi.IOMMU_IOAS_MAP_WRITEABLE, flush=True); sys.argv[1:] = ['--version'];"
        " runpy.run_module('pyiommufd', run_name='__main__')"
    )
    command = ["qemu-aarch64", "-L", str(release.sysroot.root), "-E", f"PYTHONPATH={packages}"]
    command += [str(release.sysroot.python), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"aarch64 <DMABuffer 0x1000 bytes> 2\npyiommufd, version {__version__}\n"


def test_wheel_compiles_the_extension_for_aarch64(release: Release, tmp_path: Path) -> None:
    """As a guest of that architecture takes it, without a source tree: the wheel's and the same of the sources here."""
    if release.sysroot is None:
        pytest.skip("this machine lacks what builds for aarch64")
    python = make_environment(tmp_path / "venv", str(release.find(WHEEL + r"x86_64\.whl")))
    code = (
        "import sys; from pathlib import Path; from pyiommufd.testing.provision.architecture import AARCH64;"
        "from pyiommufd.testing.provision.foreign_extension import find_extension;"
        "from pyiommufd.testing.provision.foreign_root import ForeignRoot;"
        "root = ForeignRoot.load(Path(sys.argv[1])); print(find_extension(AARCH64, root, cache=Path(sys.argv[2])))"
    )
    made = Path(
        isolated(python, "-c", code, str(release.sysroot.folder), str(tmp_path / "cache"), folder=tmp_path).strip()
    )
    # The linker's build identification differs; it is of the path that was compiled.
    assert len(made.read_bytes()) == len(find_extension(AARCH64, release.sysroot).read_bytes())
    machine = 183  # EM_AARCH64
    assert made.read_bytes()[18:20] == machine.to_bytes(2, "little")
