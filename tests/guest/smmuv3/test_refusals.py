"""What the SMMUv3 driver refuses of a VM: each with the field, the entry or the object that it is for."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import (
    HWPT,
    IOAS,
    VIOMMU,
    AlreadyMappedError,
    Device,
    InUseError,
    InvalidationError,
    IoctlError,
    NestedHWPT,
    NotFoundError,
    SMMUv3Command,
    SMMUv3Stage1,
    UnsupportedError,
    VDevice,
    VEventQueue,
    VEventType,
    VIOMMUType,
    uapi,
)
from pyiommufd.testing.smmuv3 import bypass_entry, stage1_entry
from pyiommufd.uapi import raw
from tests.guest.smmuv3.bench import ASID, DESCRIPTOR, STREAM, TARGET, Bench

STE, STE_1 = stage1_entry(DESCRIPTOR).ste

ENTRIES = {
    "Config is 0b110": (1 | 6 << 1, 0),
    "Config is 0b111": (STE | 7 << 1, STE_1),
    "EATS is 0b10": (STE, STE_1 | 2 << 28),
    "S2FWB is 0x1": (1 | 4 << 1, 1 << 25),
    "STRW is 0x2": (STE, STE_1 | 2 << 30),
    "the bits 0x10000000000000 of word 0": (STE | 1 << 52, STE_1),
}

COMMANDS = {
    "opcode 0x3": SMMUv3Command((0x3 | STREAM << 32, 1)),  # CFGI_STE
    "opcode 0x46": SMMUv3Command((0x46, 0)),  # SYNC
    "the bits 0x400 of word 0": SMMUv3Command((0x12 | ASID << 48 | 1 << 10, TARGET)),
    "NUM, SCALE and TTL": SMMUv3Command((0x12 | ASID << 48 | 3 << 12, TARGET)),
    "TG without": SMMUv3Command((0x12 | ASID << 48, TARGET | 1 << 10)),
    "CFGI_CD names a device": SMMUv3Command.cfgi_cd(STREAM + 1),
}


# Stream table entries


@pytest.mark.parametrize(("cause", "ste"), ENTRIES.items(), ids=list(ENTRIES))
def test_a_refused_entry_names_the_field(viommu: VIOMMU, cause: str, ste: tuple[int, int]) -> None:
    with pytest.raises(IoctlError) as caught:
        viommu.alloc_nested(SMMUv3Stage1(ste))
    assert (caught.value.errno, caught.value.request) == (errno.EIO, "IOMMU_HWPT_ALLOC")
    assert cause in str(caught.value.causes[0])
    viommu.alloc_nested(SMMUv3Stage1((ste[0] & ~1, ste[1])))  # not valid: nobody looks at the rest


def test_page_tables_take_a_viommu(parent: HWPT) -> None:
    with pytest.raises(IoctlError) as caught:
        parent.alloc_nested(bypass_entry())
    assert caught.value.causes
    assert parent.users == ()


def test_attach_before_the_virtual_device(bench: Bench, viommu: VIOMMU) -> None:
    nested = viommu.alloc_nested(stage1_entry(DESCRIPTOR))
    with pytest.raises(NotFoundError, match="alloc_vdevice") as caught:
        bench.device.attach(nested)
    assert caught.value.errno == errno.ENOENT
    assert "no virtual device of this device" in str(caught.value.causes[0])
    viommu.alloc_vdevice(bench.device, STREAM)
    bench.device.attach(nested)
    assert bench.lands() == 1


# Commands


@pytest.mark.parametrize(("cause", "command"), COMMANDS.items(), ids=list(COMMANDS))
def test_a_refused_command_names_entry_and_field(
    viommu: VIOMMU, vdevice: VDevice, cause: str, command: SMMUv3Command
) -> None:
    good = SMMUv3Command.tlbi_asid(ASID)
    for before in (0, 1, 3):
        with pytest.raises(InvalidationError, match=f"entry {before + 1} of {before + 2}") as caught:
            viommu.invalidate([*[good] * before, command, good])
        assert (caught.value.errno, caught.value.done) == (errno.EIO, before)
        assert cause in str(caught.value.causes[0])


def test_the_driver_counts_commands_that_it_has_not_done(bench: Bench, stage1: NestedHWPT) -> None:
    """It passes on 63 at a time, and what is left at the end (Linux 7.3, arm_vsmmu_cache_invalidate)."""
    good, wrong = SMMUv3Command.tlbi_va(TARGET, ASID), SMMUv3Command.cfgi_cd(STREAM + 1)
    assert bench.lands() == 1
    bench.lead(2)
    for count, page in ((1, 1), (62, 1), (63, 2)):
        data = bytearray(bytes(good) * count + bytes(wrong))
        request = raw.struct(
            "iommu_hwpt_invalidate",
            hwpt_id=bench.viommu.id,
            data_uptr=raw.address_of(data),
            data_type=good.type,
            entry_len=16,
            entry_num=count + 1,
        )
        with pytest.raises(IoctlError, match="EIO"):
            raw.ioctl(bench.device.iommufd.fileno(), uapi.IOMMU_HWPT_INVALIDATE, request)
        assert (request.entry_num, bench.lands()) == (count, page)


def test_what_is_said_to_be_done_is_done(bench: Bench, stage1: NestedHWPT) -> None:
    good, wrong = SMMUv3Command.tlbi_va(TARGET, ASID), SMMUv3Command.cfgi_cd(STREAM + 1)
    for page, count in enumerate((1, 62, 64), start=1):
        assert bench.lands() == page
        bench.lead(page + 1)
        with pytest.raises(InvalidationError, match=f"entry {count + 1} of {count + 2}") as caught:
            bench.invalidate(*[good] * count, wrong, good)
        assert caught.value.done == count
        assert bench.lands() == page + 1


def test_no_commands_are_nothing(viommu: VIOMMU) -> None:
    viommu.invalidate([])


def test_commands_go_to_the_viommu(bench: Bench, stage1: NestedHWPT) -> None:
    with pytest.raises(IoctlError):
        stage1.invalidate([SMMUv3Command.tlbi_all()])


# Objects


def test_viommus_of_other_kinds_and_parents(lone_device: Device, parent: HWPT, ioas: IOAS) -> None:
    with pytest.raises(UnsupportedError):
        lone_device.alloc_viommu(parent, VIOMMUType.TEGRA241_CMDQV)
    with pytest.raises(IoctlError, match="nesting parent"):
        lone_device.alloc_viommu(lone_device.alloc_hwpt(ioas), VIOMMUType.ARM_SMMUV3)


def test_one_of_each(lone_device: Device, viommu: VIOMMU, vdevice: VDevice, events: VEventQueue) -> None:
    with pytest.raises(AlreadyMappedError, match=lone_device.name):
        viommu.alloc_vdevice(lone_device, STREAM + 1)
    with pytest.raises(AlreadyMappedError):
        viommu.alloc_event_queue(VEventType.ARM_SMMUV3)


def test_what_is_attached_is_not_closed(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    for one in (stage1, bench.viommu, bench.parent, bench.ioas):
        with pytest.raises(InUseError, match=bench.device.name):
            one.close()
    assert bench.lands() == 1
    bench.device.detach()
    bench.viommu.close()
    assert (stage1.closed, events.closed, bench.parent.closed) == (True, True, False)
