"""What the kernel really logs: DMA faults at level error, and stack traces, by failures on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyiommufd import IOAS, IOMMUFD, Device, DMABuffer, DMAMapping, IoctlError
from pyiommufd.testing.checks.dma_faults import LOG_PATTERN, DMAFaults
from pyiommufd.testing.checks.dmesg import ERROR, Dmesg, KernelLog, UnexpectedKernelMessageError
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.testing.mock import fail_nth

pytest_plugins = ["pytester"]

INNER = """
    import pytest
    from pyiommufd import IOMMUFD, DMABuffer, IoctlError
    from pyiommufd.testing.mock import fail_nth

    def trace():
        with fail_nth(1, verbose=True) as failure, pytest.raises(IoctlError):
            IOMMUFD()
        assert failure.injected
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[[str], pytest.RunResult]:
    def run(source: str) -> pytest.RunResult:
        pytester.makepyfile(INNER + source)
        return pytester.runpytest_inprocess(
            "-p", "pyiommufd.testing.plugin.fixtures", "-p", "no:cacheprovider", "-Werror"
        )

    return run


def say(text: str) -> None:
    """Log as a program does; the kernel marks it as not its own."""
    Path("/dev/kmsg").write_text(f"{text}\n")  # without its end, a line is shown to nobody before the next one


def stack_trace() -> None:
    """Have the kernel log one: a failure that was asked for, of whatever allocation comes first."""
    with fail_nth(1, verbose=True) as failure, pytest.raises(IoctlError):
        IOMMUFD()
    assert failure.injected


def test_log_begins_where_it_was_opened() -> None:
    say("before")
    with KernelLog() as log, KernelLog(from_start=True) as whole:
        say("after")
        assert [line.text for line in log.read()] == ["after"]
        assert log.read() == []
        texts = [line.text for line in whole.read()]
        assert texts.index("before") < texts.index("after")
        assert log.lost == 0


@pytest.mark.long
def test_log_counts_what_was_overwritten() -> None:
    with KernelLog() as log:
        say("first")
        assert len(log.read()) == 1
        for _ in range(3000):
            say("x" * 900)
        rest = log.read()
        assert log.lost > 0
        assert log.lost + len(rest) == 3000


def test_what_programs_write_is_no_trouble() -> None:
    dmesg = Dmesg()
    say("<3>WARNING: BUG: Call Trace:")
    assert [(line.level, line.trouble) for line in dmesg.lines] == [(ERROR, False)]
    dmesg.check()
    dmesg.close()


def test_stack_trace_is_one_trouble_with_all_its_lines() -> None:
    dmesg = Dmesg()
    stack_trace()
    with pytest.raises(UnexpectedKernelMessageError, match="FAULT_INJECTION: forcing a failure") as caught:
        dmesg.check()
    (trouble,) = caught.value.troubles
    texts = [line.text for line in trouble]
    assert texts[0].startswith("FAULT_INJECTION")
    assert any("should_fail" in text for text in texts), texts
    assert texts[-1].strip() == "</TASK>"
    dmesg.expect("FAULT_INJECTION")
    dmesg.check()
    dmesg.close()


def test_required_message_has_to_come() -> None:
    dmesg = Dmesg()
    dmesg.expect("good news", required=True)
    with pytest.raises(UnexpectedKernelMessageError, match="good news"):
        dmesg.check()
    say("good news")
    dmesg.check()
    dmesg.close()


@pytest.mark.long
def test_dma_fault_is_trouble(lone_device: Device, ioas: IOAS) -> None:
    DMAFaults.wait_for_rate_limit()
    lone_device.attach(ioas)
    dmesg = Dmesg()
    with EduDriver(lone_device) as edu:
        edu.copy_out(0x200000, 64)
    with pytest.raises(UnexpectedKernelMessageError, match=r"DMA Write .*00:01\.0.* fault addr 0x200000"):
        dmesg.check()
    dmesg.expect(LOG_PATTERN)
    dmesg.check()
    dmesg.close()


def test_blocked_dma_moves_nothing_while_dmesg_looks_on(
    lone_device: Device, ioas: IOAS, mapping: DMAMapping, buffer: DMABuffer
) -> None:
    """DMA to what is mapped, the contrary of the above, logs nothing."""
    lone_device.attach(ioas)
    dmesg = Dmesg()
    with EduDriver(lone_device) as edu:
        edu.copy_out(mapping.iova, 64)
    dmesg.check()
    dmesg.close()


# The fixture dmesg


def test_fixture_fails_a_test_whose_kernel_warned(run: Callable[[str], pytest.RunResult]) -> None:
    result = run("""
    def test_quiet(dmesg):
        pass

    def test_warned(dmesg):
        trace()

    def test_expected(dmesg):
        dmesg.expect("FAULT_INJECTION")
        trace()

    def test_other_expected(dmesg):
        dmesg.expect("something else")
        trace()

    def test_not_asked_for():
        trace()
    """)
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_warned*", "*unexpected kernel messages*", "*Call Trace*"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_other_expected*"])


def test_fixture_can_be_for_all_tests(run: Callable[[str], pytest.RunResult]) -> None:
    run("""
    @pytest.fixture(autouse=True)
    def quiet(dmesg):
        pass

    def test_warned():
        trace()

    def test_expected(dmesg):
        dmesg.expect("FAULT_INJECTION")
        trace()
    """).assert_outcomes(passed=2, errors=1)


def test_fixture_sees_what_the_end_of_others_brings(run: Callable[[str], pytest.RunResult]) -> None:
    run("""
    @pytest.fixture
    def noisy(iommufd):
        yield
        trace()

    def test_it(noisy, dmesg):
        pass
    """).assert_outcomes(passed=1, errors=1)
