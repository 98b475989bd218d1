"""Making the persistent claims: what the systemd unit runs at boot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyiommufd.errors import ClaimError, ClaimRefusedError, IOMMUFDError
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.claim import carry_out, claim_steps
from pyiommufd.host.claims.plan import ClaimPlan, plan_claim
from pyiommufd.host.claims.record import ClaimState
from pyiommufd.host.claims.release import recover
from pyiommufd.host.claims.steps import Report
from pyiommufd.host.discovery.devices import list_devices
from pyiommufd.host.persistent import claim_file
from pyiommufd.host.persistent.claim_file import PersistentClaim
from pyiommufd.host.users import find_user


@dataclass(frozen=True, slots=True)
class BootOutcome:
    """The outcome of one persistent claim at boot.

    Attributes:
        file: Its file; None for what an earlier run had left half done.
        devices: The names of the devices that were asked for.
        error: Why nothing of it is done, or None.
        already_claimed: Whether it had been made already.
    """

    file: Path | None
    devices: tuple[str, ...] = ()
    error: Exception | None = None
    already_claimed: bool = False


def claim_persistent(*, report: Report | None = None, dry_run: bool = False) -> list[BootOutcome]:
    """Make all persistent claims. Of each, all is done or nothing.

    What died halfway before is undone first. One that has been made already is left as it is.

    Args:
        report: Called with each step before it is taken, and with those of a roll-back.
        dry_run: Tell of the steps, and take none.

    Raises:
        ClaimError: A signal has come.
    """
    found: list[BootOutcome] = []
    try:
        recover(report=report, dry_run=dry_run)
    except (OSError, IOMMUFDError) as error:
        found.append(BootOutcome(None, error=error))
    return found + [_claim_at_boot(file, report, dry_run) for file in claim_file.files()]


def plan_again(claim: PersistentClaim) -> ClaimPlan:
    """What it takes to make a persistent claim, on this machine as it is now.

    Raises:
        ClaimRefusedError: The host uses one of the devices, or another claim has it.
        ClaimError: A device cannot be told for certain, or their groups have other members than when the claim was
            put on record.
    """
    among = list_devices("pci")
    wanted = [identity.find(among) for identity in claim.wanted]
    known = {*wanted, *(identity.find(among) for identity in claim.companions)}
    plan = plan_claim(wanted, driver=claim.driver, force=claim.force)
    now = set(plan.endpoints)
    if now != known:
        news = [f"{device.name} has joined" for device in sorted(now - known, key=str)]
        news += [f"{device.name} has left" for device in sorted(known - now, key=str)]
        raise ClaimError(
            f"the IOMMU groups are no longer what they were: {', '.join(news)}; look at it, then release the claim "
            "and make it again"
        )
    if plan.refusals:
        raise ClaimRefusedError(plan.refusals)
    return plan


def _claim_at_boot(file: Path, report: Report | None, dry_run: bool) -> BootOutcome:
    try:
        claim = claim_file.read(file)
        names = tuple(identity.name for identity in claim.wanted)
        for record in journal.records():
            if record.file == str(file) and record.state is ClaimState.KEPT:
                return BootOutcome(file, names, already_claimed=True)
        plan = plan_again(claim)
        user = None if claim.user is None else find_user(claim.user)
        if not dry_run:
            carry_out(plan, keep=True, user=user, persistent=claim, report=report)
        elif report is not None:
            for step in claim_steps(plan, user=user):
                report(step)
        return BootOutcome(file, tuple(device.name for device in plan.devices))
    except (OSError, IOMMUFDError) as error:
        return BootOutcome(file, error=error)
