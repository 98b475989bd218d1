"""Which core tests must run, and not skip, on which kind of IOMMU: a pair is not to pass by skipping.

All core tests are listed, each in the one set that says what it takes. A new one that is in none fails the matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.runner.reports import Case


def _of(file: str, *names: str) -> frozenset[str]:
    return frozenset(f"test_{file}::test_{name}" for name in names)


EVERYWHERE = (
    _of(
        "discovery",
        "every_pci_device_is_listed",
        "a_device_is_found_by_name_and_not_by_an_id_that_several_have",
        "groups_are_those_of_sysfs",
        "devices_name_the_iommu_that_translates_for_them",
    )
    | _of(
        "mappings",
        "map_at_an_address_and_where_the_kernel_likes",
        "an_overlap_and_a_cut_are_refused_and_change_nothing",
        "allowed_ranges_bind_what_the_kernel_chooses",
        "below_finds_the_lowest_room",
        "many_pieces_are_mapped_all_or_none",
        "a_copy_shares_the_memory_and_its_rights",
        "memory_off_page_boundaries_is_refused_before_the_kernel",
    )
    | _of(
        "features",
        "ioctls_that_a_kernel_lacks_are_named",
        "physical_addresses_are_for_machines_without_an_iommu",
        "the_container_interfaces_address_space",
    )
)  # fmt: skip
"""iommufd itself needs no IOMMU."""

WITH_IOMMU = (
    _of("claims", "a_claim_takes_a_device_and_restores_its_override")
    | _of(
        "bind",
        "bind_takes_the_group_and_close_gives_it_back",
        "a_device_that_nobody_claimed_is_refused_with_the_way_out",
        "interrupts_that_are_not_isolated_are_named_and_the_fix_works",
    )
    | _of(
        "dma",
        "dma_is_blocked_moves_and_is_blocked_again",
        "data_moves_both_ways_and_nowhere_else",
        "unmapped_memory_is_out_of_reach",
        "replace_moves_to_the_other_page_table",
        "a_preview_refuses_a_reserved_address_as_attach_does",
        "a_preview_does_not_refuse_what_attach_accepts",
        "what_devices_cannot_reach_leaves_the_allowed_ranges",
    )
    | _of(
        "registers",
        "the_configuration_space_is_read_by_the_kernel",
        "a_window_and_the_kernel_see_the_same_registers",
        "a_window_ends_at_its_length_and_with_its_device",
    )
    | _of(
        "features",
        "hw_info_says_whose_iommu_it_is",
        "pasids_of_devices_without_them_are_refused",
        "page_tables_that_the_iommu_lacks_are_named",
        "virtual_iommus_that_the_iommu_lacks_are_named",
        "an_explicit_page_table_moves_data",
        "a_bar_is_mapped_and_revoked_or_no_dma_buf",
        "low_power",
    )
)
"""A device alone in its group."""

WITH_SHARED_GROUP = (
    _of(
        "claims",
        "a_plan_names_the_companions_and_changes_nothing",
        "a_claim_of_a_shared_group_restores_every_member",
    )
    | _of("bind", "a_member_on_a_host_driver_is_named")
    | _of(
        "shared_group",
        "a_second_address_space_is_refused_and_the_peer_named",
        "what_an_action_changes_is_the_group",
    )
)
"""Several devices in one group: behind a PCIe-to-PCI bridge, with which no device gets a group from a virtio IOMMU, or,
with Arm's, as functions of one slot.
"""

WITH_BRIDGED_DMA = _of("claims", "a_released_claim_leaves_the_host_driver_at_work") | _of(
    "shared_group",
    "a_bound_peer_reaches_what_the_attached_one_does",
    "dma_goes_on_until_the_last_one_detaches",
    "a_replace_takes_the_peer_along",
)
"""Such devices whose DMA arrives. With VT-d's first stage none does (Linux 7.3, QEMU 11.1): VT-d faults it for want of
a context entry for the bridge's requester id, a host driver's DMA as well.
"""

WITHOUT_IOMMU = _of(
    "without_iommu",
    "a_claim_is_refused_for_want_of_an_iommu",
    "there_is_no_group_and_nothing_to_bind",
    "the_group_that_vfio_makes_is_no_sign_of_an_iommu",
    "a_kernel_without_nodes_for_such_devices_is_named",
    "dma_by_physical_address_is_never_blocked",
    "every_preview_says_that_nothing_is_blocked",
    "two_devices_without_an_iommu_are_no_group",
)

ALL = EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP | WITH_BRIDGED_DMA | WITHOUT_IOMMU

REQUIRED = {
    "intel": EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP | WITH_BRIDGED_DMA,
    "intel-first-stage": EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP,
    "amd": EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP | WITH_BRIDGED_DMA,
    "virtio": EVERYWHERE | WITH_IOMMU,
    "none": EVERYWHERE | WITHOUT_IOMMU,
    "smmuv3": EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP | WITH_BRIDGED_DMA,
    "smmuv3-nested": EVERYWHERE | WITH_IOMMU | WITH_SHARED_GROUP | WITH_BRIDGED_DMA,
}
"""What must run, by the kind of IOMMU as `pyiommufd guest --iommu` takes it."""


@dataclass(frozen=True)
class Limit:
    """What a kernel cannot do with a kind of IOMMU, shown by tests that fail there, and have to.

    Attributes:
        iommu: The kind of IOMMU.
        last: The last kernel that is known to be so; older ones are taken to be.
        tests: Those that the kernel refuses what they ask for.
        reason: Why.
    """

    iommu: str
    last: tuple[int, int]
    tests: frozenset[str]
    reason: str


LIMITS = (
    Limit(
        "intel-first-stage",
        (6, 12),
        _of(
            "dma",
            "dma_is_blocked_moves_and_is_blocked_again",
            "data_moves_both_ways_and_nowhere_else",
            "unmapped_memory_is_out_of_reach",
            "replace_moves_to_the_other_page_table",
            "a_preview_does_not_refuse_what_attach_accepts",
            "what_devices_cannot_reach_leaves_the_allowed_ranges",
        )
        | _of(
            "shared_group",
            "a_second_address_space_is_refused_and_the_peer_named",
            "what_an_action_changes_is_the_group",
        )
        | _of("features", "an_explicit_page_table_moves_data"),
        "this kernel gives iommufd no page tables of VT-d's first stage: every attach is refused with EINVAL",
    ),
    Limit(
        "none",
        (6, 12),
        _of(
            "without_iommu",
            "dma_by_physical_address_is_never_blocked",
            "every_preview_says_that_nothing_is_blocked",
            "two_devices_without_an_iommu_are_no_group",
        ),
        "this kernel gives devices without an IOMMU no nodes for iommufd",
    ),
    Limit(
        "virtio",
        (6, 12),
        _of("dma", "replace_moves_to_the_other_page_table") | _of("features", "an_explicit_page_table_moves_data"),
        "this kernel's page tables of a virtio IOMMU get their size at an attach, too late for one that is made before",
    ),
)


def limits(iommu: str, release: tuple[int, ...]) -> dict[str, str]:
    """The tests that fail on this kernel with this kind of IOMMU, and why."""
    found = [limit for limit in LIMITS if limit.iommu == iommu and release[:2] <= limit.last]
    return {name: limit.reason for limit in found for name in limit.tests}


def shortfalls(iommu: str, cases: Iterable[Case], release: tuple[int, ...]) -> list[str]:
    """What a run of the core tests left out, a line each; nothing where it ran all it had to.

    Args:
        iommu: The kind of IOMMU.
        cases: The tests of the run.
        release: The version of the kernel that it was on.
    """
    by_name = {case.name: case for case in cases}
    # They run, and fail as they have to: pytest reports that as a skip.
    limited = limits(iommu, release)
    result = []
    for name in sorted(REQUIRED[iommu]):
        case = by_name.get(name)
        if case is None:
            result.append(f"{name} did not run")
        elif case.outcome == "skipped" and name not in limited:
            result.append(f"{name} must not skip with {iommu}: {case.reason}")
    result += [f"{name} is in no set of tests/runner/core_tests.py" for name in sorted(set(by_name) - ALL)]
    return result
