"""A newer QEMU from an archive: a real apt and a real dpkg-deb on an archive of four small packages.

In place of QEMU the packages hold a program of this machine with its loader and C library, which is what has to find
each other after the unpacking.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture, own_architecture
from pyiommufd.testing.provision.newer_qemu import FetchedQEMU, fetch, fetched_qemus, find_firmware
from pyiommufd.testing.provision.progress import Progress

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb"))), reason="this machine has no apt and dpkg-deb"
)
LIBRARIES = f"usr/lib/{own_architecture().triplet}"
PROGRAMS = {"qemu-system-x86": "qemu-system-x86_64", "qemu-system-arm": "qemu-system-aarch64"}


def build(
    archive: Path, suite: str, version: str, program: str, *, libraries: bool = True, firmware: bool = True
) -> None:
    """Put the packages into a suite of the archive."""
    index = ""
    pool = archive / "pool" / suite
    pool.mkdir(parents=True, exist_ok=True)
    for name in (*PROGRAMS, "qemu-efi-aarch64", "qemu-system-data", "seabios", "ipxe-qemu", "libc6"):
        tree = archive / "tree" / suite / name
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "usr/share/doc").mkdir(parents=True)
        (tree / "usr/share/doc/copyright").write_text("none")
        if name in PROGRAMS:
            (tree / "usr/bin").mkdir()
            shutil.copy(program, tree / "usr/bin" / PROGRAMS[name])
        if name == "qemu-efi-aarch64" and firmware:
            for file in ("qemu-efi-aarch64/QEMU_EFI.fd", "AAVMF/AAVMF_CODE.fd"):
                (tree / "usr/share" / file).parent.mkdir()
                (tree / "usr/share" / file).write_text("UEFI")
        if name == "libc6":
            (tree / LIBRARIES).mkdir(parents=True)
            listed = subprocess.run(["ldd", "/bin/true"], capture_output=True, text=True, check=True).stdout
            for file in re.findall(r"(/\S+) \(0x", listed):
                if libraries or Path(file).name.startswith("ld-"):
                    shutil.copy(file, tree / LIBRARIES)
        control = (
            f"Package: {name}\nVersion: 1:{version}+ds-1\nArchitecture: amd64\nMaintainer: nobody\nDescription: x\n"
        )
        control += "Depends: libc6\n" if name in PROGRAMS else ""
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control)
        deb = pool / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, deb], capture_output=True, check=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        index += f"{control}Filename: pool/{suite}/{name}.deb\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"
    packages = archive / "dists" / suite / "main/binary-amd64/Packages"
    packages.parent.mkdir(parents=True, exist_ok=True)
    packages.write_text(index)
    digest = hashlib.sha256(packages.read_bytes()).hexdigest()
    release = f"Suite: {suite}\nCodename: {suite}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
    release += f" {digest} {packages.stat().st_size} main/binary-amd64/Packages\n"
    (packages.parents[2] / "Release").write_text(release)


class Archive:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "archive"
        self.etc = folder / "etc"
        self.cache = folder / "cache"
        self.said = io.StringIO()
        self.etc.mkdir()
        (self.etc / "sources.list").write_text(f"deb [trusted=yes] copy:{self.root} here main\n")

    def fetch(self, *suites: str, architecture: Architecture = X86_64) -> FetchedQEMU:
        return fetch(
            architecture=architecture,
            cache=self.cache,
            suites=suites,
            etc=self.etc,
            release={"ID": "debian", "VERSION_CODENAME": "here"},
            progress=Progress(self.said),
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def test_the_program_runs_with_its_own_loader_and_is_fetched_once(archive: Archive) -> None:
    build(archive.root, "new", "99.1.2", "/bin/true")
    qemu = archive.fetch("new")
    assert qemu.version == "99.1.2"
    assert qemu.manifest["suite"] == "new"
    assert len(qemu.manifest["packages"]) == 5
    root = qemu.folder / "root"
    assert not (root / "usr/share/doc").exists()
    assert subprocess.run([qemu.program], check=False).returncode == 0
    said = len(archive.said.getvalue())
    assert archive.fetch("new") == qemu
    assert len(archive.said.getvalue()) == said
    assert [each.folder for each in fetched_qemus(archive.cache)] == [qemu.folder]
    assert not list(qemu.folder.parent.glob(".*unpacking"))


@pytest.mark.skipif(not X86_64.native, reason="the libraries are another architecture's here")
def test_one_of_an_earlier_version_is_still_found(archive: Archive) -> None:
    build(archive.root, "new", "99.1.2", "/bin/true")
    assert archive.fetch("new").folder.name == "99.1.2-84c279206bca"


def test_that_for_aarch64_brings_its_firmware(archive: Archive, tmp_path: Path) -> None:
    build(archive.root, "new", "99.1", "/bin/true")
    other, qemu = archive.fetch("new"), archive.fetch("new", architecture=AARCH64)
    assert (qemu.program.name, qemu.folder.name[:13]) == ("qemu-system-aarch64", "99.1-aarch64-")
    firmware = qemu.folder / "root/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
    assert find_firmware(qemu.program, cache=tmp_path) == firmware
    if not Path("/usr/share/qemu-efi-aarch64").exists():
        assert find_firmware(Path("/usr/bin/qemu-system-aarch64"), cache=archive.cache) == firmware
    assert not (qemu.folder / "root/usr/share/AAVMF").exists()
    assert archive.fetch("new", architecture=AARCH64) == qemu
    assert (fetched_qemus(archive.cache), fetched_qemus(archive.cache, AARCH64)) == ([other], [qemu])


def test_packages_without_firmware_are_refused(archive: Archive) -> None:
    build(archive.root, "new", "99.1", "/bin/true", firmware=False)
    with pytest.raises(GuestMissingError, match=r"new: qemu-efi-aarch64 brings no usr/share/qemu-efi-aarch64/QEMU_EFI"):
        archive.fetch("new", architecture=AARCH64)


@pytest.mark.skipif(Path("/usr/share/qemu-efi-aarch64").exists(), reason="this machine has UEFI for aarch64")
def test_missing_firmware_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuestMissingError, match=r"apt-get install qemu-efi-aarch64, or pyiommufd guest .* fetches it"):
        find_firmware(tmp_path / "qemu-system-aarch64", cache=tmp_path)


def test_a_damaged_one_is_made_again(archive: Archive) -> None:
    build(archive.root, "new", "99.1", "/bin/true")
    qemu = archive.fetch("new")
    damaged = qemu.folder / "root/usr/bin/qemu-system-x86_64"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"?")
    assert fetched_qemus(archive.cache) == []
    assert archive.fetch("new") == qemu
    assert damaged.read_bytes() == whole


def test_a_suite_whose_qemu_does_not_run_gives_way_to_the_next(archive: Archive) -> None:
    build(archive.root, "broken", "99.9", "/bin/false")
    build(archive.root, "new", "99.1", "/bin/true")
    assert archive.fetch("gone", "broken", "new").version == "99.1"


def test_one_that_would_take_libraries_of_this_machine_is_refused(archive: Archive) -> None:
    build(archive.root, "new", "99.1", "/bin/true", libraries=False)
    with pytest.raises(GuestMissingError, match=r"new: the packages bring no libc\.so\.6"):
        archive.fetch("new")


def test_without_the_archive_what_was_fetched_earlier_does(archive: Archive) -> None:
    build(archive.root, "new", "99.1", "/bin/true")
    qemu = archive.fetch("new")
    shutil.rmtree(archive.root)
    shutil.rmtree(archive.cache / "apt-new")
    assert archive.fetch("new") == qemu
    assert "using QEMU 99.1, fetched earlier" in archive.said.getvalue()


def test_with_nothing_to_be_had_each_reason_is_given(archive: Archive) -> None:
    build(archive.root, "broken", "99.9", "/bin/false")
    with pytest.raises(GuestMissingError) as caught:
        archive.fetch("gone", "broken")
    lines = str(caught.value).splitlines()
    assert "PYIOMMUFD_QEMU" in lines[0]
    assert any(line.strip().startswith("gone: ") for line in lines)
    assert any("broken: it does not run here" in line for line in lines)


def test_another_distribution_is_told_so(archive: Archive) -> None:
    with pytest.raises(GuestMissingError, match="fedora"):
        fetch(cache=archive.cache, release={"ID": "fedora"}, progress=Progress(archive.said))
