"""DMA through two stages: whose tables it goes by, and from when on a change of them counts."""

from __future__ import annotations

import pytest

from pyiommufd import DMABuffer, NestedHWPT, SMMUv3Command, SMMUv3Stage1, VDevice
from pyiommufd.testing.smmuv3 import PAGE, PageTables, abort_entry, bypass_entry
from tests.guest.smmuv3.bench import (
    ASID,
    DATA,
    NOWHERE,
    SIZE,
    SOURCE,
    STREAM,
    TARGET,
    TARGET_DATA,
    Bench,
)

BY = {
    "one page of an ASID": SMMUv3Command.tlbi_va(TARGET, ASID),
    "one page": SMMUv3Command.tlbi_va(TARGET),
    "a range of an ASID": SMMUv3Command.tlbi_va(SOURCE, ASID, pages=2),
    "a range": SMMUv3Command.tlbi_va(SOURCE, pages=4),
    "a last-level entry": SMMUv3Command.tlbi_va(TARGET, ASID, leaf=True),
    "an ASID": SMMUv3Command.tlbi_asid(ASID),
    "all of stage 1": SMMUv3Command.tlbi_nh_all(),
    "everything": SMMUv3Command.tlbi_all(),
}
"""What invalidates the translation of `TARGET`."""

NOT_BY = {
    "another page": SMMUv3Command.tlbi_va(SOURCE, ASID),
    "a page of another ASID": SMMUv3Command.tlbi_va(TARGET, ASID + 1),
    "a range that ends before it": SMMUv3Command.tlbi_va(TARGET - 64 * PAGE, ASID, pages=64),
    "another ASID": SMMUv3Command.tlbi_asid(ASID + 1),
    "the context descriptor": SMMUv3Command.cfgi_cd(STREAM),
}
"""What does not."""


# Two stages


def test_data_goes_both_ways_through_both_stages(bench: Bench, stage1: NestedHWPT) -> None:
    assert bench.lands() == 1
    bench.data[PAGE : PAGE + SIZE] = b"back"
    bench.driver.copy_in(TARGET, SIZE)
    bench.driver.copy_out(SOURCE, SIZE)
    assert bench.data[:SIZE] == b"back"
    # What stage 2 alone has is no address of the device, and what stage 1 has is none of stage 2.
    assert bench.lands(TARGET_DATA + PAGE) is None
    bench.device.replace(bench.parent)
    assert bench.lands() is None
    assert bench.lands(TARGET_DATA + PAGE, DATA) == 1


def test_each_page_by_its_own_entry(bench: Bench, stage1: NestedHWPT) -> None:
    far = TARGET + (1 << 26)  # of another last-level table
    bench.lead(7, far)
    bench.lead(9, far + PAGE)
    assert [bench.lands(address) for address in (far + PAGE, far, TARGET)] == [9, 7, 1]


def test_bypass_is_stage_2_alone(bench: Bench) -> None:
    """Also without a virtual device: it has no stage 1 to invalidate, and no events."""
    bench.device.attach(bench.viommu.alloc_nested(bypass_entry()))
    assert bench.lands(TARGET_DATA + 2 * PAGE, DATA) == 2
    assert bench.lands(TARGET, DATA) is None


@pytest.mark.parametrize("entry", [abort_entry(), SMMUv3Stage1((0, 0))], ids=["abort", "not valid"])
def test_no_dma_by_an_entry_that_aborts(bench: Bench, stage1: NestedHWPT, entry: SMMUv3Stage1) -> None:
    aborts = bench.viommu.alloc_nested(entry)
    bench.device.replace(aborts)
    assert bench.lands() is None
    assert bench.lands(TARGET_DATA + PAGE, DATA) is None
    bench.device.replace(stage1)
    assert bench.lands() == 1


def test_the_page_table_is_the_devices(bench: Bench, stage1: NestedHWPT) -> None:
    assert bench.device.page_table is stage1
    assert (stage1.parent, stage1.viommu, stage1.ioas) == (bench.parent, bench.viommu, bench.ioas)


# What has changed


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in BY.items()])
def test_a_change_counts_once_it_is_invalidated(bench: Bench, stage1: NestedHWPT, command: SMMUv3Command) -> None:
    assert bench.lands() == 1
    bench.lead(2)
    assert bench.lands() == 1  # `Bench` says why always
    bench.invalidate(command)
    assert bench.lands() == 2


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in NOT_BY.items()])
def test_what_is_not_invalidated_stays(bench: Bench, stage1: NestedHWPT, command: SMMUv3Command) -> None:
    assert bench.lands() == 1
    bench.lead(2)
    bench.invalidate(command)
    assert bench.lands() == 1
    bench.invalidate(SMMUv3Command.tlbi_all())
    assert bench.lands() == 2


def test_a_long_range_ends_where_it_is_to(bench: Bench, stage1: NestedHWPT) -> None:
    first, last, after = TARGET, TARGET + 1215 * PAGE, TARGET + 1216 * PAGE  # three last-level tables
    for page, address in enumerate((first, last, after), start=1):
        bench.lead(page, address)
        assert bench.lands(address) == page
        bench.lead(page + 10, address)
    bench.invalidate(SMMUv3Command.tlbi_va(first, ASID, pages=1216))  # 19 << 6
    assert [bench.lands(address) for address in (first, last, after)] == [11, 12, 3]


def test_a_new_entry_needs_no_invalidation(bench: Bench, stage1: NestedHWPT) -> None:
    """What would fault is in no TLB (Arm DDI 0487, on TLBs)."""
    assert bench.lands(NOWHERE) is None
    bench.lead(3, NOWHERE)
    assert bench.lands(NOWHERE) == 3


def test_an_unmapped_page_is_reached_until_it_is_invalidated(bench: Bench, stage1: NestedHWPT) -> None:
    assert bench.lands() == 1
    bench.tables.unmap(TARGET)
    assert bench.lands() == 1
    bench.invalidate(SMMUv3Command.tlbi_va(TARGET, ASID))
    assert bench.lands() is None


def test_many_commands_in_one_request(bench: Bench, stage1: NestedHWPT) -> None:
    """More than the driver passes on at once (64, Linux 7.3, CMDQ_BATCH_ENTRIES)."""
    addresses = [TARGET + page * PAGE for page in range(150)]
    for address in addresses:
        bench.lead(1, address)
    some = [addresses[place] for place in (0, 62, 63, 64, 126, 149)]
    for address in some:
        assert bench.lands(address) == 1
    for address in some:
        bench.lead(2, address)
    bench.invalidate(*(SMMUv3Command.tlbi_va(address, ASID) for address in addresses))
    assert [bench.lands(address) for address in some] == [2] * len(some)


@pytest.mark.parametrize("command", [SMMUv3Command.cfgi_cd(STREAM), SMMUv3Command.cfgi_cd_all(STREAM)], ids=repr)
def test_a_descriptor_counts_once_it_is_invalidated(bench: Bench, stage1: NestedHWPT, command: SMMUv3Command) -> None:
    """It leads to other page tables, under another ASID: what was kept under the first stays, and is not used."""
    assert bench.lands() == 1
    iova = 0x140_0000
    with DMABuffer(4 * PAGE) as memory, bench.ioas.map(memory, iova=iova):
        other = PageTables(memory, iova)
        other.map(SOURCE, DATA, pages=2)
        other.map(TARGET, TARGET_DATA + 5 * PAGE)
        bench.describe(iova, ASID + 1)
        assert bench.lands() == 1  # QEMU keeps descriptors, too: smmuv3_get_config
        bench.invalidate(command)
        assert bench.lands() == 5
        bench.describe()
        bench.invalidate(command)
        assert bench.lands() == 1


# Stage 2, under an attached stage 1


def test_an_unmap_in_stage_2_stops_dma_at_once(bench: Bench, stage1: NestedHWPT) -> None:
    assert bench.lands() == 1
    bench.target.unmap()
    assert bench.lands() is None
    bench.ioas.map(bench.data, iova=TARGET_DATA)
    assert bench.lands() == 1


def test_other_memory_in_stage_2_is_reached_at_once(bench: Bench, stage1: NestedHWPT) -> None:
    assert bench.lands() == 1
    bench.target.unmap()
    with DMABuffer(4 * PAGE) as other, bench.ioas.map(other, iova=TARGET_DATA):
        bench.data[:SIZE] = b"here"
        bench.driver.copy_in(SOURCE, SIZE)
        bench.driver.copy_out(TARGET, SIZE)
        assert other[PAGE : PAGE + SIZE] == b"here"


def test_memory_that_stage_2_has_read_only(bench: Bench, stage1: NestedHWPT) -> None:
    bench.target.unmap()
    with bench.ioas.map(bench.data, iova=TARGET_DATA, writeable=False):
        assert bench.lands() is None
        bench.data[PAGE : PAGE + SIZE] = b"read"
        bench.driver.copy_in(TARGET, SIZE)
        bench.driver.copy_out(SOURCE, SIZE)
        assert bench.data[:SIZE] == b"read"


def test_what_is_attached_translates_without_its_virtual_device(
    bench: Bench, stage1: NestedHWPT, vdevice: VDevice
) -> None:
    vdevice.close()
    assert bench.lands() == 1
    bench.lead(2)
    bench.invalidate(SMMUv3Command.tlbi_all())
    assert bench.lands() == 2
