"""Claims that are made again at every boot: a readable file each, under ``/etc/pyiommufd/claims.d``.

A file says what the devices are known by (`pyiommufd.host.persistent.identity`): those that were asked for, and those
that come with them by their IOMMU groups. Files are written whole or not at all, and only root may write them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ClaimError
from .. import durable
from ..claims import steps
from ..claims.plan import ClaimPlan, plan_claim
from ..devices import HostDevice, list_devices
from ..uses import forced
from .identity import IDS, Identity, identify, pci_path

FOLDER = Path("/etc/pyiommufd/claims.d")

_VERSION = 1
_HEAD = """\
# Devices that are claimed at every boot, all of them or, where one cannot be told for certain, none: by the command
# pyiommufd claim --persistent, which the systemd unit pyiommufd.service runs.
# Made by pyiommufd claim --persist; pyiommufd release takes it back.
"""


@dataclass(frozen=True, slots=True)
class PersistentClaim:
    """A claim that is made at every boot.

    Attributes:
        file: Where it is on record.
        wanted: The devices that were asked for.
        companions: The other devices of their groups, but for bridges.
        force: The kinds of refusals that it goes ahead in spite of.
        user: The name of the user who is given the nodes, or None.
        driver: The vfio driver for the devices that were asked for; None: the one that is chosen by itself.
    """

    file: Path
    wanted: tuple[Identity, ...]
    companions: tuple[Identity, ...] = ()
    force: tuple[str, ...] = ()
    user: str | None = None
    driver: str | None = None

    def write(self) -> None:
        """Put it on record; it is on disk before this returns, whole or not at all.

        Raises:
            ClaimError: The file cannot be written, mostly for want of root.
        """
        try:
            steps.cross(f"write {self.file}", lambda: durable.write(self.file, self._text()))
        except OSError as error:
            raise ClaimError(f"cannot write {self.file}: {error.strerror}; a persistent claim takes root") from error

    def plan(self) -> ClaimPlan:
        """What it takes to make the claim, on this machine as it is now.

        Raises:
            ClaimError: A device cannot be told for certain, or their groups have other members than when the claim was
                put on record.
        """
        among = list_devices("pci")
        wanted = [identity.find(among) for identity in self.wanted]
        known = {*wanted, *(identity.find(among) for identity in self.companions)}
        plan = plan_claim(wanted, driver=self.driver, force=self.force)
        now = set(plan.endpoints)
        if now != known:
            news = [f"{device.name} has joined" for device in sorted(now - known, key=str)]
            news += [f"{device.name} has left" for device in sorted(known - now, key=str)]
            raise ClaimError(
                f"the IOMMU groups are no longer what they were: {', '.join(news)}; look at it, then release the claim "
                "and make it again"
            )
        return plan

    def may_take(self, device: HostDevice, among: Sequence[HostDevice] | None = None) -> bool:
        """Whether a device is one that the claim takes, or is where one was that cannot be told for certain now.

        Args:
            device: The device.
            among: All PCI devices of this machine, as for `Identity.find`.
        """
        for identity in (*self.wanted, *self.companions):
            try:
                if identity.find(among) == device:
                    return True
            except ClaimError:
                if identity.name == device.name or identity.path == pci_path(device):
                    return True
        return False

    def _text(self) -> str:
        lines = [_HEAD, f"version = {_VERSION}", f"force = {_toml(list(self.force))}"]
        if self.user is not None:
            lines.append(f"user = {_toml(self.user)}")
        if self.driver is not None:
            lines.append(f"driver = {_toml(self.driver)}")
        for key, identities in (("device", self.wanted), ("companion", self.companions)):
            for identity in identities:
                lines += ["", f"[[{key}]]", f"name = {_toml(identity.name)}  # at that time; it is found by the rest"]
                lines += [f"{name} = {_toml(value)}" for name, value in zip(IDS, identity.ids, strict=True)]
                lines.append(f"path = {_toml(identity.path)}")
                if identity.serial is not None:
                    lines.append(f"serial = {_toml(identity.serial)}")
                lines.append(f"twins = {_toml(list(identity.twins))}")
        return "\n".join(lines) + "\n"


def persistent_claim(
    plan: ClaimPlan, user: str | None = None, *, reserved: Collection[str] = (), folder: Path | None = None
) -> PersistentClaim:
    """The persistent claim of what a plan takes. Changes nothing.

    Has to be made before the plan is carried out: some serial numbers are known to the host's driver alone.

    Args:
        plan: The plan.
        user: The name of the user who is given the nodes, or None.
        reserved: Files that are not there, and whose names are not to be used.
        folder: Where it is to be on record; None: `FOLDER`.

    Raises:
        ClaimError: A device is no PCI device, or is in a persistent claim already.
    """
    folder = FOLDER if folder is None else folder
    taken, among = plan.endpoints, list_devices("pci")
    for file in files(folder):
        claim = read(file)
        for device in (device for device in taken if claim.may_take(device, among)):
            raise ClaimError(f"{device.name} is claimed at boot already, by {file}; release it first")
    known = {device: identify(device, among) for device in taken}
    for device, identity in known.items():
        if (found := identity.find(among)) != device:
            raise ClaimError(f"{device.name} would not be found again: {identity} is {found.name}")
    return PersistentClaim(
        _free_name(folder, plan.devices[0].name, reserved),
        tuple(known[device] for device in plan.devices),
        tuple(identity for device, identity in known.items() if device not in plan.devices),
        tuple(sorted(plan.force)),
        user,
        plan.driver,
    )


def forget(file: Path) -> None:
    """Take a persistent claim off the record; it is gone from the disk before this returns.

    Raises:
        ClaimError: The file cannot be removed.
    """
    try:
        steps.cross(f"remove {file}", lambda: durable.remove(file))
    except OSError as error:
        raise ClaimError(f"cannot remove {file}: {error.strerror}") from error


def files(folder: Path | None = None) -> list[Path]:
    """The files of the persistent claims."""
    return sorted((FOLDER if folder is None else folder).glob("*.toml"))


def read(file: Path) -> PersistentClaim:
    """The persistent claim of a file.

    Raises:
        ClaimError: It is none, or somebody other than root may have written it.
    """
    try:
        status = file.stat()
        # Root acts on what it says.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ClaimError(
                f"{file} can be written by others than root: it is not used; look at it, then chmod and chown"
            )
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        version = data.pop("version", None)
        if version != _VERSION:
            raise ValueError(f"version {version!r}")
        claim = PersistentClaim(
            file,
            tuple(_identities(data.pop("device"))),
            tuple(_identities(data.pop("companion", []))),
            tuple(sorted(forced(_strings(data.pop("force", []))))),
            _string(data.pop("user", None), optional=True),
            _string(data.pop("driver", None), optional=True),
        )
        if data or not claim.wanted:
            raise ValueError(f"unknown key {min(data)}" if data else "no device")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ClaimError(f"{file} is no persistent claim ({error}); look at it and remove it") from error
    return claim


def _identities(tables: Any) -> Iterator[Identity]:
    for table in tables:
        given = dict(table)
        name, path = _string(given.pop("name")), _string(given.pop("path"))
        serial, twins = _string(given.pop("serial", None), optional=True), _strings(given.pop("twins", []))
        ids = tuple(str(_string(given.pop(key))) for key in IDS)
        if given:
            raise ValueError(f"unknown key {min(given)}")
        yield Identity(str(name), ids, str(path), serial, twins)


def _string(value: Any, optional: bool = False) -> str | None:
    if isinstance(value, str) or (optional and value is None):
        return value
    raise ValueError(f"{value!r} is no string")


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no array")
    return tuple(str(_string(each)) for each in value)


def _free_name(folder: Path, name: str, reserved: Collection[str]) -> Path:
    safe = "".join(letter if letter.isalnum() or letter in ".:-_" else "_" for letter in name)
    taken = {file.stem for file in (*files(folder), *map(Path, reserved))}
    number = 1
    while (stem := safe if number == 1 else f"{safe}-{number}") in taken:
        number += 1
    return folder / f"{stem}.toml"


def _toml(value: str | list[str]) -> str:
    # TOML's basic strings and arrays of them are written as JSON writes them.
    return json.dumps(value, ensure_ascii=False)
