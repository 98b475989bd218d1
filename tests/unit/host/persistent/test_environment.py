"""Whether only root can change what root runs at boot: what is looked at, and what is found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import ClaimError
from pyiommufd.host.claims import access
from pyiommufd.host.persistent import environment
from pyiommufd.host.persistent.environment import places as real_places
from pyiommufd.host.persistent.environment import writable_by_others

ALICE = 1000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which takes root")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with a file ``a/b/file``, a link to it beside the folder, and a sticky folder for all."""
    if writable_by_others([tmp_path]):
        pytest.skip("the folder for temporary files is not root's alone")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/link").symlink_to("../a/b/file")
    (tmp_path / "links/absolute").symlink_to(tmp_path / "links/link")
    (tmp_path / "links/loop").symlink_to("loop")
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "sticky/mine").mkdir()
    for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "links", tmp_path / "sticky/mine"):
        path.chmod(0o755)
    return tmp_path


@as_root
@pytest.mark.parametrize("place", ["a/b/file", "links/link", "links/absolute", "sticky/mine", "a/none/x", "links/loop"])
def test_what_only_root_can_write(top: Path, place: str) -> None:
    assert writable_by_others([top / place]) == []


@as_root
@pytest.mark.parametrize(
    ("place", "give", "fault"),
    [
        ("a/b/file", lambda top: os.chown(top / "a/b/file", ALICE, 0), "a/b/file (belongs to uid 1000)"),
        ("a/b/file", lambda top: os.chown(top / "a", ALICE, 0), "a (belongs to uid 1000)"),
        ("a/b/file", lambda top: (top / "a/b").chmod(0o775), "a/b (gid 0 can write it)"),
        ("a/b/file", lambda top: (top / "a/b/file").chmod(0o646), "a/b/file (anybody can write it)"),
        # What its mask lets through of an access control list.
        ("a/b/file", lambda top: access.grant(top / "a", ALICE), "a (gid 0 can write it)"),
        ("a/none", lambda top: (top / "a").chmod(0o757), "a (anybody can write it)"),
        # Of a link: itself, where it is, and where it leads.
        ("links/absolute", lambda top: os.lchown(top / "links/link", ALICE, 0), "links/link (belongs to uid 1000)"),
        ("links/absolute", lambda top: (top / "links").chmod(0o775), "links (gid 0 can write it)"),
        ("links/absolute", lambda top: (top / "a").chmod(0o775), "a (gid 0 can write it)"),
        # Sticky: what is there already is safe where it is root's, and nothing else is.
        ("sticky", lambda top: None, "sticky (anybody can write it)"),
        ("sticky/none", lambda top: None, "sticky/none (is not there, and anybody can make it)"),
        ("sticky/mine", lambda top: os.chown(top / "sticky/mine", ALICE, 0), "sticky/mine (belongs to uid 1000)"),
        ("sticky/mine", lambda top: os.chown(top / "sticky", ALICE, 0), "sticky (belongs to uid 1000)"),
    ],
)
def test_what_others_can_write(top: Path, place: str, give: Callable[[Path], object], fault: str) -> None:
    give(top)
    assert writable_by_others([top / place, top / place]) == [f"{top}/{fault}"]


def imported(code: str) -> set[str]:
    """What an interpreter has imported afterwards that does not come with Python."""
    program = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, *environment.OPTIONS, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - sys.stdlib_module_names - {"__main__"}


def test_whatever_the_command_imports_is_looked_at() -> None:
    code = "import pyiommufd.cli.group, pyiommufd.cli.claim, pyudev"  # the last one when devices are looked for
    assert imported(code) - imported("") == set(environment.PACKAGES)
    places = set(real_places())
    assert {Path(sys.executable), Path(sys.prefix), Path(environment.__file__), Path(os.__file__).parent} <= places
    assert {path for path in map(Path, sys.path) if "site-packages" in path.parts} <= places
    assert all(any(name in str(path) for path in places) for name in environment.PACKAGES)


@pytest.fixture
def venv(top: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose packages are where a .pth file says: this one's, and those of a folder ``tree``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", top / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(top / "venv/bin/python"))
    monkeypatch.setattr(environment, "places", real_places)
    (top / "tree").mkdir()
    (packages,) = top.glob("venv/lib/python*/site-packages")
    ours = [path for path in sys.path if Path(path).is_dir()]
    (packages / "x.pth").write_text("\n".join([*ours, str(top / "tree")]) + "\n")
    return top / "venv"


def faults(below: Path) -> list[str]:
    """What is found in a folder: this test's own environment may be anybody's."""
    return [fault.removeprefix(f"{below}/") for fault in writable_by_others(real_places()) if str(below) in fault]


@as_root
@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("venv", "venv (belongs to uid 1000)"),
        ("venv/bin/python", "venv/bin/python (belongs to uid 1000)"),
        ("venv/pyvenv.cfg", "venv/pyvenv.cfg (belongs to uid 1000)"),
        ("tree", "tree (belongs to uid 1000)"),
        ("tree/sitecustomize.py", "tree/sitecustomize.py (belongs to uid 1000)"),
        ("tree/click/core.py", "tree/click/core.py (belongs to uid 1000)"),
    ],
)
def test_environment_that_is_somebody_s_in_part(venv: Path, top: Path, given: str, fault: str) -> None:
    (packages,) = top.glob("venv/lib/python*/site-packages")
    if "click" in given:
        # Before this environment's.
        (packages / "x.pth").write_text(f"{top}/tree\n{(packages / 'x.pth').read_text()}")
        (top / "tree/click").mkdir()
        (top / "tree/click/__init__.py").touch()
    if not (top / given).exists():
        (top / given).touch()
    assert faults(top) == []
    os.lchown(top / given, ALICE, 0)
    assert faults(top) == [fault]
    with pytest.raises(ClaimError, match="users other than root can change what root runs at each boot: ") as caught:
        environment.check()
    assert "call apply(persist=True) there" in str(caught.value)
    assert "run pyiommufd claim --persist from there" in caught.value.for_command()


def test_environment_that_lacks_the_package(venv: Path) -> None:
    """It is found by this process alone, as with PYTHONPATH."""
    (file,) = venv.glob("lib/python*/site-packages/x.pth")
    file.unlink()
    with pytest.raises(ClaimError, match=r"venv/bin/python has no pyiommufd, click, .* without PYTHONPATH.*: install"):
        environment.check()


def test_interpreter_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "places", real_places)
    for program, said in (("/bin/false", "status 1"), ("/no/python", "No such file")):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(ClaimError, match=f"{program} cannot be run as at boot: .*{said}"):
            environment.check()
