"""Checks before a claim that every bind would fail: on machines that a guest cannot emulate."""

from __future__ import annotations

import pytest

from pyiommufd import ClaimRefusedError, find_device, list_devices, plan_claim
from pyiommufd.errors import override
from pyiommufd.host.overview.standing import Standing, standings
from tests.fake_sysfs import FakeSysfs

NAME = "0000:00:01.0"


@pytest.fixture
def machine(fake: FakeSysfs) -> FakeSysfs:
    """One with vfio, whose IOMMU remaps interrupts; two devices in groups of their own."""
    fake.pci(NAME, group=1)
    fake.pci("0000:00:02.0", group=2)
    (fake.proc / "devices").write_text("Character devices:\n511 vfio-dev\n")
    (fake.proc / "interrupts").write_text(" 24:  0  IR-PCI-MSIX-0000:00:01.0  0-edge  x\n")
    return fake


def kinds() -> list[str]:
    return [refusal.kind for refusal in plan_claim(NAME).refusals]


def way_out() -> str:
    return override(plan_claim(NAME).refusals).command


def standing() -> list[Standing]:
    return [*standings(list_devices()).values()]


def test_nothing_in_the_way(machine: FakeSysfs) -> None:
    assert kinds() == []
    assert standing() == [Standing.CLAIMABLE] * 2


@pytest.mark.parametrize(("kind", "refused"), [("direct", True), ("direct-relaxable", False), ("msi", False)])
def test_memory_that_firmware_keeps(machine: FakeSysfs, kind: str, refused: bool) -> None:
    """A line of ``reserved_regions`` is as of Linux 7.3, drivers/iommu/iommu.c, iommu_group_show_resv_regions."""
    machine.file("kernel/iommu_groups/1/reserved_regions", f"0x000000007b800000 0x000000007fffffff {kind:>4}")
    assert kinds() == (["reserved"] if refused else [])
    assert standing() == [Standing.UNBINDABLE if refused else Standing.CLAIMABLE, Standing.CLAIMABLE]
    if refused:
        plan = plan_claim(NAME)
        assert "0x7b800000..0x7fffffff" in plan.refusals[0].reason
        with pytest.raises(ClaimRefusedError, match="group 1"):
            plan.apply()
        assert plan_claim(NAME, force=["reserved"]).refusals == ()
        assert way_out() == (
            "to override: --force reserved; with reserved forced, binds are refused all the same, as those through "
            "VFIO's groups are"
        )


@pytest.mark.parametrize("allowed", ["N", "Y", None])
def test_interrupts_that_are_not_isolated(machine: FakeSysfs, allowed: str | None) -> None:
    (machine.proc / "interrupts").write_text(" 24:  0  PCI-MSIX-0000:00:01.0  0-edge  x\n")
    if allowed is not None:
        machine.file("module/iommufd/parameters/allow_unsafe_interrupts", allowed)
    assert kinds() == ([] if allowed == "Y" else ["isolated-msi"])
    assert standing() == [Standing.CLAIMABLE if allowed == "Y" else Standing.UNBINDABLE] * 2
    assert plan_claim(NAME, force=["isolated-msi"]).refusals == ()
    if allowed != "Y":
        assert way_out().startswith(
            "to override: --force isolated-msi; with isolated-msi forced, binds are refused until"
        )
        assert "vfio_iommu_type1.allow_unsafe_interrupts" in way_out()


def test_kernel_without_nodes(machine: FakeSysfs) -> None:
    (machine.proc / "devices").write_text("Character devices:\n511 vfio\n")
    (machine.root / "module/vfio").mkdir()
    assert kinds() == ["cdev"]
    assert standing() == [Standing.UNBINDABLE] * 2
    assert plan_claim(NAME, force=["cdev"]).refusals == ()
    assert way_out().startswith("to override: --force cdev; with cdev forced, it is of use through VFIO's groups only")


def test_what_is_not_told_is_no_reason(machine: FakeSysfs) -> None:
    """vfio is not loaded, and the machine has no interrupt of a device yet."""
    (machine.proc / "devices").write_text("")
    (machine.proc / "interrupts").write_text("")
    assert kinds() == []


def test_no_iommu(machine: FakeSysfs) -> None:
    machine.pci("0000:00:03.0", driver="e1000e")
    plan = plan_claim(["0000:00:03.0", NAME])
    assert [(refusal.device, refusal.kind) for refusal in plan.refusals] == [("0000:00:03.0", "noiommu")]
    forced = plan_claim("0000:00:03.0", force=["noiommu"])
    assert forced.refusals == ()
    assert forced.outline == ("no group:", "  0000:00:03.0: e1000e -> vfio-pci")
    assert standing() == [Standing.CLAIMABLE, Standing.CLAIMABLE, Standing.NO_GROUP]


def test_a_second_claim_of_a_device_without_an_iommu(machine: FakeSysfs) -> None:
    """On vfio it has a group, and still no IOMMU; interrupts are none of its concern."""
    machine.pci("0000:00:03.0", driver="vfio-pci", group=0, cdev=1, noiommu=True)
    machine.file("module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
    plan = plan_claim("0000:00:03.0")
    assert [(refusal.device, refusal.kind, refusal.needs) for refusal in plan.refusals] == [
        ("0000:00:03.0", "noiommu", "")
    ]
    forced = plan_claim("0000:00:03.0", force=["noiommu"])
    assert (forced.refusals, forced.stays) == ((), (find_device("0000:00:03.0"),))


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("N", "echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"),
        (None, "boot a kernel with CONFIG_VFIO_NOIOMMU"),
        ("Y", ""),
    ],
)
def test_force_for_want_of_an_iommu_says_what_it_takes(fake: FakeSysfs, mode: str | None, first: str) -> None:
    fake.pci("0000:00:03.0", driver="e1000e")
    (fake.root / "module/vfio").mkdir()
    if mode is not None:
        fake.file("module/vfio/parameters/enable_unsafe_noiommu_mode", mode)
    once = f", once vfio's enable_unsafe_noiommu_mode is on ({first})" if first else ""
    assert override(plan_claim("0000:00:03.0").refusals).command == (
        f"to override{once}: --force noiommu; with noiommu forced, DMA of the device reaches all of memory, "
        "and to open it takes CAP_SYS_RAWIO"
    )
