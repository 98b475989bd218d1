"""Users by name and by number."""

from __future__ import annotations

import grp
import pwd

import pytest

from pyiommufd import ClaimError
from pyiommufd.host.users import User, find_user


def test_by_name_and_by_number() -> None:
    root = find_user("root")
    assert root == find_user("0")
    assert (str(root), root.uid, root.gid, root.home) == ("root", 0, 0, pwd.getpwnam("root").pw_dir)


@pytest.mark.parametrize("name", [entry.pw_name for entry in pwd.getpwall()])
def test_groups(name: str) -> None:
    """As the databases have them: the first one, and those whose list names the user."""
    user = find_user(name)
    listed = {group.gr_gid for group in grp.getgrall() if name in group.gr_mem}
    assert set(user.groups) == listed | {user.gid}


def test_number_without_a_name() -> None:
    assert find_user("4000000") == User("4000000", 4000000, None, (), None)


@pytest.mark.parametrize("name", ["no such user", "", "4294967295", "99999999999999999999", "-1", "²"])
def test_nobody_of_that_name(name: str) -> None:
    with pytest.raises(ClaimError, match="there is no user"):
        find_user(name)
