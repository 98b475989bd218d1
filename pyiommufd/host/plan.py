"""What a claim would change, said before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClaimError, Refusal
from . import drivers, uses
from .devices import HostDevice, as_device
from .groups import Group, is_safe

if TYPE_CHECKING:
    from .claim import Claim


@dataclass(frozen=True, slots=True)
class Move:
    """What a claim does with one device.

    Attributes:
        device: The device, as it is now.
        driver: The driver that it will be on; None: it is left without one, as vfio-pci takes no bridges.
    """

    device: HostDevice
    driver: str | None

    def __str__(self) -> str:
        before = self.device.driver or "no driver"
        return f"{self.device.name}: {before} -> {self.driver or 'no driver'}"


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """What it takes to make whole IOMMU groups free for iommufd. Made by `plan_claim`; changes nothing itself.

    Attributes:
        devices: The devices that were asked for.
        groups: Their IOMMU groups.
        moves: Each device that changes its driver, in the order in which it is done.
        stays: Members that are left as they are, being safe beside a bound device.
        refusals: What speaks against it and was not named to ``force``.
        force: The kinds of refusals that the plan goes ahead in spite of.
    """

    devices: tuple[HostDevice, ...]
    groups: tuple[Group, ...]
    moves: tuple[Move, ...]
    stays: tuple[HostDevice, ...]
    refusals: tuple[Refusal, ...]
    force: frozenset[str] = frozenset()

    @property
    def companions(self) -> tuple[HostDevice, ...]:
        """The members of the groups that nobody named, and that the claim concerns all the same."""
        return tuple(d for group in self.groups for d in group.devices if d not in self.devices)

    def apply(self) -> Claim:
        """Carry the plan out, all of it or nothing.

        Returns:
            The claim, a context manager that gives everything back.

        Raises:
            ClaimRefusedError: The host uses one of the devices, or another claim has it.
            ClaimError: A step failed, or the caller is not root; what had been done is undone.
            DeviceNotFoundError: A device has gone since the plan was made.
        """
        from .claim import carry_out

        return carry_out(self)

    @property
    def outline(self) -> tuple[str, ...]:
        """The groups and what becomes of each member, a line each."""
        moves = {move.device: str(move) for move in self.moves}
        lines = []
        for group in self.groups:
            lines.append(f"group {group.id}:")
            for device in group.devices:
                text = moves.get(device, f"{device.name}: stays on {device.driver or 'no driver'}")
                lines.append(f"  {text}{'' if device in self.devices else '  (companion)'}")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join([*self.outline, *(f"refused: {refusal}" for refusal in self.refusals)])


def plan_claim(
    devices: Iterable[HostDevice | str | Path] | HostDevice | str | Path, *, force: Collection[str] = ()
) -> ClaimPlan:
    """Plan how to take devices, and with them their whole IOMMU groups, from the host.

    Args:
        devices: What to claim: `HostDevice` objects, names or paths; or one of these.
        force: The kinds of refusals to go ahead in spite of (`pyiommufd.errors.Refusal.kind`), such as
            ``mounted``. Each has to be named.

    Raises:
        ClaimError: A device has no IOMMU group, or no vfio driver takes it.
        DeviceNotFoundError: There is no such device.
        ValueError: No device was named.
    """
    if isinstance(devices, HostDevice | str | Path):
        devices = [devices]
    if isinstance(force, str):
        force = [force]
    wanted = tuple(dict.fromkeys(as_device(device) for device in devices))
    if not wanted:
        raise ValueError("no device to claim was named")
    groups: dict[int, Group] = {}
    for device in wanted:
        group = device.group
        if group is None:
            raise ClaimError(
                f"{device.name} has no IOMMU group: the IOMMU is off or does not cover it "
                "(firmware: VT-d or AMD-Vi on; kernel command line: intel_iommu=on)"
            )
        groups[group.id] = group
    moves, stays, refused = [], [], []
    for device in (device for group in groups.values() for device in group.devices):
        if stays_put(device, device in wanted):
            stays.append(device)
            continue
        if device in wanted and device.is_bridge:
            raise ClaimError(f"{device.name} is a bridge: vfio-pci takes none; name a device behind it")
        moves.append(Move(device, None if device.is_bridge else drivers.vfio_driver_for(device)))
        refused += [refusal for refusal in uses.refusals(device) if refusal.kind not in force]
    # Endpoints before bridges, so that giving back, the other way round, has the bridges at work first.
    moves.sort(key=lambda move: move.device.is_bridge)
    return ClaimPlan(wanted, tuple(groups.values()), tuple(moves), tuple(stays), tuple(refused), frozenset(force))


def stays_put(device: HostDevice, wanted: bool) -> bool:
    """Whether a claim leaves this member of a group as it is."""
    if device.on_vfio:
        return True
    if device.is_bridge:
        return is_safe(device) and not wanted
    # pci-stub is where somebody has put it on purpose; a driverless device goes along, since a hot reset
    # wants every device of its set on a vfio driver.
    return device.driver == "pci-stub" and not wanted
