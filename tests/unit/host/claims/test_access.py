"""Access control lists, on files of a real file system; what the kernel makes of them is what mode and list say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyiommufd import ClaimError
from pyiommufd.host.claims.access import grant, granted

ALICE, BOB = 70001, 70002
NAME = "system.posix_acl_access"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A file with the mode of a vfio node."""
    path = tmp_path / "node"
    path.touch()
    path.chmod(0o600)
    try:
        os.getxattr(path, NAME)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("the file system of the temporary folder has no access control lists")
    return path


def acl(path: Path) -> bytes | None:
    return os.getxattr(path, NAME) if NAME in os.listxattr(path) else None


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o644, 0o640, 0o000])
def test_granted_and_taken_back_is_as_before(node: Path, mode: int) -> None:
    node.chmod(mode)
    assert granted(node, ALICE) is None
    grant(node, ALICE)
    assert granted(node, ALICE) == 6
    assert granted(node, BOB) is None
    # The group's bits are the mask by now: what the user is given is not cut by it.
    assert node.stat().st_mode >> 3 & 6 == 6
    assert node.stat().st_mode & 0o707 == mode & 0o707
    grant(node, ALICE, None)
    assert acl(node) is None
    assert node.stat().st_mode & 0o777 == mode


def test_two_users_have_each_their_own(node: Path) -> None:
    grant(node, ALICE)
    grant(node, BOB)
    grant(node, ALICE, None)
    assert (granted(node, ALICE), granted(node, BOB)) == (None, 6)
    grant(node, BOB, None)
    assert (acl(node), node.stat().st_mode & 0o777) == (None, 0o600)


def test_list_of_before_stays(node: Path) -> None:
    grant(node, BOB, 4)
    before = acl(node)
    grant(node, ALICE)
    grant(node, ALICE, None)
    assert acl(node) == before
    grant(node, BOB)
    grant(node, BOB, 4)
    assert acl(node) == before


def test_mask_that_keeps_others_out_is_not_lifted_for_them(node: Path) -> None:
    grant(node, BOB)
    node.chmod(0o600)  # as an administrator would who shuts everybody out
    grant(node, ALICE)
    assert granted(node, BOB) == 0
    assert granted(node, ALICE) == 6


def test_file_system_without_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClaimError, match="has no access control lists"):
        grant(Path("/proc/self/oom_score_adj"), ALICE)


def test_node_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        grant(tmp_path / "none", ALICE)
    with pytest.raises(FileNotFoundError):
        granted(tmp_path / "none", ALICE)
