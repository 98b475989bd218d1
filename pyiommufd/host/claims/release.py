"""Giving back what is on record as claimed: what is kept, and what processes have left behind that died."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pyiommufd.errors import ClaimError, CloseError, DeviceNotFoundError, IOMMUFDError
from pyiommufd.host import durable
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.record import ClaimRecord, ClaimState
from pyiommufd.host.claims.signals import DeferredSignals
from pyiommufd.host.claims.steps import Report
from pyiommufd.host.claims.transaction import ExclusiveAccess, Transaction, exclusive_access
from pyiommufd.host.discovery.devices import DEVICES_EXPECTED, HostDevice, as_device
from pyiommufd.host.discovery.lookup import pci_address
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.host.persistent.claim_file import NewerFileError, PersistentClaim
from pyiommufd.host.worker import Worker
from pyiommufd.iterables import iterate

_log = logging.getLogger(__name__)

Devices = Iterable[HostDevice | str | Path] | HostDevice | str | Path | None


def release(
    devices: Devices = None, *, leave: Devices = None, report: Report | None = None, dry_run: bool = False
) -> list[str]:
    """Give the kept claims back that have these devices, each as a whole; see `Claim.release`.

    A claim whose release has died or failed halfway is one, too. None is made at boot any more.

    Args:
        devices: Any of a claim's devices, also by the name of one that is gone; None: all kept and persistent claims.
        leave: Devices of these claims that are left as they are, and taken off the record: what cannot be given back,
            or is not to be.
        report: Called with each step before it is taken.
        dry_run: Tell of the steps, and take none.

    Returns:
        The names of the devices that were given back.

    Raises:
        ClaimError: No kept claim has one of the devices, and nothing is released; or the caller is not root; or a newer
            version has made one of all claims.
        CloseError: Something could not be restored; the rest is. Where nothing can be, nothing is changed.
        DeviceNotFoundError: There is no such device, and no claim of one.
    """
    with _dry_run_access() if dry_run else exclusive_access() as access:
        chosen, errors = _chosen(None if devices is None else _named(devices))
        left = [] if leave is None else [_name(device, chosen) for device in _named(leave)]
        for name in left:
            if not any(name in record.names for record in chosen):
                raise ClaimError(f"{name} is not among what is to be released")
        return _undo_all(access, chosen, report, errors, dry_run=dry_run, leave=left, whole=True)


def recover(*, report: Report | None = None, dry_run: bool = False) -> list[str]:
    """Undo the claims whose process is gone, and complete the releases that died or failed halfway.

    A kept claim that is complete is left alone, and so is what a living process holds, in whatever PID namespace.

    Args:
        report: Called with each step before it is taken.
        dry_run: Tell of the steps, and take none.

    Returns:
        The names of the devices that were given back.

    Raises:
        CloseError: Something could not be restored; the rest is.
        ClaimError: The caller is not root; or a file among the records is none: the others' claims are undone.
    """
    with _dry_run_access() if dry_run else exclusive_access() as access:
        records, errors = _latest_first()
        left = []
        for record in records:
            if record.state is ClaimState.NEWER:
                _log.warning(
                    "a claim of %s was made by a newer pyiommufd: use that one", ", ".join(sorted(record.names))
                )
            elif not _is_held(record):
                left.append(record)
        # A unit without any persistent claim, as after a power cut: the undo of no claim removes it, so this does.
        if not any(record.unit for record in left):
            stray = ClaimRecord.begin()
            stray.unit = str(boot_unit.file())
            left += [stray] if any(Transaction(access, stray).unit_back()) else []
        names = _undo_all(access, left, report, errors, dry_run=dry_run)
        if not dry_run:
            durable.remove_drafts(claim_file.FOLDER)
            boot_unit.remove_draft()
        return names


def unmade(records: Iterable[ClaimRecord]) -> Iterator[tuple[ClaimRecord, PersistentClaim | ClaimError]]:
    """The persistent claims that are not made: they could not be at boot, or nobody has tried.

    Yields:
        A record of it, and what its file says, or why it says nothing.
    """
    known = {record.file for record in records}
    for file in (file for file in claim_file.files() if str(file) not in known):
        record = ClaimRecord.begin()
        record.state, record.file, record.unit = ClaimState.KEPT, str(file), str(boot_unit.file())
        try:
            yield record, claim_file.read(file)
        except ClaimError as error:
            yield record, error


@contextlib.contextmanager
def _dry_run_access() -> Iterator[ExclusiveAccess]:
    """Hold the lock, so that no claim is in progress; if there is no record folder, do not create one."""
    with journal.locked() if journal.RUN.exists() else contextlib.nullcontext(), Worker() as worker:
        yield ExclusiveAccess(worker, DeferredSignals())


def _undo_all(
    access: ExclusiveAccess,
    records: Iterable[ClaimRecord],
    report: Report | None,
    errors: Iterable[ClaimError],
    *,
    dry_run: bool,
    leave: Collection[str] = (),
    whole: bool = False,
) -> list[str]:
    names: list[str] = []
    foreign = list(errors)
    failures: list[BaseException] = []
    nothing = True
    for record in records:
        work = Transaction(access, record, report, dry_run=dry_run)
        try:
            names += work.release(leave) if whole else work.undo()
            nothing = False
        except (OSError, IOMMUFDError) as error:
            failures += error.errors if isinstance(error, CloseError) else (error,)
            nothing = nothing and work.untouched
    if failures:
        what = "nothing was changed:" if nothing else "not everything could be given back to the host:"
        raise CloseError(what, (*foreign, *failures))
    if foreign:
        raise foreign[0]
    return list(dict.fromkeys(names))


def _latest_first() -> tuple[list[ClaimRecord], list[ClaimError]]:
    """The records, latest first: if two have the same device, the oldest is restored last and so prevails."""
    records, errors = journal.read_all()
    return records[::-1], errors


def _is_held(record: ClaimRecord) -> bool:
    # Whoever carries a claim out holds the lock. This process has it, so one in progress was left behind.
    return record.state in (ClaimState.KEPT, ClaimState.NEWER) or (
        record.state is ClaimState.SESSION and journal.is_alive(record)
    )


def _chosen(devices: list[HostDevice | str | Path] | None) -> tuple[list[ClaimRecord], list[ClaimError]]:
    """The claims that have these devices, or all that are kept, and what is wrong with the others."""
    records, errors = _latest_first()
    if errors:
        raise errors[0]
    kept = [record for record in records if record.state is ClaimState.KEPT or not _is_held(record)]
    others = list(unmade(records))
    if devices is None:
        # An unreadable file is left for the administrator.
        errors = [claim for _, claim in others if isinstance(claim, ClaimError)]
        errors += [
            ClaimError(f"{', '.join(sorted(record.names))}: claimed by {journal.describe_owner(record)}")
            for record in records
            if record.state is ClaimState.NEWER
        ]
        return kept + [record for record, claim in others if not isinstance(claim, ClaimError)], errors
    chosen: list[ClaimRecord] = []
    for target in devices:
        name = _name(target, kept)
        having = [record for record in kept if name in record.names]
        having += [record for record, claim in others if _is_of(claim, Path(record.file or ""), name, target)]
        if not having:
            owner = next((record for record in records if name in record.names), None)
            if owner is None:
                as_device(target)  # says what is wrong with the name, if anything
                raise ClaimError(f"no kept claim has {name}")
            raise ClaimError(f"no kept claim has {name}: it is claimed by {journal.describe_owner(owner)}")
        chosen += [record for record in having if record not in chosen]
    return chosen, []


def _is_of(claim: PersistentClaim | ClaimError, file: Path, name: str, target: HostDevice | str | Path) -> bool:
    """Whether a claim that is not made has a device, or its file that name.

    Raises:
        NewerFileError: It is of a newer version.
    """
    if isinstance(claim, ClaimError):
        if name == file.stem and isinstance(claim, NewerFileError):
            raise claim
        return name == file.stem
    try:
        return claim.may_take(as_device(target))
    except DeviceNotFoundError:
        return any(name == identity.name for identity in (*claim.wanted, *claim.companions))


def _named(devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path) -> list[HostDevice | str | Path]:
    if isinstance(devices, HostDevice | str | Path):
        return [devices]
    return list(iterate(devices, DEVICES_EXPECTED))


def _name(device: HostDevice | str | Path, records: Iterable[ClaimRecord]) -> str:
    """The name of a device that may be gone by now; of several that are meant, of the one that these claims have."""
    try:
        return as_device(device).name
    except DeviceNotFoundError as error:
        claimed = {name for record in records for name in record.names}.intersection(error.names)
        if len(claimed) == 1:
            return claimed.pop()
        if isinstance(device, HostDevice):
            return device.name
        domain, rest = pci_address(str(device).strip()) or (None, "")
        return Path(device).name if domain is None else f"{domain}:{rest}"
