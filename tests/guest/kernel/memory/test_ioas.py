"""Address spaces: what is mapped where, and what the kernel says to the rest."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pyiommufd import (
    IOAS,
    IOMMUFD,
    AlreadyMappedError,
    ClosedError,
    Device,
    DMABuffer,
    DMAMapping,
    InUseError,
    NotFoundError,
)
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.uapi import ioctls
from tests.guest.dma import IOVA, Arrives
from tests.guest.threads import run_all
from tests.opcodes import opcodes

PAGE = mmap.PAGESIZE


def test_map_and_unmap_are_seen_by_the_device(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, arrives: Arrives
) -> None:
    device.attach(ioas)
    assert not arrives(edu, buffer)
    mapping = ioas.map(buffer, iova=IOVA)
    assert (mapping.iova, mapping.length) == (IOVA, len(buffer))
    assert ioas.mappings == (mapping,)
    assert arrives(edu, buffer)
    mapping.unmap()
    assert not mapping.mapped
    assert not arrives(edu, buffer)


def test_remap_is_refused_with_the_mapping_in_the_way(ioas: IOAS, mapping: DMAMapping) -> None:
    with pytest.raises(AlreadyMappedError) as caught:
        ioas.map(DMABuffer(PAGE), iova=IOVA + PAGE)
    assert caught.value.errno == errno.EEXIST
    assert f"{IOVA:#x}..{IOVA + mapping.length - 1:#x}" in str(caught.value)
    assert ioas.mappings == (mapping,)


def test_mapping_across_the_one_that_is_there_is_refused(ioas: IOAS, mapping: DMAMapping) -> None:
    with pytest.raises(AlreadyMappedError):
        ioas.map(DMABuffer(8 * PAGE), iova=IOVA - PAGE)


def test_neighbouring_mappings_do_not_overlap(ioas: IOAS, mapping: DMAMapping) -> None:
    ioas.map(DMABuffer(PAGE), iova=IOVA - PAGE)
    ioas.map(DMABuffer(PAGE), iova=IOVA + mapping.length)
    assert len(ioas.mappings) == 3
    assert ioas.unmap_all() == mapping.length + 2 * PAGE


def test_unmap_of_a_range_takes_what_lies_within(ioas: IOAS) -> None:
    low, middle, high = (ioas.map(DMABuffer(PAGE), iova=IOVA + i * 0x10000) for i in range(3))
    assert ioas.unmap(IOVA, 0x20000) == 2 * PAGE
    assert (low.mapped, middle.mapped, high.mapped) == (False, False, True)
    assert ioas.mappings == (high,)
    low.unmap()  # gone already, and no error
    ioas.map(DMABuffer(PAGE), iova=IOVA)


def test_unmap_of_half_a_mapping_is_refused(ioas: IOAS, mapping: DMAMapping) -> None:
    for iova, length in ((IOVA, PAGE), (IOVA + PAGE, mapping.length), (IOVA + PAGE, PAGE)):
        with pytest.raises(NotFoundError) as caught:
            ioas.unmap(iova, length)
        assert caught.value.errno == errno.ENOENT
        (cause,) = caught.value.causes
        assert "cut a mapping" in cause.summary
        assert f"{IOVA:#x}..{IOVA + mapping.length - 1:#x}" in cause.evidence
    assert mapping.mapped
    assert ioas.unmap(mapping.iova, mapping.length) == mapping.length


def test_record_agrees_with_the_kernel_where_a_range_cuts_the_second_mapping(ioas: IOAS) -> None:
    whole = ioas.map(DMABuffer(PAGE), iova=IOVA)
    cut = ioas.map(DMABuffer(2 * PAGE), iova=IOVA + 2 * PAGE)
    with pytest.raises(NotFoundError):
        ioas.unmap(IOVA, 3 * PAGE)
    assert cut.mapped
    # Whatever the kernel has done with the one before, the record says the same.
    taken = ioas.unmap_all() // PAGE
    assert taken == 2 + whole.mapped or (taken == 2 and not whole.mapped)


def test_unmap_where_nothing_is(ioas: IOAS) -> None:
    with pytest.raises(NotFoundError) as caught:
        ioas.unmap(IOVA, PAGE)
    assert [cause.summary for cause in caught.value.causes] == ["nothing is mapped there"]
    assert ioas.unmap_all() == 0


def test_unmap_that_cuts_the_mapping_of_another_process_may_be_that(iommufd: IOMMUFD, ioas: IOAS) -> None:
    iommufd.fileno()
    with pytest.raises(NotFoundError) as caught:
        ioas.unmap(IOVA, PAGE)
    assert ["nothing" in cause.summary or "cut" in cause.summary for cause in caught.value.causes] == [True, True]


def test_unmap_of_a_range_that_cuts_the_second_names_that(ioas: IOAS) -> None:
    ioas.map(DMABuffer(PAGE), iova=IOVA)
    ioas.map(DMABuffer(2 * PAGE), iova=2 * IOVA)
    with pytest.raises(NotFoundError) as caught:
        ioas.unmap(IOVA, IOVA + PAGE)
    (cause,) = caught.value.causes
    assert cause.evidence == f"mapped: {2 * IOVA:#x}..{2 * IOVA + 2 * PAGE - 1:#x}"


@pytest.mark.parametrize(("iova", "length"), [(-1, PAGE), (IOVA, 0), (IOVA, -PAGE), (1 << 64, PAGE), (0, 1 << 64)])
def test_wrong_range_to_unmap(ioas: IOAS, mapping: DMAMapping, iova: int, length: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        ioas.unmap(iova, length)
    assert mapping.mapped


def test_what_is_no_number_is_named(ioas: IOAS) -> None:
    buffer = DMABuffer(PAGE, memfd=True)
    text: Any = "0x1000"
    for call, name in (
        (partial(ioas.map, buffer, iova=text), "iova"),
        (partial(ioas.map, buffer, below=text), "below"),
        (partial(ioas.map_file, buffer, PAGE, start=text), "start"),
        (partial(ioas.map_file, buffer, text), "length"),
        (partial(ioas.map_file, buffer, PAGE, iova=text), "iova"),
        (partial(ioas.map_file, buffer, PAGE, below=text), "below"),
        (partial(ioas.unmap, text, PAGE), "iova"),
        (partial(ioas.copy_from, ioas, IOVA, text), "length"),
    ):
        with pytest.raises(TypeError, match=rf"^{name} is an int, not '0x1000'$"):
            call()
    assert ioas.mappings == ()
    buffer.close()  # nothing holds it


def test_unmap_all_blocks_the_device(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    device.attach(ioas)
    assert arrives(edu, buffer)
    assert ioas.unmap_all() == mapping.length
    assert ioas.mappings == ()
    assert not mapping.mapped
    assert not arrives(edu, buffer)


def test_close_is_refused_while_a_device_is_attached(
    device: Device, edu: EduDriver, ioas: IOAS, buffer: DMABuffer, mapping: DMAMapping, arrives: Arrives
) -> None:
    device.attach(ioas)
    with pytest.raises(InUseError, match=device.name) as caught:
        ioas.close()
    assert caught.value.users == (device,)
    # Nothing has been destroyed.
    assert ioas.mappings == (mapping,)
    assert arrives(edu, buffer)
    device.detach()
    ioas.close()
    assert ioas.closed
    assert not mapping.mapped
    ioas.close()
    buffer.close()


def test_id_is_free_again_after_close(iommufd: IOMMUFD, ioas: IOAS) -> None:
    ioas_id = ioas.id
    other = iommufd.alloc_ioas()
    assert other.id != ioas_id
    ioas.close()
    assert iommufd.alloc_ioas().id == ioas_id


def test_a_close_that_a_signal_handler_ends_can_be_ended_by_what_is_on_record(iommufd: IOMMUFD) -> None:
    """Whoever closes what `IOMMUFD.objects` has gets the memory back, whatever a handler has raised meanwhile."""
    memory, files = DMABuffer(PAGE), ["pyiommufd/kernel/kernel_object.py", "pyiommufd/kernel/memory/ioas.py"]

    def interrupted(stop: int | None) -> tuple[int, str]:
        ioas = iommufd.alloc_ioas()
        ioas.map(memory, iova=IOVA)
        return opcodes(ioas.close, files, stop)

    every, _ = interrupted(None)
    assert every > 100
    for stop in range(every):
        _, where = interrupted(stop)
        for left in iommufd.objects:
            left.close()
        try:
            memory.resize(PAGE)
        except BufferError as error:
            error.add_note(f"interrupted at {where}")
            raise


def test_to_look_for_what_is_mapped_holds_no_memory(ioas: IOAS) -> None:
    """A signal handler, as another thread, may unmap what `IOAS.unmap` is about to look at, and close the buffer."""
    memory = DMABuffer(PAGE)
    ioas.map(memory, iova=IOVA)

    def unmap_and_close() -> None:
        mapping.unmap()
        other.close()

    look, files = partial(ioas._table.pieces, IOVA, 4 * IOVA), ["pyiommufd/kernel/memory/mapping_table.py"]
    other = DMABuffer(PAGE)
    mapping = ioas.map(other, iova=2 * IOVA)
    every, _ = opcodes(look, files)
    assert every > 20
    for stop in range(every):
        opcodes(look, files, stop, unmap_and_close, raises=False)
        other = DMABuffer(PAGE)
        mapping = ioas.map(other, iova=2 * IOVA)


def test_close_that_a_signal_ends_lets_go_of_the_memory(
    iommufd: IOMMUFD, ioas: IOAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs as soon as the kernel has destroyed the address space, before anything else does."""
    destroy = ioctls.destroy

    def interrupted(made: ioctls.Object) -> None:
        destroy(made)
        raise KeyboardInterrupt

    memory = DMABuffer(mmap.PAGESIZE)
    ioas.map(memory)
    monkeypatch.setattr(ioctls, "destroy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ioas.close()
    memory.close()
    assert iommufd.objects == ()


def test_with_block_closes(iommufd: IOMMUFD) -> None:
    with iommufd.alloc_ioas() as ioas:
        assert ioas in iommufd.objects
    assert ioas.closed
    assert ioas not in iommufd.objects


def test_use_after_close(ioas: IOAS, buffer: DMABuffer) -> None:
    ioas.close()
    uses: tuple[Callable[[], object], ...] = (
        lambda: ioas.map(buffer),
        lambda: ioas.unmap(IOVA, PAGE),
        ioas.unmap_all,
        ioas.iova_ranges,
        lambda: ioas.iova_alignment,
    )
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    assert repr(ioas).endswith("closed>")


def test_maps_and_unmaps_of_several_threads(ioas: IOAS) -> None:
    def work(number: int) -> None:
        buffer = DMABuffer(PAGE)
        for turn in range(50):
            ioas.map(buffer, iova=IOVA * (number + 1) + turn * PAGE).unmap()
            ioas.map(buffer, iova=IOVA * (number + 1) + turn * PAGE)

    run_all([partial(work, number) for number in range(4)])
    assert len(ioas.mappings) == 200
    assert ioas.unmap_all() == 200 * PAGE
