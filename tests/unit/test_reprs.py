"""The repr of what is public: a line that names the thing."""

from __future__ import annotations

import enum
from pathlib import Path
from types import FunctionType

import pytest

import pyiommufd
import pyiommufd.vmm
from pyiommufd import (
    AMD,
    ArmSMMUv3,
    AtomicFlag,
    CapabilityID,
    Cause,
    ClaimRefusedError,
    DependentDevice,
    DeviceEvent,
    DeviceFlag,
    DeviceInfo,
    DMABuffer,
    ExtendedCapabilityID,
    GroupNotViableError,
    HotResetInfo,
    HWCapability,
    HWInfo,
    HWInfoType,
    IntelVTd,
    IOVARange,
    MmapArea,
    MSIXMappable,
    PagePermission,
    PageRequest,
    PageRequestGroup,
    PCIAtomics,
    PCICapability,
    PhysicalRange,
    Refusal,
    RegionType,
    SparseMmap,
    UnknownCapability,
    User,
    find_device,
    find_group,
    plan_claim,
)
from pyiommufd.host.checks.finding import Finding, State
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.claim import Claim
from pyiommufd.host.claims.rebind import plan_rebind
from pyiommufd.host.claims.record import ClaimRecord
from pyiommufd.host.claims.status import ClaimStatus
from pyiommufd.host.discovery.vfs import VFs
from pyiommufd.host.holders import Holder
from pyiommufd.host.overview.details import device_details
from pyiommufd.host.overview.topology import look_at_topology
from pyiommufd.kernel.device.device_info import ZPCIUtil
from pyiommufd.printable import listed, shortened
from tests.escapes import CONTROL_TEXT, invisible
from tests.fake_sysfs import FakeSysfs

LONGEST = 160
LONG = "what is wrong, in a sentence that does not end " * 9


def public_classes() -> dict[str, type]:
    """What is made by users or given to them; enumerations have their own reprs, and protocols have no objects."""
    everything = {name: getattr(module, name) for module in (pyiommufd, pyiommufd.vmm) for name in module.__all__}
    return {
        name: each
        for name, each in everything.items()
        if isinstance(each, type) and not issubclass(each, enum.Enum) and not getattr(each, "_is_protocol", False)
    }


@pytest.mark.parametrize("name", sorted(public_classes()))
def test_class_has_a_repr_of_its_own(name: str) -> None:
    made = public_classes()[name].__repr__
    assert isinstance(made, FunctionType), "that of object, or of another builtin"
    assert not hasattr(made, "__wrapped__"), "a dataclass's dump of all fields"


VALUES = [
    (IOVARange(0, 0xFFF), "<IOVARange 0x0..0xfff>"),
    (PhysicalRange(0x1000, 0x2000), "<PhysicalRange 0x1000..0x2fff>"),
    (HWInfo(HWInfoType.AMD, HWCapability(0), 0, b"", None), "<HWInfo AMD, no PASIDs, no capabilities>"),
    (
        HWInfo(HWInfoType.INTEL_VTD, HWCapability.DIRTY_TRACKING, 20, bytes(24), IntelVTd(0, 1, 2)),
        "<HWInfo INTEL_VTD, PASIDs of 20 bits, DIRTY_TRACKING>",
    ),
    (HWInfo(99, HWCapability(1 << 40), 0, bytes(99), None), "<HWInfo type 99, no PASIDs, 0x10000000000>"),
    (
        IntelVTd(0, 0xD2008C222F0686, 0xF00F42),
        "<IntelVTd flags 0x0, capabilities 0xd2008c222f0686, extended_capabilities 0xf00f42>",
    ),
    (AMD(0x10, 0), "<AMD efr 0x10, efr2 0x0>"),
    (
        ArmSMMUv3(0, (0xFFFFFFFF,) * 6, 0x43B, 1),
        f"<ArmSMMUv3 flags 0x0, idr {', '.join(['0xffffffff'] * 6)}, iidr 0x43b, aidr 0x1>",
    ),
    (
        HotResetInfo((DependentDevice("0000:02:01.0", True, 3), DependentDevice("0000:02:03.0", False, None))),
        "<HotResetInfo of 0000:02:01.0, 0000:02:03.0, not owned: 0000:02:03.0>",
    ),
    (DependentDevice("0000:02:01.0", True, 3), "<DependentDevice 0000:02:01.0, owned, id 3>"),
    (DependentDevice("0000:02:03.0", False, None), "<DependentDevice 0000:02:03.0, not owned>"),
    (
        DeviceInfo(DeviceFlag.PCI | DeviceFlag.RESET, 9, 5, (PCIAtomics(AtomicFlag.COMP32),)),
        "<DeviceInfo RESET|PCI, 9 regions, 5 types of interrupt, PCIAtomics>",
    ),
    (PCIAtomics(AtomicFlag.COMP32 | AtomicFlag.COMP64), "<PCIAtomics flags COMP32|COMP64>"),
    (ZPCIUtil(bytes(900)), "<ZPCIUtil util_str 900 bytes>"),
    (UnknownCapability(9, 1, bytes(900)), "<UnknownCapability id 0x9, version 0x1, data 900 bytes>"),
    (MmapArea(0x1000, 0x3000), "<MmapArea 0x1000..0x3fff>"),
    (SparseMmap((MmapArea(0, 16), MmapArea(32, 16))), "<SparseMmap areas 0x0..0xf, 0x20..0x2f>"),
    (RegionType(1, 2), "<RegionType type 0x1, subtype 0x2>"),
    (MSIXMappable(), "<MSIXMappable>"),
    (
        PageRequest(None, 7, PagePermission.READ | PagePermission.WRITE, 0x5000, 0),
        "<PageRequest of an unknown device, PASID 7: READ|WRITE at 0x5000>",
    ),
    (
        PageRequestGroup((PageRequest(None, None, PagePermission.READ, 0x5000, 0),), 3, 1),
        "<PageRequestGroup 3 of an unknown device: READ at 0x5000>",
    ),
    (
        PageRequestGroup((PageRequest(None, None, PagePermission.READ, 0x5000, 0),) * 3, 3, 1),
        "<PageRequestGroup 3 of an unknown device: READ at 0x5000, and 2 more requests>",
    ),
    (PCICapability(CapabilityID.MSIX, 0x40), "<PCICapability MSIX at 0x40>"),
    (PCICapability(0x99, 0x40), "<PCICapability 0x99 at 0x40>"),
    (
        PCICapability(ExtendedCapabilityID.ACS, 0x100, 1, True),
        "<PCICapability ACS at 0x100, version 1, extended>",
    ),
    (User("joe", 1000), "<User joe (uid 1000)>"),
    (Refusal("0000:02:03.0", "mounted", "it has /"), "<Refusal 0000:02:03.0: it has / [mounted]>"),
    (Cause("it is broken", "seen", "mend it"), "<Cause it is broken (seen); mend it>"),
    (
        Finding("d3cold", State.WARNING, "they may lose power", devices=("0000:02:01.0", "0000:02:02.0")),
        "<Finding d3cold of 0000:02:01.0, 0000:02:02.0: warning, they may lose power>",
    ),
    (Holder(1, "init", "/dev/vfio/5", "fd 3"), "<Holder pid 1 (init) holds /dev/vfio/5 by fd 3>"),
    (VFs(0, 0, ()), "<VFs 0 of 0>"),
    (
        ClaimStatus(("0000:02:01.0",), (), (5,), "kept", None, "pid 7", None, None, None, ("x",)),
        "<ClaimStatus of 0000:02:01.0: kept, by pid 7, 1 stuck>",
    ),
    (
        GroupNotViableError("VFIO_DEVICE_BIND_IOMMUFD", 1, "0000:02:01.0", (Cause("why"),)),
        "<GroupNotViableError: VFIO_DEVICE_BIND_IOMMUFD on 0000:02:01.0: EPERM (Operation not permitted)>",
    ),
    (ClaimRefusedError((Refusal("x", "y", LONG),)), "<ClaimRefusedError: the claim is refused:>"),
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=lambda value: type(value).__name__)
def test_values(value: object, text: str) -> None:
    assert repr(value) == text


@pytest.mark.parametrize(
    "value",
    [
        *[value for value, _ in VALUES],
        Refusal("0000:02:03.0", "held", LONG),
        Cause(LONG, LONG, LONG),
        Finding("reset", State.MISSING, LONG, LONG, LONG, (CONTROL_TEXT, "0000:02:03.0") * 40),
        Holder(1, CONTROL_TEXT, LONG, CONTROL_TEXT),
        HotResetInfo((DependentDevice("0000:02:03.0", False, None),) * 99),
        SparseMmap((MmapArea(1 << 60, 1 << 60),) * 99),
        DeviceInfo(DeviceFlag(0xFFFFFFFF), 9, 5, (UnknownCapability(1, 1, bytes(99)),) * 99),
        pyiommufd.ClaimError(LONG),
    ],
    ids=lambda value: type(value).__name__,
)
def test_is_a_line(value: object) -> None:
    text = repr(value)
    assert text.startswith(f"<{type(value).__name__}")
    assert text.endswith(">")
    assert len(text) < LONGEST
    assert not invisible(text)


def test_what_is_found_on_a_machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "none")
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    fake.pci("0000:01:00.0", group=5, class_code=0x060400, driver="pcieport")
    fake.pci("0000:02:01.0", parent="0000:01:00.0", group=5, driver="vfio-pci", cdev=0)
    fake.pci("0000:02:02.0", parent="0000:01:00.0", group=5)
    fake.pci("0000:02:03.0", parent="0000:01:00.0", group=5, driver="virtio-pci")
    host, other = find_device("0000:02:01.0"), find_device("0000:02:03.0")
    assert repr(host) == "<HostDevice pci 0000:02:01.0, vfio-pci, group 5>"
    assert repr(host.group) == str(host.group) == "<Group 5: 4 devices, not viable: 0000:02:03.0 on virtio-pci>"
    assert repr(find_group(5).reserved_regions[0]) == "<ReservedRegion 0xfee00000..0xfeefffff msi>"
    plan = plan_claim(host)
    assert repr(plan) == "<ClaimPlan of 0000:02:01.0: 2 moves, 3 companions>"
    assert [repr(move) for move in plan.moves] == [
        "<Move 0000:02:02.0: no driver -> vfio-pci>",
        "<Move 0000:02:03.0: virtio-pci -> vfio-pci>",
    ]
    assert repr(plan.steps[-1]) == "<Step 0000:02:03.0: bind to vfio-pci>"
    claim = Claim(plan, ClaimRecord.begin([5], [host.name]))
    assert repr(claim) == "<Claim of 0000:02:01.0>"
    assert repr(device_details(other)) == "<DeviceDetails of 0000:02:03.0, claimable>"
    event = DeviceEvent("bind", "pci", host.name, host.sys_path, host)
    assert repr(event) == "<DeviceEvent bind pci 0000:02:01.0>"
    event = DeviceEvent("add", "vfio-dev", "vfio0", host.sys_path / "vfio-dev/vfio0", host)
    assert repr(event) == "<DeviceEvent add vfio-dev vfio0, of 0000:02:01.0>"
    assert repr(plan_rebind(host)).startswith("<RebindPlan of 0000:02:01.0: ")
    topology = look_at_topology()
    assert repr(topology) == "<Topology of 4 devices in 1 group>"
    assert repr(topology.groups[0]).startswith("<GroupBox 5: 0000:01:00.0, 0000:02:01.0")
    assert all(len(repr(node)) < LONGEST for node in topology.nodes())


def test_of_many_a_few_are_named(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RUN", tmp_path / "none")
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir()
    names = [f"0000:02:{slot:02x}.0" for slot in range(32)]
    for name in names:
        fake.pci(name, group=5, driver="virtio-pci")
    plan = plan_claim(names)
    for each in (find_group(5), plan, Claim(plan, ClaimRecord.begin([5], names))):
        assert len(repr(each)) < LONGEST
        assert " more" in repr(each)


def test_equality_and_hash_are_those_of_before(fake: FakeSysfs) -> None:
    fake.pci("0000:02:01.0", group=5)
    assert find_group(5) == find_group(5)
    assert len({find_group(5), find_group(5)}) == 1
    assert sorted([IOVARange(2, 3), IOVARange(0, 1)])[0] == IOVARange(0, 1)
    assert len({Refusal("x", "y", "z"), Refusal("x", "y", "z")}) == 1


def test_buffers() -> None:
    with DMABuffer(5000) as buffer:
        assert repr(buffer) == "<DMABuffer 0x2000 bytes>"
    assert repr(buffer) == "<DMABuffer closed>"
    with DMABuffer(4096, memfd=True) as buffer:
        assert repr(buffer) == f"<DMABuffer 0x1000 bytes, memfd {buffer.fileno()}>"


def test_parts() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcd") == "a, b, c and 1 more"
    assert listed(()) == ""
    assert shortened("x\n" * 200).startswith("x\\x0ax")
    assert len(shortened(LONG)) <= 130
