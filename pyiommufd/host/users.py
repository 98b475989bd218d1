"""Users of this machine, to whom devices may be given."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from pyiommufd.errors import ClaimError
from pyiommufd.printable import OneLine

_NO_ID = 0xFFFF_FFFF  # (uid_t)-1: no user


@dataclass(frozen=True, slots=True, repr=False)
class User(OneLine):
    """A user who may be given devices, or as whom a program may run.

    Attributes:
        name: The name; the number where there is no such name.
        uid: The number.
        gid: The number of the first group; None where the user is not on record.
        groups: The numbers of all groups; none where the user is not on record.
        home: The folder of the user's own; None where the user is not on record.
    """

    name: str
    uid: int
    gid: int | None = None
    groups: tuple[int, ...] = ()
    home: str | None = None

    def __str__(self) -> str:
        return self.name

    def _line(self) -> str:
        return f"{self.name} (uid {self.uid})"


def find_user(name: str) -> User:
    """The user of that name or number, by the password database (getpwnam(3), getgrouplist(3)).

    Raises:
        ClaimError: There is none. A number needs no name.
    """
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal() and int(name) < _NO_ID:
            return User(name, int(name))
        raise ClaimError(f"there is no user {name!r}") from None
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    return User(found.pw_name, found.pw_uid, found.pw_gid, groups, found.pw_dir)
