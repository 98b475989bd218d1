"""The attachment model by itself: kept for a group and a PASID, whatever the order of events."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from pyiommufd.kernel.attachment import GroupState

DEVICES = ("a", "b", "c")
TABLES = ("X", "Y")

actions = st.lists(
    st.tuples(st.sampled_from(["attach", "detach"]), st.sampled_from(DEVICES), st.sampled_from(TABLES)), max_size=20
)


@given(actions)
def test_one_table_for_all_that_are_attached(events: list[tuple[str, str, str]]) -> None:
    """Against the kernel's rule said in another way: a set of devices, and one table while it is not empty."""
    state = GroupState()
    attached: set[str] = set()
    table: str | None = None
    for action, device, page_table in events:
        if action == "attach":
            # A peer's attach to another table is refused by the kernel and never recorded.
            if attached and device not in attached and page_table != table:
                continue
            state.add(cast("Any", device), cast("Any", page_table), None)
            attached.add(device)
            table = page_table
        else:
            last = state.remove(cast("Any", device), None)
            assert last == (attached == {device})
            attached.discard(device)
        for one in DEVICES:
            found = state.attachment_of(cast("Any", one), None)
            assert (found is not None) == (one in attached)
            if found is not None:
                assert cast("Any", found.page_table) == table
    assert (None in state.attachments) == bool(attached)


def test_pasids_do_not_mix() -> None:
    state = GroupState()
    state.add(cast("Any", "a"), cast("Any", "X"), None)
    state.add(cast("Any", "a"), cast("Any", "Y"), 7)
    assert state.remove(cast("Any", "a"), None)
    assert state.attachment_of(cast("Any", "a"), 7) is not None
    assert state.attachment_of(cast("Any", "b"), 7) is None
