"""The initial file system: read back by cpio and by the shell that will run it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.guest.filesystem import GuestFiles
from pyiommufd.testing.guest.initramfs import Archive, build_initramfs, find_busybox, init_script, is_static
from pyiommufd.testing.guest.iort import IN_INITRAMFS
from pyiommufd.testing.inside import agent
from tests.unit.testing.guest.foreign_system import make_system


def extract(archive: bytes, folder: Path) -> None:
    command = [str(find_busybox()), "cpio", "-idm", "--quiet"]
    result = subprocess.run(command, input=archive, cwd=folder, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_archive_is_read_back(tmp_path: Path) -> None:
    archive = Archive()
    contents = {f"a/b/file{size}": bytes([size % 256]) * size for size in (0, 1, 2, 3, 4, 5, 4096, 70001)}
    for name, content in contents.items():
        archive.file(f"/{name}", content, 0o640)
    archive.folder("/empty", 0o1777)
    archive.link("/a/link", "b/file3")
    extract(archive.build(), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert stat.S_IMODE((tmp_path / "a/b/file1").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o1777
    assert (tmp_path / "a/link").read_bytes() == contents["a/b/file3"]


def test_archive_can_be_built_twice() -> None:
    archive = Archive()
    archive.file("/x", b"x")
    assert archive.build() == archive.build()


def test_devices_and_folders_once() -> None:
    archive = Archive()
    archive.character_device("/dev/console", 5, 1)
    archive.file("/dev/x", b"")
    archive.folder("/dev")
    names = subprocess.run([str(find_busybox()), "cpio", "-tv", "--quiet"], input=archive.build(), capture_output=True,
                           check=True).stdout.decode().splitlines()  # fmt: skip
    assert len(names) == 3
    assert any(line.startswith("crw-------") and line.endswith("dev/console") for line in names)


def test_busybox_is_static() -> None:
    assert is_static(find_busybox())
    assert not is_static(Path(sys.executable).resolve())
    assert not is_static(Path(__file__))


def test_missing_busybox_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is nothing in the places that are looked at besides the PATH, if `which` finds none there.
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(GuestMissingError, match="apt-get install busybox-static"):
        find_busybox()


def test_whole_file_system(tmp_path: Path) -> None:
    module = tmp_path / "mdev.ko"
    module.write_bytes(b"module")
    files = GuestFiles.plan(folder=tmp_path, results=tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "boot-one.ko").write_bytes(b"boot")
    if os.geteuid() != 0:
        pytest.skip("unpacking device nodes takes root")
    extract(build_initramfs(files, [tmp_path / "boot-one.ko"], [module]), root)
    assert (root / "modules/mdev.ko").read_bytes() == b"module"
    assert (root / ".guest/modules/000-boot_one.ko").read_bytes() == b"boot"
    assert (root / ".guest/busybox").read_bytes() == find_busybox().read_bytes()
    assert (root / "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()
    check = subprocess.run([str(find_busybox()), "sh", "-n", str(root / "init")], capture_output=True, check=False)
    assert check.returncode == 0, check.stderr


def test_a_guest_of_another_architecture(tmp_path: Path) -> None:
    """Its table comes first, then its own busybox and what lies on top of the folders."""
    system = make_system(tmp_path / "system")
    shutil.copy(find_busybox(), system.folder / "usr/bin/busybox")
    folder = tmp_path / "work"
    folder.mkdir()
    files = GuestFiles.plan(folder=folder, results=None, system=system)
    initramfs = build_initramfs(files, [], [], b"table")
    table = Archive()
    table.file(f"/{IN_INITRAMFS}", b"table")
    assert initramfs.startswith(table.build())
    if os.geteuid() != 0:
        pytest.skip("unpacking device nodes takes root")
    root = tmp_path / "unpacked"
    root.mkdir()
    extract(initramfs.removeprefix(table.build()), root)
    assert [path.read_bytes() for path in root.glob("**/_uapi.abi3.so")] == [b"extension"]
    script = (root / "init").read_text()
    number = next(number for number, export in enumerate(files.exports) if export.layer)
    assert f"lowerdir=/.guest/layers/{number}:." in script
    assert f"exec {system.python} -I -S /.guest/agent.pyc" in script
    check = subprocess.run([str(find_busybox()), "sh", "-n", str(root / "init")], capture_output=True, check=False)
    assert check.returncode == 0, check.stderr


def test_an_agent_for_another_python_goes_as_its_source(tmp_path: Path) -> None:
    system = make_system(tmp_path / "system", "python3.99")
    shutil.copy(find_busybox(), system.folder / "usr/bin/busybox")
    files = GuestFiles.plan(folder=tmp_path, results=None, system=system)
    assert "exec /usr/bin/python3.99 -I -S /.guest/agent.py\n" in init_script(files, [])
    assert Path(agent.__file__).read_bytes() in build_initramfs(files, [], [])


def test_a_root_without_busybox(tmp_path: Path) -> None:
    with pytest.raises(GuestMissingError, match="no static busybox in"):
        find_busybox(make_system(tmp_path).folder)


def test_script_survives_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s, "odd" $HOME; é'
    folder.mkdir()
    files = GuestFiles.plan(folder=folder, results=None)
    script = init_script(files, [])
    # What the shell makes of the mount commands, with a program in place of busybox that prints its arguments.
    printer = tmp_path / "print"
    printer.write_text('#!/bin/sh\nprintf "<%s>" "$@"; echo\n')
    printer.chmod(0o755)
    mounts = "\n".join(line for line in script.splitlines() if "mount -t 9p" in line).replace("$b", str(printer))
    result = subprocess.run(["sh", "-c", f"die() {{ :; }}\n{mounts}"], capture_output=True, text=True, check=True)
    assert f"<{folder}>" in result.stdout
