"""The Debian packages: built from a clean export of the tree, read by lintian, installed and tried by autopkgtest."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import textwrap
from pathlib import Path

import pytest

from pyiommufd.version import __version__

ROOT = Path(__file__).resolve().parents[2]
# The distribution's programs and Python, and nothing of the environment that the tests run in.
SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dpkg-buildpackage", "lintian", "autopkgtest", "dh_python3"))),
    reason="this is no Debian with lintian and autopkgtest",
)


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=SYSTEM, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command} ended with status {done.returncode}:\n{done.stdout[-6000:]}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and what dpkg-buildpackage makes besides."""
    folder = tmp_path_factory.mktemp("debian")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in os.fsdecode(listed.stdout).split("\0") if name and (ROOT / name).is_file()]
    tree = folder / f"pyiommufd-{__version__}"
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    with tarfile.open(folder / f"pyiommufd_{__version__}.orig.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name, filter=lambda member: None if member.name == f"{tree.name}/debian" else member)
    run("dpkg-buildpackage", "--unsigned-source", "--unsigned-changes", folder=tree)
    return folder


def test_version() -> None:
    first = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"pyiommufd ({__version__}-"), "debian/changelog has another version than pyiommufd"


def test_lintian_finds_nothing(packages: Path) -> None:
    (changes,) = packages.glob("*.changes")
    assert run("lintian", "--allow-root", "--fail-on", "error,warning", changes, folder=packages) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="installs packages, which takes root")
def test_autopkgtest(packages: Path, tmp_path: Path) -> None:
    """On this system below an overlay, so that what is installed is gone afterwards."""
    program = textwrap.dedent("""\
        mount -t tmpfs tmpfs "$1"
        mkdir "$1/changes" "$1/work" "$1/root"
        mount -t overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" overlay "$1/root"
        for folder in proc sys dev; do mount --rbind "/$folder" "$1/root/$folder"; done
        for folder in run tmp root; do mount -t tmpfs tmpfs "$1/root/$folder"; done
        cp "$2"/*.deb "$2"/*.dsc "$2"/*.tar.* "$1/root/tmp"
        cd "$1/root/tmp"
        exec chroot "$1/root" sh -c 'cd /tmp && exec autopkgtest *.deb *.dsc -- null'
    """)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", program, "sh"]
    said = run(*command, tmp_path, packages, folder=tmp_path)
    assert "installed            PASS" in said
