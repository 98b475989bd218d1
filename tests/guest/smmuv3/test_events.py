"""What the SMMU reports to the VM: what was wrong, with which virtual device, where; what is lost, what is not told."""

from __future__ import annotations

import pytest

from pyiommufd import (
    VIOMMU,
    LostEvents,
    NestedHWPT,
    SMMUv3Command,
    SMMUv3Event,
    SMMUv3EventType,
    SMMUv3Stage1,
    VDevice,
    VEventQueue,
    VEventType,
)
from pyiommufd.testing.smmuv3 import abort_entry, stage1_entry
from tests.guest.smmuv3.bench import (
    ASID,
    DESCRIPTOR,
    NOWHERE,
    SIZE,
    SOURCE,
    STREAM,
    TARGET,
    Bench,
    next_event,
)
from tests.patience import patience


def facts(event: SMMUv3Event) -> tuple[object, ...]:
    return event.type, event.stream_id, event.address, event.is_write


# What is wrong in stage 1


def test_an_address_that_leads_nowhere(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    assert bench.lands(NOWHERE) is None
    bench.driver.copy_in(NOWHERE + 8, SIZE)
    written, read = next_event(events), next_event(events)
    assert facts(written) == (SMMUv3EventType.F_TRANSLATION, STREAM, NOWHERE, True)
    assert facts(read) == (SMMUv3EventType.F_TRANSLATION, STREAM, NOWHERE + 8, False)
    assert [(one.sequence, one.second_stage, one.substream_id) for one in (written, read)] == [
        (0, False, None),
        (1, False, None),
    ]


def test_an_unmapped_page(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    assert bench.lands() == 1
    bench.tables.unmap(TARGET)
    bench.invalidate(SMMUv3Command.tlbi_va(TARGET, ASID))
    assert bench.lands() is None
    assert facts(next_event(events)) == (SMMUv3EventType.F_TRANSLATION, STREAM, TARGET, True)


def test_a_write_to_a_read_only_page(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    bench.lead(3, read_only=True)
    assert bench.lands() is None
    assert facts(next_event(events)) == (SMMUv3EventType.F_PERMISSION, STREAM, TARGET, True)
    bench.data[3 * 4096 : 3 * 4096 + SIZE] = b"read"
    bench.driver.copy_in(TARGET, SIZE)
    bench.driver.copy_out(SOURCE, SIZE)
    assert bench.data[:SIZE] == b"read"
    with pytest.raises(TimeoutError):
        events.read(timeout=0)


def test_an_address_that_no_smmu_has(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    bench.tables.map(TARGET, 1 << 47)  # QEMU's has 44 bits
    assert bench.lands() is None
    assert facts(next_event(events)) == (SMMUv3EventType.F_ADDR_SIZE, STREAM, TARGET, True)


def test_a_descriptor_that_is_not_valid(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    bench.describe(valid=False)
    bench.invalidate(SMMUv3Command.cfgi_cd(STREAM), SMMUv3Command.tlbi_asid(ASID))
    bench.driver.copy_out(TARGET, SIZE)
    assert facts(next_event(events)) == (SMMUv3EventType.C_BAD_CD, STREAM, None, None)
    bench.describe()
    bench.invalidate(SMMUv3Command.cfgi_cd(STREAM))
    assert bench.lands() == 1


def test_an_event_can_be_waited_for(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    with pytest.raises(TimeoutError):
        events.read(timeout=0)
    bench.driver.copy_out(NOWHERE, SIZE)
    assert isinstance(events.read(timeout=patience()), SMMUv3Event)


# The virtual device


def test_events_go_by_the_virtual_id(bench: Bench, viommu: VIOMMU, events: VEventQueue) -> None:
    """Any of 32 bits, and another one from the next attach on."""
    nested = viommu.alloc_nested(stage1_entry(DESCRIPTOR))
    for virtual_id in (0xFFFF_FFFF, 0):
        with viommu.alloc_vdevice(bench.device, virtual_id):
            bench.device.attach(nested)
            bench.driver.copy_out(NOWHERE, SIZE)
            assert next_event(events).stream_id == virtual_id
            bench.device.detach()


# What is lost, and what is not told


def test_lost_events_are_told(bench: Bench, stage1: NestedHWPT, viommu: VIOMMU) -> None:
    events = viommu.alloc_event_queue(VEventType.ARM_SMMUV3, depth=2)
    for _ in range(5):
        bench.driver.copy_out(NOWHERE, SIZE)
    read = [events.read(timeout=patience()) for _ in range(3)]
    assert [one.sequence for one in read] == [0, 1, 4]
    assert all(isinstance(one, SMMUv3Event) for one in read[:2])
    assert read[2] == LostEvents(sequence=4, count=3)
    bench.driver.copy_out(NOWHERE, SIZE)
    assert next_event(events).sequence == 5


@pytest.mark.parametrize("entry", [abort_entry(), SMMUv3Stage1((0, 0))], ids=["abort", "not valid"])
def test_an_entry_that_aborts_is_no_event(
    bench: Bench, stage1: NestedHWPT, events: VEventQueue, entry: SMMUv3Stage1
) -> None:
    """It is the kernel's entry that aborts, and that is silent; the VMM knows what it has attached."""
    bench.device.replace(bench.viommu.alloc_nested(entry))
    assert bench.lands() is None
    bench.device.replace(stage1)
    bench.driver.copy_out(NOWHERE, SIZE)
    assert next_event(events).sequence == 0


def test_what_stage_2_lacks_is_no_event(bench: Bench, stage1: NestedHWPT, events: VEventQueue) -> None:
    """It is the host's: in the kernel's log (Linux 7.3, arm_smmu_handle_event)."""
    bench.tables.map(TARGET, 0x900_0000)
    assert bench.lands() is None
    bench.driver.copy_out(NOWHERE, SIZE)
    event = next_event(events)
    assert (event.sequence, event.address) == (0, NOWHERE)


def test_events_go_on_after_their_virtual_device_is_closed(
    bench: Bench, stage1: NestedHWPT, events: VEventQueue, vdevice: VDevice
) -> None:
    """The driver looks for its number at the attach (Linux 7.3, arm_smmu_attach_prepare_vmaster)."""
    vdevice.close()
    bench.driver.copy_out(NOWHERE, SIZE)
    assert next_event(events).stream_id == STREAM
