"""Compiled parts of packages for another architecture: of small wheels, by a real pip."""

from __future__ import annotations

import importlib.metadata
import io
import zipfile
from pathlib import Path

import pytest

from pyiommufd.testing.provision import foreign_packages
from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.foreign_packages import compiled_parts, fetch_packages, packages_folder
from pyiommufd.testing.provision.foreign_root import ForeignRoot
from pyiommufd.testing.provision.progress import Progress


def make_wheel(folder: Path, name: str, version: str) -> None:
    tag = "cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64"
    facts = f"{name}-{version}.dist-info"
    content = {
        f"{name}/__init__.py": "",
        f"{name}/part.abi3.so": "compiled",
        f"{name}.libs/libx-1234.so.5": "library",
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{facts}/WHEEL": f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: false\nTag: {tag}\n",
        f"{facts}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for path, text in content.items():
            wheel.writestr(path, text)


def test_of_each_wheel_its_compiled_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    wheels, cache, said = tmp_path / "wheels", tmp_path / "cache", io.StringIO()
    wheels.mkdir()
    make_wheel(wheels, "some", "1.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(foreign_packages, "_compiled", lambda: {("some", "1.2"), ("other", "3")})
    root = ForeignRoot(tmp_path / "root", {"python": "3.11"})
    assert fetch_packages(AARCH64, root, cache, Progress(said)) == ["other 3"]
    folder = packages_folder(AARCH64, root, cache)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "some-1.2/some/part.abi3.so",
        "some-1.2/some.libs/libx-1234.so.5",
    }
    assert "without their compiled parts in guests of aarch64: other 3" in said.getvalue()
    # What is there is not fetched again.
    (wheels / next(wheels.iterdir()).name).unlink()
    monkeypatch.setattr(foreign_packages, "_compiled", lambda: {("some", "1.2")})
    assert fetch_packages(AARCH64, root, cache, Progress(said)) == []


def test_parts_belong_where_the_package_is(tmp_path: Path) -> None:
    version = importlib.metadata.version("pytest")
    for name in (f"pytest-{version}", "pytest-0.1", "none-1"):
        (tmp_path / name / "pytest").mkdir(parents=True)
        (tmp_path / name / "pytest/x.so").touch()
    (found,) = compiled_parts(tmp_path)
    assert found == (Path(f"pytest-{version}/pytest/x.so"), Path(pytest.__file__).parent / "x.so")


def test_this_environments_own_compiled_packages() -> None:
    names = {name for name, _ in foreign_packages._compiled()}
    assert not names & {"pyiommufd", "cffi", "pytest"}
