"""Records of the kernel's log, as /dev/kmsg gives them."""

from __future__ import annotations

import pytest

from pyiommufd.testing.checks.dmesg import LogLine, troubles


def line(text: str, level: int = 4, facility: int = 0) -> LogLine:
    return LogLine(level, facility, 1, 0.0, text)


def test_record() -> None:
    parsed = LogLine.parse(
        "4,422,18404065,-;vfio-pci 0000:02:01.0: resetting\n SUBSYSTEM=pci\n DEVICE=+pci:0000:02:01.0\n"
    )
    assert parsed == LogLine(4, 0, 422, 18.404065, "vfio-pci 0000:02:01.0: resetting", "pci:0000:02:01.0")
    assert str(parsed) == "[   18.404065] vfio-pci 0000:02:01.0: resetting"


def test_record_of_a_program_with_more_fields_and_escapes() -> None:
    parsed = LogLine.parse("12,7,1,-,caller=T1;one\\x0atwo; three\n")
    assert (parsed.level, parsed.facility, parsed.text, parsed.device) == (4, 1, "one\ntwo; three", "")


def test_no_record() -> None:
    with pytest.raises(ValueError, match="unpack"):
        LogLine.parse("hello")


@pytest.mark.parametrize(
    ("text", "level", "trouble"),
    [
        ("DMAR: [DMA Write NO_PASID] Request device", 3, True),
        ("vfio-pci 0000:02:01.0: resetting", 4, False),
        ("WARNING: CPU: 0 PID: 1 at drivers/iommu/iommufd/pages.c:1", 4, True),
        ("BUG: kernel NULL pointer dereference", 1, True),
        ("DEBUG: all is well", 6, False),
        ("rcu: INFO: rcu_sched detected stalls on CPUs", 6, True),
        ("INFO: task python:12 blocked for more than 120 seconds.", 6, True),
        ("refcount_t: underflow; use-after-free.", 4, True),
    ],
)
def test_trouble(text: str, level: int, trouble: bool) -> None:
    assert line(text, level).trouble is trouble
    assert not line(text, level, facility=1).trouble


def test_warning_is_one_with_what_is_between_its_marks() -> None:
    lines = [
        line("before"),
        line("------------[ cut here ]------------"),
        line("WARNING: CPU: 0 PID: 1 at x.c:1"),
        line("Call Trace:"),
        line(" <TASK>"),
        line("RIP: 0033:0x7f"),
        line(" </TASK>"),
        line("---[ end trace 0000000000000000 ]---"),
        line("after"),
        line("an error", 3),
    ]
    assert troubles(lines) == [tuple(lines[1:8]), (lines[9],)]


def test_warning_that_is_cut_off_goes_to_the_end() -> None:
    lines = [line("------------[ cut here ]------------"), line("WARNING: CPU: 0"), line("RIP: 0010:x")]
    assert troubles(lines) == [tuple(lines)]


def test_trace_without_marks() -> None:
    lines = [
        line("CPU: 1 UID: 0 PID: 7 Comm: python"),
        line("Hardware name: QEMU"),
        line("Call Trace:"),
        line(" <TASK>"),
        line(" f+0x1/0x2"),
        line("RIP: 0033:0x7f"),
        line(" </TASK>"),
        line("after"),
        line("Call Trace:"),
        line(" g+0x1/0x2"),
        line("after"),
    ]
    assert troubles(lines) == [tuple(lines[:7]), tuple(lines[8:10])]


def test_head_without_a_trace_is_nothing() -> None:
    assert troubles([line("Hardware name: QEMU"), line("good"), line("also good")]) == []
