"""The table of causes: a row a cause, with what mends it and what was not so on each kernel."""

from __future__ import annotations

from tests.runner.causes import CauseRow, as_markdown, lines

MAP, MAP_FILE = "IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE"


def proved(kernel: str, ioctl: str, errno: str, cause: str) -> CauseRow:
    return CauseRow(kernel, ioctl, errno, cause, produced=True, named_first=True, fix_works=True, fix="map less")


def test_table() -> None:
    rows = [
        CauseRow("6.12", MAP_FILE, "EBADF", "a closed file", lacks="no IOMMU_IOAS_MAP_FILE"),
        proved("6.12", MAP, "EEXIST", "mapped"),
        proved("6.12", MAP, "EINVAL", "reserved"),
        proved("7.3", MAP_FILE, "EBADF", "a closed file"),
        CauseRow("7.3", MAP, "EEXIST", "mapped", produced=True, named_first=True, fix="map less"),
    ]
    assert [row.as_expected for row in rows] == [True, True, True, True, False]
    table = lines(rows)
    assert table[0].startswith("On Linux 6.12 and 7.3 ")
    assert [line for line in table if line.startswith(("## ", "| E"))] == [
        f"## `{MAP}`",
        "| EEXIST | mapped; on 7.3 NOT mended | map less |",
        "| EINVAL | reserved; not run on 7.3 | map less |",
        f"## `{MAP_FILE}`",
        "| EBADF | a closed file; not on 6.12, which has no IOMMU_IOAS_MAP_FILE | map less |",
    ]


def test_code_in_a_fix() -> None:
    assert as_markdown("claim: plan_claim(['02:01.0']).apply()") == "claim: `plan_claim(['02:01.0']).apply()`"
    assert (
        as_markdown("to <IOAS 4> (ulimit -l; a run --x) with fd 15") == "to IOAS N (`ulimit -l`; a run --x) with fd N"
    )
    assert as_markdown("use DMABuffer(size, memfd=True)") == "use `DMABuffer(size, memfd=True)`"
    assert (
        as_markdown("without token=, or (pyiommufd run --memlock)")
        == "without `token=`, or (`pyiommufd run --memlock`)"
    )
