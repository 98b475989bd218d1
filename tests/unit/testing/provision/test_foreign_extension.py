"""The extension compiled against a root: that of this machine in place of another architecture's, so that it loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pyiommufd._uapi import lib
from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.provision.architecture import AARCH64, own_architecture
from pyiommufd.testing.provision.foreign_extension import NAME, find_extension
from pyiommufd.testing.provision.foreign_root import ForeignRoot

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
OWN = own_architecture()


@pytest.fixture
def root(tmp_path: Path) -> ForeignRoot:
    """This machine's, with the headers of this Python."""
    made = ForeignRoot(tmp_path / "root-1", {"python": "3.x"})
    (made.root / "usr/include").mkdir(parents=True)
    for name in ("lib", "lib64", "usr/lib", "usr/lib64"):
        if Path("/", name).exists():
            (made.root / name).symlink_to(Path("/", name))
    for path in Path("/usr/include").iterdir():
        (made.root / "usr/include" / path.name).symlink_to(path)
    made.headers.symlink_to(sysconfig.get_path("include"))
    return made


def test_it_has_what_this_one_has_and_is_compiled_once(root: ForeignRoot, tmp_path: Path) -> None:
    made = find_extension(OWN, root, cache=tmp_path)
    assert made.name == NAME
    package = tmp_path / "elsewhere/pyiommufd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(made, package)
    code = "import pyiommufd._uapi as u; print(*sorted(dir(u.lib)))"
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(dir(lib))
    before = made.stat()
    assert find_extension(OWN, root, cache=tmp_path) == made
    assert made.stat() == before


def test_a_damaged_one_is_compiled_again(root: ForeignRoot, tmp_path: Path) -> None:
    made = find_extension(OWN, root, cache=tmp_path)
    whole = made.read_bytes()
    made.write_bytes(whole[:-1])
    assert find_extension(OWN, root, cache=tmp_path) == made
    assert len(made.read_bytes()) == len(whole)


def test_another_root_has_another(root: ForeignRoot, tmp_path: Path) -> None:
    first = find_extension(OWN, root, cache=tmp_path)
    root.folder.rename(tmp_path / "root-2")
    second = find_extension(OWN, ForeignRoot(tmp_path / "root-2", root.manifest), cache=tmp_path)
    assert second != first


def test_what_does_not_compile_says_why(root: ForeignRoot, tmp_path: Path) -> None:
    root.headers.unlink()
    with pytest.raises(GuestError, match=r"does not compile:\n(.*\n)*.*Python\.h"):
        find_extension(OWN, root, cache=tmp_path)
    assert [path.name for path in (tmp_path / "extensions").iterdir()] == [".lock"]


@pytest.mark.skipif(AARCH64.native, reason="not a foreign architecture here")
def test_a_missing_cross_compiler_is_named(root: ForeignRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestMissingError, match=r"aarch64 guest .*: apt-get install gcc-aarch64-linux-gnu$"):
        find_extension(AARCH64, root, cache=tmp_path)
