"""Claims that are made again at every boot: a readable file each, under ``/etc/pyiommufd/claims.d``.

A file says what the devices are known by (`pyiommufd.host.persistent.identity`): those that were asked for, and those
that come with them by their IOMMU groups. Files are written whole or not at all, and only root may write them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyiommufd.errors import ClaimError, Fix
from pyiommufd.host.decoding import decode
from pyiommufd.host.discovery.devices import HostDevice, list_devices
from pyiommufd.host.persistent.identity import IDS, Identity, identify, pci_path
from pyiommufd.host.uses import forced

if TYPE_CHECKING:
    from pyiommufd.host.claims.plan import ClaimPlan

FOLDER = Path("/etc/pyiommufd/claims.d")

_VERSION = 1
_HEAD = """\
# Devices that are claimed at every boot, all of them or, where one cannot be told for certain, none: by the command
# pyiommufd claim --persistent, which the systemd unit pyiommufd.service runs.
# Made by pyiommufd claim --persist; pyiommufd release takes it back.
"""


class NewerFileError(ClaimError):
    """The file of a persistent claim is of a newer version."""


@dataclass(frozen=True, slots=True)
class PersistentClaim:
    """A claim that is made at every boot.

    Attributes:
        file: Where it is on record.
        wanted: The devices that were asked for.
        companions: The other devices of their groups, but for bridges.
        force: The kinds of refusals that it overrides.
        user: The name of the user who is given the nodes, or None.
        driver: The vfio driver for the devices that were asked for; None: the one that is chosen by itself.
    """

    file: Path
    wanted: tuple[Identity, ...]
    companions: tuple[Identity, ...] = ()
    force: tuple[str, ...] = ()
    user: str | None = None
    driver: str | None = None

    def may_take(self, device: HostDevice, among: Sequence[HostDevice] | None = None) -> bool:
        """Whether the claim takes a device, or the device is where one was that cannot be identified for certain now.

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

    @property
    def text(self) -> str:
        """What its file holds.

        Raises:
            ClaimError: A string is not text, as a name of bytes that are not UTF-8.
        """
        try:
            return self._toml()
        except UnicodeEncodeError as error:
            raise ClaimError(f"{self.file} cannot hold {error.object!r}: that is not text") from None

    def _toml(self) -> str:
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
        ClaimError: A device is not a PCI device, or is in a persistent claim already; or what it is known by, or the
            user's name, is not text.
    """
    folder = FOLDER if folder is None else folder
    taken, among = plan.endpoints, list_devices("pci")
    for file in files(folder):
        claim = read(file)
        for device in (device for device in taken if claim.may_take(device, among)):
            raise ClaimError(
                f"{device.name} is claimed at boot already, by {file}",
                Fix(f"release([{device.name!r}]) first", f"pyiommufd release {device.name} first"),
            )
    known = {device: identify(device, among) for device in taken}
    for device, identity in known.items():
        if (found := identity.find(among)) != device:
            raise ClaimError(f"{device.name} would not be found again: {identity} is {found.name}")
    claim = PersistentClaim(
        _free_name(folder, plan.devices[0].name, reserved),
        tuple(known[device] for device in plan.devices),
        tuple(identity for device, identity in known.items() if device not in plan.devices),
        tuple(sorted(plan.force)),
        user,
        plan.driver,
    )
    claim.text  # noqa: B018 - what cannot be put on record is found now, before anything is done
    return claim


def files(folder: Path | None = None) -> list[Path]:
    """The files of the persistent claims."""
    return sorted((FOLDER if folder is None else folder).glob("*.toml"))


def read(file: Path) -> PersistentClaim:
    """The persistent claim of a file.

    Raises:
        ClaimError: It is none, or one of a later version; or somebody other than root may have written it.
    """
    try:
        status = file.stat()
        # Root acts on what it says.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ClaimError(
                f"{file} can be written by users other than root: it is not used; look at it, then chmod and chown"
            )
        data = _parsed(file.read_text(encoding="utf-8"))
        version = data.pop("version", None)
        if type(version) is not int or version < _VERSION:
            raise ValueError(f"version {version!r}")
        if version > _VERSION:
            raise NewerFileError(f"{file} has been made by a newer pyiommufd (version {version}): use that one")
        claim = PersistentClaim(
            file,
            tuple(map(_identity, decode(list[dict[str, str | list[str]]], data.pop("device", [])))),
            tuple(map(_identity, decode(list[dict[str, str | list[str]]], data.pop("companion", [])))),
            tuple(sorted(forced(decode(list[str], data.pop("force", []))))),
            decode(str | None, data.pop("user", None)),
            decode(str | None, data.pop("driver", None)),
        )
        if data or not claim.wanted:
            raise ValueError(f"unknown key {min(data)}" if data else "no device")
    except (OSError, ValueError) as error:
        raise ClaimError(f"{file} is not a persistent claim ({error}); look at it and remove it") from error
    return claim


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("arrays or tables within one another, too deep to be read") from None


def _identity(table: dict[str, Any]) -> Identity:
    keys = ("name", "path", *IDS)
    if missing := [key for key in keys if key not in table]:
        raise ValueError(f"a device has no {missing[0]}")
    if unknown := table.keys() - {*keys, "serial", "twins"}:
        raise ValueError(f"unknown key {min(unknown)}")
    name, path, *ids = (decode(str, table[key]) for key in keys)
    twins = decode(list[str], table.get("twins", []))
    return Identity(name, tuple(ids), path, decode(str | None, table.get("serial")), tuple(twins))


def _free_name(folder: Path, name: str, reserved: Collection[str]) -> Path:
    safe = "".join(letter if letter.isalnum() or letter in ".:-_" else "_" for letter in name)
    taken = {file.stem for file in (*files(folder), *map(Path, reserved))}
    number = 1
    while (stem := safe if number == 1 else f"{safe}-{number}") in taken:
        number += 1
    return folder / f"{stem}.toml"


def _toml(value: str | list[str]) -> str:
    # TOML's basic strings and arrays of them are written as JSON writes them, but for DEL, which TOML wants escaped.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    text.encode()  # half of a surrogate pair is not text
    return text
