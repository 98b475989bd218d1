"""A guest's root of another architecture: a real apt and a real dpkg-deb on an archive of small packages for it."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.provision import foreign_root
from pyiommufd.testing.provision.apt import Archive
from pyiommufd.testing.provision.architecture import AARCH64
from pyiommufd.testing.provision.foreign_root import PACKAGES, ForeignRoot, fetch, find_root, merge_usr
from pyiommufd.testing.provision.progress import Progress

MakeArchive = Callable[..., Archive]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb"))), reason="this machine has no apt and dpkg-deb"
)

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
RELEASE = {"ID": "debian", "VERSION_CODENAME": "bookworm"}


class Machine:
    """A machine whose distribution has these packages."""

    def __init__(self, folder: Path, make_archive: MakeArchive) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.said = io.StringIO()
        self._make_archive = make_archive

    def offer(self, python: str = OWN, busybox: str = "1") -> None:
        module = self.folder / "module.py"
        module.write_text("x = 7\n")
        files: dict[str, Mapping[str, Path]] = {
            "python3": {f"usr/bin/python{python}": module, f"usr/lib/python{python}/module.py": module},
            "busybox-static": {"bin/busybox": module, "usr/share/doc/busybox/copyright": module},
            "libc6-dev": {"lib/aarch64-linux-gnu/libc.so.6": module, "usr/lib/aarch64-linux-gnu/libc.so": module},
        }
        shutil.rmtree(self.folder / "etc", ignore_errors=True)
        shutil.rmtree(self.folder / "pool", ignore_errors=True)
        shutil.rmtree(self.folder / "dists", ignore_errors=True)
        versions = {"busybox-static": busybox}
        self._make_archive({(name, versions.get(name, "1")): files.get(name, {}) for name in PACKAGES}, AARCH64.debian)
        # Of an archive that it can read as files apt copies nothing.
        sources = self.folder / "etc/sources.list.d/distribution.sources"
        sources.write_text(sources.read_text().replace("file:", "copy:"))
        shutil.rmtree(self.cache / "apt-arm64", ignore_errors=True)  # its lists are those of the day

    def fetch(self) -> ForeignRoot:
        return fetch(AARCH64, cache=self.cache, etc=self.folder / "etc", release=RELEASE, progress=Progress(self.said))


@pytest.fixture
def machine(tmp_path: Path, make_archive: MakeArchive) -> Machine:
    machine = Machine(tmp_path, make_archive)
    machine.offer()
    return machine


def test_it_is_laid_out_as_an_installed_one_and_made_once(machine: Machine) -> None:
    made = machine.fetch()
    assert made.folder.name.startswith("bookworm-aarch64-")
    assert made.python == made.root / f"usr/bin/python{OWN}"
    assert made.python.is_file()
    assert made.busybox.is_file()
    assert [(made.root / name).readlink() for name in ("bin", "sbin", "lib")] == [
        Path("usr/bin"), Path("usr/sbin"), Path("usr/lib"),
    ]  # fmt: skip
    assert {path.name for path in (made.root / "lib/aarch64-linux-gnu").iterdir()} == {"libc.so", "libc.so.6"}
    assert not (made.root / "usr/share/doc").exists()
    assert len(made.manifest["packages"]) == len(PACKAGES)
    said = machine.said.getvalue()
    assert machine.fetch() == made
    assert machine.said.getvalue() == said


def test_its_modules_are_compiled_where_they_are_in_the_guest(machine: Machine) -> None:
    made = machine.fetch()
    assert made.manifest["compiled"] is True
    (compiled,) = (made.root / f"usr/lib/python{OWN}").glob("__pycache__/*.pyc")
    assert f"/usr/lib/python{OWN}/module.py".encode() in compiled.read_bytes()
    assert str(made.root).encode() not in compiled.read_bytes()


def test_modules_of_a_python_that_is_not_here_stay_as_they_are(machine: Machine) -> None:
    machine.offer(python="3.99")
    made = machine.fetch()
    assert (made.python.name, made.manifest["compiled"]) == ("python3.99", False)
    assert not list(made.root.rglob("*.pyc"))


def test_a_newer_package_and_damage_make_another(machine: Machine) -> None:
    first = machine.fetch()
    machine.offer(busybox="2")
    second = machine.fetch()
    assert second.folder != first.folder
    second.busybox.write_text("damaged")
    assert ForeignRoot.load(second.folder) is None
    assert machine.fetch().busybox.read_text() == "x = 7\n"


def test_the_newest_that_was_made_is_found_without_the_archive(machine: Machine) -> None:
    first = machine.fetch()
    machine.offer(busybox="2")
    second = machine.fetch()
    shutil.rmtree(machine.folder / "pool")
    shutil.rmtree(machine.folder / "etc")
    assert find_root(AARCH64, cache=machine.cache, release=RELEASE) == second
    second.busybox.write_text("damaged")
    assert find_root(AARCH64, cache=machine.cache, release=RELEASE) == first
    assert machine.fetch() == first
    assert "using the root made earlier" in machine.said.getvalue()


def test_of_another_release_or_with_other_packages_it_is_not_taken(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine.fetch()
    assert find_root(AARCH64, cache=machine.cache, release=RELEASE) == made
    missing = r"no root for an aarch64 guest here: pyiommufd guest --iommu smmuv3 --build-kernel fetches"
    with pytest.raises(GuestMissingError, match=missing):
        find_root(AARCH64, cache=machine.cache, release=RELEASE | {"VERSION_CODENAME": "trixie"})
    monkeypatch.setattr(foreign_root, "PACKAGES", PACKAGES[::-1])
    assert find_root(AARCH64, cache=machine.cache, release=RELEASE) == made
    monkeypatch.setattr(foreign_root, "PACKAGES", (*PACKAGES, "more"))
    with pytest.raises(GuestMissingError, match=missing):
        find_root(AARCH64, cache=machine.cache, release=RELEASE)


def test_an_archive_without_them_is_told(machine: Machine) -> None:
    shutil.rmtree(machine.folder / "dists")
    with pytest.raises(GuestMissingError, match=r"^there is no root for an aarch64 guest: "):
        machine.fetch()


def test_a_machine_without_apt_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(machine.folder))
    with pytest.raises(GuestMissingError, match=r"root for aarch64 comes from .* by apt-get, apt-cache, dpkg-deb"):
        machine.fetch()


def test_merging_keeps_what_is_in_both_places(tmp_path: Path) -> None:
    for name in ("lib/a/one", "usr/lib/a/two", "lib/b/three", "bin/four"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "lib/link").symlink_to("a/one")
    for _ in range(2):
        merge_usr(tmp_path)
        listed = subprocess.run(["find", "usr", "-not", "-type", "d"], cwd=tmp_path, capture_output=True, text=True)
        assert sorted(listed.stdout.split()) == [
            "usr/bin/four", "usr/lib/a/one", "usr/lib/a/two", "usr/lib/b/three", "usr/lib/link",
        ]  # fmt: skip
        assert (tmp_path / "lib/link").read_text() == "lib/a/one"
