"""Kept claims of two devices, for the tests of claims, of releases and of what becomes of them at boot."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from pyiommufd import Claim, ClaimPlan
from pyiommufd.host import durable
from pyiommufd.host.claims import journal
from pyiommufd.host.persistent import boot_unit, claim_file

NAMES = ("0000:00:02.0", "0000:00:03.0")
BOARD: dict[str, Any] = {"subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "revision": "0x02"}
WHOLE = ["record: kept", f"{NAMES[0]}.toml", boot_unit.NAME, boot_unit.NAME]
"""All that there is of a persistent claim of the first device."""


def keep(plan: ClaimPlan, **options: Any) -> Claim:
    return plan.apply(keep=True, **options)


def reboot() -> None:
    """What a boot forgets."""
    shutil.rmtree(journal.RUN, ignore_errors=True)


def there() -> list[str]:
    """What there is of kept claims, wherever it is on record."""
    found = [f"record: {record.state}" for record in journal.records()]
    found += [file.name for file in claim_file.FOLDER.glob("*")]
    return found + [path.name for path in (boot_unit.file(), boot_unit.link()) if path.is_symlink() or path.exists()]


def no_room(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """There is no room to record this."""
    commit = durable.commit

    def full(name: str, change: Callable[[], None]) -> None:
        if what in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(name, change)

    monkeypatch.setattr(durable, "commit", full)
