"""What a guest of another architecture sees of this environment: planned from this one and a root in a folder."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

import pyiommufd
from pyiommufd.testing.guest.filesystem import Export, GuestFiles, python_folders
from pyiommufd.testing.guest.foreign import COMPILED, ForeignSystem, environment_layer
from tests.unit.testing.guest.foreign_system import BACKEND, OWN, make_system

in_venv = pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="this is no virtual environment")


@pytest.fixture
def system(tmp_path: Path) -> ForeignSystem:
    return make_system(tmp_path / "system")


def on_top(files: GuestFiles, path: Path) -> bytes | str | None:
    """What the layers have at a path of the guest."""
    (found,) = [
        export.layer[path.relative_to(export.target)]
        for export in files.exports
        if path.is_relative_to(export.target) and path.relative_to(export.target) in export.layer
    ]
    return found


def test_system_folders_are_the_roots(tmp_path: Path, system: ForeignSystem) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=None, system=system)
    assert Export(system.folder / "usr", Path("/usr")) in files.exports
    assert files.links[Path("/bin")] == "usr/bin"
    assert not any(export.source.is_relative_to("/usr/bin") for export in files.exports)
    assert not any(Path(sys.base_prefix) == export.source for export in files.exports)


def test_etc_is_the_roots_where_it_has_a_file_and_never_this_machines_loader(
    tmp_path: Path, system: ForeignSystem
) -> None:
    etc = GuestFiles.plan(folder=tmp_path, results=None, system=system).etc
    assert etc[Path("/etc/passwd")] == b"theirs"
    assert etc[Path("/etc/group")] == Path("/etc/group").read_bytes()
    assert Path("/etc/ld.so.cache") not in etc


def test_compiled_parts_are_replaced(tmp_path: Path, system: ForeignSystem) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=None, system=system)
    assert on_top(files, Path(pyiommufd.__path__[0]).resolve() / "_uapi.abi3.so") == b"extension"
    assert [content for export in files.exports for content in export.layer.values()].count(b"cffi") == 1


def test_compiled_parts_of_packages_are_links_to_those_of_the_same_version(
    tmp_path: Path, system: ForeignSystem
) -> None:
    here = pytest.__version__
    for name in (f"pytest-{here}", "pytest-0.1", "no-such-package-1"):
        (system.packages / name / "pytest").mkdir(parents=True)
        (system.packages / name / "pytest/_part.abi3.so").touch()
    files = GuestFiles.plan(folder=tmp_path, results=None, system=system)
    assert Export(system.packages, COMPILED) in files.exports
    place = Path(pytest.__file__).resolve().parent / "_part.abi3.so"
    assert on_top(files, place) == f"{COMPILED}/pytest-{here}/pytest/_part.abi3.so"
    links = [item for export in files.exports for item in export.layer.values() if str(item).startswith(str(COMPILED))]
    assert len(links) == 1


@in_venv
def test_a_virtual_environment_is_of_the_roots_python(tmp_path: Path, system: ForeignSystem) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=None, system=system)
    prefix = Path(sys.prefix).resolve()
    assert on_top(files, prefix / "bin" / Path(sys.executable).name) == f"/usr/bin/{OWN}"
    assert on_top(files, prefix / "lib" / OWN / "site-packages" / BACKEND) == b"cffi"
    configuration = on_top(files, prefix / "pyvenv.cfg")
    assert isinstance(configuration, bytes)
    assert b"home = /usr/bin\n" in configuration
    assert b"version" not in configuration


@in_venv
def test_packages_of_another_python_version_are_where_the_roots_looks(tmp_path: Path) -> None:
    other = make_system(tmp_path / "system", "python3.99")
    assert other.python_version == "3.99"
    layer = environment_layer(other)
    assert layer[Path(sys.prefix).resolve() / "lib/python3.99"] == OWN


def test_folders_inside_the_system_folders_get_places_to_be_mounted(
    tmp_path: Path, system: ForeignSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = next(path for path in sorted(Path("/usr/share").iterdir()) if path.is_dir() and not path.is_symlink())
    files = GuestFiles.plan(folder=inside, results=None, extra=[Path("/usr")], system=system)
    targets = [export.target for export in files.exports]
    assert targets.count(Path("/usr")) == 1
    assert targets.index(Path("/usr")) < targets.index(inside)
    assert on_top(files, inside) is None
    assert files.overlay == inside


def test_the_interpreter_is_none_of_the_environments_folders() -> None:
    folders = python_folders(interpreter=False)
    assert Path(sysconfig.get_path("stdlib")) not in folders
    assert Path(pytest.__file__).parents[1] in [path for path in folders if path.name.endswith("-packages")]
    assert Path(str(pyiommufd.__path__[0])) in folders
