"""A row of the table of refusals: one possible reason for an errno, and how to check whether it applies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pyiommufd.errors import Cause, Fix
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import Group
from pyiommufd.host.holders import Holder, holders
from pyiommufd.host.limits import CAP_SYS_PTRACE, has_capability
from pyiommufd.host.namespaces import has_own_users, sees_all_processes


@dataclass(frozen=True, slots=True)
class Subject:
    """What a refused request was about.

    Attributes:
        device: The device, as it is now.
        group: Its IOMMU group.
        fd: The fd through which this process asked, which is no other user of the device; None: another process did.
        driver: The driver that was to take the device; None: not known.
        token: Whether a bind was asked for with a VF token; None: not known.
        owners: The objects of this process that have devices bound, in words, by their fds.
    """

    device: HostDevice
    group: Group | None
    fd: int | None = None
    driver: str | None = None
    token: bool | None = None
    owners: Mapping[int, str] = field(default_factory=dict)

    def others(self, *devices: HostDevice) -> list[Holder]:
        """Who holds these devices, or their groups, but for the fd that was asked through."""
        mine = (os.getpid(), f"fd {self.fd}")
        return [holder for holder in holders(*devices) if (holder.pid, holder.how) != mine]

    def causes(self, of_holders: Iterable[Cause]) -> tuple[Cause, ...] | None:
        """What a look finds by `others`: causes, or none, or None where this process does not see all processes."""
        sees_all = sees_all_processes() and not has_own_users() and has_capability(CAP_SYS_PTRACE)
        return tuple(of_holders) or (() if sees_all else None)

    @property
    def members(self) -> tuple[HostDevice, ...]:
        """The members of its group; the device alone where it has none."""
        return self.group.devices if self.group is not None else (self.device,)


@dataclass(frozen=True, slots=True)
class Row:
    """One reason for one errno of one request.

    Attributes:
        summary: What is wrong, in general.
        fix: What helps, in general; a `Fix` where a command prints it otherwise than an exception.
        look: Checks this machine for the reason: the causes found, an empty tuple if it does not apply, or None if
            that cannot be determined. Without it the reason can never be checked.
    """

    summary: str
    fix: str | Fix
    look: Callable[[Subject], tuple[Cause, ...] | None] | None = None

    def cause(self, evidence: str) -> Cause:
        """The reason as a cause."""
        return Cause(self.summary, evidence, *((self.fix,) if isinstance(self.fix, str) else self.fix))

    @property
    def general(self) -> Cause:
        """The reason as a cause without evidence."""
        return self.cause("")


Rows = Mapping[tuple[str, int], tuple[Row, ...]]
"""The reasons, by request and errno; the likeliest first."""


class Causes(NamedTuple):
    """What this machine shows of the reasons for a refused request; each the likeliest first.

    Attributes:
        found: Those that show, with evidence.
        possible: Those that may be, and cannot be seen.
        ruled_out: Those that are not so now.
    """

    found: tuple[Cause, ...] = ()
    possible: tuple[Cause, ...] = ()
    ruled_out: tuple[Cause, ...] = ()


def causes_found(rows: Iterable[Row], subject: Subject) -> Causes:
    """Look at this machine for each reason."""
    found: list[Cause] = []
    possible: list[Cause] = []
    ruled_out: list[Cause] = []
    for row in rows:
        seen = None if row.look is None else row.look(subject)
        if seen is None:
            possible.append(row.general)
        elif seen:
            found += seen
        else:
            ruled_out.append(row.general)
    known = {cause.summary for cause in found}
    return Causes(tuple(found), tuple(possible), tuple(one for one in ruled_out if one.summary not in known))
