"""What a guest sees: planned from real folders of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pyiommufd
from pyiommufd.testing.guest.filesystem import RESULTS, Export, GuestFiles, guest_environment, python_folders


def targets(files: GuestFiles) -> list[Path]:
    return [export.target for export in files.exports]


def seen(files: GuestFiles, path: Path) -> bool:
    return any(path.is_relative_to(export.target) for export in files.exports)


def test_python_environment_is_seen(tmp_path: Path) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=None)
    for path in (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), Path(pytest.__file__)):
        assert seen(files, path.resolve()), path
    assert seen(files, Path(str(pyiommufd.__path__[0])).resolve())
    assert seen(files, Path("/usr/bin"))


def test_no_folder_is_mounted_twice(tmp_path: Path) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=None, extra=[tmp_path, Path("/usr/bin")])
    assert len(set(targets(files))) == len(files.exports)
    for target in targets(files):
        assert not any(target != other and target.is_relative_to(other) for other in targets(files))


def test_only_what_was_named_is_seen_of_a_folder(tmp_path: Path) -> None:
    for name in ("work", "more", "secret"):
        (tmp_path / name).mkdir()
    files = GuestFiles.plan(folder=tmp_path / "work", results=None, extra=[tmp_path / "more"])
    assert seen(files, tmp_path / "work")
    assert seen(files, tmp_path / "more")
    assert not seen(files, tmp_path / "secret")
    assert not seen(files, tmp_path)
    assert not seen(files, Path.home() / ".ssh")
    assert files.overlay == tmp_path / "work"


def test_inner_folders_are_covered_by_outer_ones(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    files = GuestFiles.plan(folder=tmp_path / "a/b", results=None, extra=[tmp_path / "a"])
    assert tmp_path / "a" in targets(files)
    assert tmp_path / "a/b" not in targets(files)
    assert files.overlay == tmp_path / "a/b"


def test_links_on_the_way_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("../" + tmp_path.name + "/absolute")
    files = GuestFiles.plan(folder=tmp_path / "relative/inner", results=None)
    assert files.links[tmp_path / "relative"] == f"../{tmp_path.name}/absolute"
    assert files.links[tmp_path / "absolute"] == str(tmp_path / "real")
    assert tmp_path / "real/inner" in targets(files)
    assert files.overlay == tmp_path / "real/inner"


def test_links_inside_an_export_are_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files = GuestFiles.plan(folder=tmp_path / "link", results=None, extra=[tmp_path])
    assert tmp_path / "link" not in files.links


def test_link_that_goes_round(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises((OSError, RuntimeError)):
        GuestFiles.plan(folder=tmp_path / "a", results=None)


def test_results_are_the_only_writable_folder(tmp_path: Path) -> None:
    files = GuestFiles.plan(folder=tmp_path, results=tmp_path)
    assert [export for export in files.exports if export.writable] == [Export(tmp_path, Path(RESULTS), writable=True)]


def test_files_of_the_guest_are_never_as_it_says_on_this_machine() -> None:
    """Of /proc, as of other file systems without extended attributes, they are known in files beside them."""
    options = Export(Path("/proc"), Path(RESULTS), writable=True).qemu_options()
    assert options == "security_model=mapped-file,fmode=0666,dmode=0777"


@pytest.mark.parametrize("folder", ["/", "/etc", "/proc", "/sys", "/dev", "/run"])
def test_guests_own_folders_are_not_the_hosts(folder: str) -> None:
    files = GuestFiles.plan(folder=Path(folder), results=None)
    assert files.overlay is None
    assert Path(folder) not in targets(files)


@pytest.mark.parametrize("folder", ["/proc/self", "/sys/class", "/dev/fd"])
def test_what_is_in_them_cannot_be_shown(folder: str) -> None:
    with pytest.raises(ValueError, match="the guest cannot see"):
        GuestFiles.plan(folder=Path(folder), results=None)


def test_missing_folder() -> None:
    with pytest.raises(FileNotFoundError):
        GuestFiles.plan(folder=Path("/nowhere/at/all"), results=None)


def test_etc_holds_no_secrets(tmp_path: Path) -> None:
    etc = {str(path) for path in GuestFiles.plan(folder=tmp_path, results=None).etc}
    assert {"/etc/passwd", "/etc/group", "/etc/ld.so.cache"} <= etc
    assert not any(word in path for path in etc for word in ("shadow", "sudoers", "ssh", "ssl/private", "apt"))


def test_folders_on_the_import_path_only_if_they_are_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tmp_path in python_folders()
    monkeypatch.syspath_prepend("/")
    monkeypatch.syspath_prepend(str(Path.home()))
    assert not {Path("/"), Path.home()} & set(python_folders())


def test_environment_keeps_settings_and_drops_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_TIME", "de_DE")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = guest_environment()
    assert (environment["LC_TIME"], environment["PYTHONHASHSEED"]) == ("de_DE", "7")
    # The last one is a setting, of no use in a guest and dear there.
    assert not {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE"} & environment.keys()
    assert environment["PATH"].split(":")[0] == f"{sys.prefix}/bin"
    assert (environment["HOME"], environment["PYIOMMUFD_RESULTS"]) == ("/root", RESULTS)
