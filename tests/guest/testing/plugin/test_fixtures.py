"""The fixtures do what they say, also where they have to fail: inner test runs, with no other fixtures in the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pyiommufd import HostDevice, list_devices
from pyiommufd.host.claims import journal
from pyiommufd.testing import plugin
from pyiommufd.testing.checks.claims import shared_groups

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run tests of their own with nothing but the package's fixtures."""

    def run(source: str, *plugins: ModuleType) -> pytest.RunResult:
        pytester.makepyfile(source)
        # Not the plugin of the environment, where plugins are looked for.
        names = ("no:pyiommufd", "pyiommufd.testing.plugin.fixtures", "no:cacheprovider")
        options = [word for name in names for word in ("-p", name)]
        return pytester.runpytest_inprocess(*options, "-rs", "-Werror", plugins=plugins)

    return run


def states() -> dict[str, str | None]:
    """Which driver each device is on."""
    return {device.name: device.driver for device in list_devices("pci")}


def test_edu_does_dma_into_the_address_space(run: Run) -> None:
    run("""
        from pyiommufd import DMABuffer

        def test_dma(edu, ioas, dmesg, no_leaks):
            assert edu.device.bus_master
            assert edu.device.page_table is None
            edu.device.attach(ioas)
            buffer = DMABuffer(4096)
            ioas.map(buffer, iova=0x100000)
            buffer[:4] = b"good"
            edu.copy_in(0x100000, 4)
            edu.copy_out(0x100000 + 8, 4)
            assert buffer[8:12] == b"good"
    """).assert_outcomes(passed=1)


@pytest.mark.long
def test_the_order_of_fixtures_does_not_matter(run: Run) -> None:
    """An address space is not closed before the device that is attached to it; the claim is shared to be quick."""
    run("""
        import pytest
        from pyiommufd.testing.checks.claims import Claims

        @pytest.fixture(scope="module")
        def vfio_claims():
            claims = Claims()
            yield claims
            claims.release()

        def test_device_first(edu, ioas, no_leaks):
            edu.device.attach(ioas)

        def test_space_first(ioas, edu, no_leaks):
            edu.device.attach(ioas)

        def test_check_first(no_leaks, ioas, edu):
            edu.device.attach(ioas)
    """).assert_outcomes(passed=3)


def test_vfio_device_takes_the_one_that_is_alone_and_gives_it_back(run: Run, alone: HostDevice) -> None:
    before = states()
    run(f"""
        from pyiommufd import find_device

        def test_bound(vfio_device, iommufd):
            device = vfio_device(0x1234, 0x11e8)
            assert device.name == {alone.name!r}
            assert device in iommufd.devices
            assert find_device(device.name).driver == "vfio-pci"
            assert not device.bus_master

        def test_next(iommufd):
            assert find_device({alone.name!r}).driver == {alone.driver!r}
    """).assert_outcomes(passed=2)
    assert states() == before


@pytest.mark.long
def test_vfio_device_takes_another_one_at_each_call(run: Run, alone: HostDevice) -> None:
    before = states()
    run("""
        def test_three(vfio_device, no_leaks):
            devices = [vfio_device(0x1234, 0x11e8, bus_master=True) for _ in range(3)]
            assert len({device.name for device in devices}) == 3
            assert all(device.bus_master for device in devices)

        def test_four(vfio_device, no_leaks):
            for _ in range(4):
                vfio_device(0x1234, 0x11e8)
    """).assert_outcomes(passed=1, skipped=1)
    assert states() == before


@pytest.mark.long
def test_vfio_device_skips_where_none_is_free(run: Run, alone: HostDevice) -> None:
    """A process of its own holds the claims of all of them."""
    held = subprocess.Popen(
        [sys.executable, "-c", """
import sys
from pyiommufd import list_devices, plan_claim
with plan_claim([d for d in list_devices("pci") if d.device_id == 0x11e8]).apply():
    print("claimed", flush=True)
    sys.stdin.read()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"claimed\n"
        result = run("""
            def test_none_free(vfio_device):
                vfio_device(0x1234, 0x11e8)

            def test_no_group(shared_group):
                pass
        """)
        result.assert_outcomes(skipped=2)
        result.stdout.fnmatch_lines(
            ["*none of those here is free*", f"*{alone.name}*claimed already, by process {held.pid}*"]
        )
    finally:
        held.communicate()


def test_vfio_device_skips_where_there_is_none(run: Run) -> None:
    result = run("""
        def test_none(vfio_device):
            vfio_device(0xdead, 0xbeef)
    """)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*device dead:beef: there is none; run it by pytest --guest, with @pytest.mark.guest(devices=[[]…])*"]
    )


def test_vfio_device_takes_two_numbers(run: Run) -> None:
    result = run("""
        import pytest

        def test_wrong(vfio_device):
            for given in ((), ("edu",), ("8086:10d3",), (0x1234, "11e8")):
                with pytest.raises(TypeError, match="PCI vendor id and device id are wanted, as in vfio_device"):
                    vfio_device(*given)
    """)
    result.assert_outcomes(passed=1)


@pytest.mark.long
def test_what_a_failing_test_has_claimed_is_given_back(run: Run) -> None:
    before = states()
    run("""
        def test_fails(edu, shared_group, ioas):
            edu.device.attach(ioas)
            assert False
    """).assert_outcomes(failed=1)
    assert states() == before
    assert not list(journal.records())


def test_shared_group_is_bound_whole(run: Run) -> None:
    group = shared_groups()[0]
    names = [device.name for device in group.devices if not device.is_bridge]
    assert len(names) > 1
    run(f"""
        def test_group(shared_group, iommufd, ioas, no_leaks):
            assert shared_group.group.id == {group.id}
            assert [device.name for device in shared_group.devices] == {names!r}
            assert set(iommufd.devices) == set(shared_group.devices)
            assert [d.host.device_id for d in shared_group.of(0x1234, 0x11e8)] == [0x11e8, 0x11e8]
            first, second = shared_group.of(0x1234, 0x11e8)
            assert len(first.attach(ioas).devices) == len(shared_group.group.devices)
            assert second.attach(ioas).devices == ()
    """).assert_outcomes(passed=1)
    assert {device.name: device.driver for device in group.devices}.items() <= states().items()


def test_without_dev_iommu_tests_are_skipped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    node, away = Path("/dev/iommu"), Path("/dev/iommu-away")
    node.rename(away)
    try:
        result = run("""
            def test_iommufd(iommufd):
                pass

            def test_mock(mock_device):
                pass
        """)
    finally:
        away.rename(node)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*open on /dev/iommu: ENOENT*", "*pytest --guest*"])


# What they watch


def test_reports_show_what_is_wrong_and_none_of_our_code(run: Run) -> None:
    source = """
        import os
        import pytest

        kept = []

        @pytest.fixture
        def let_go():
            yield
            os.close(kept.pop())

        def test_leak(let_go, no_leaks):
            kept.append(os.open("/dev/iommu", os.O_RDWR))

        def test_object(no_leaks, iommufd):
            iommufd.alloc_ioas()

        def test_log(dmesg):
            dmesg.expect("never logged", required=True)
    """
    result = run(source, plugin)
    result.assert_outcomes(passed=3, errors=3)
    result.stdout.fnmatch_lines(["E *LeakError: *", "E *LeakError: *", "E *UnexpectedKernelMessageError: *"])
    result.stdout.no_fnmatch_line("*/pyiommufd/testing/*")


# no_leaks


@pytest.mark.long
def test_no_leaks_names_what_was_leaked(run: Run) -> None:
    """The claim is kept here: a leaked fd of a device would stand in the way of giving it back."""
    result = run("""
        import mmap, os
        import pytest
        from pyiommufd.testing.checks.claims import Claims
        from pyiommufd import uapi
        from pyiommufd.uapi import raw

        kept = []

        @pytest.fixture(scope="module")
        def vfio_claims():
            claims = Claims()
            yield claims
            claims.release()

        @pytest.fixture(autouse=True)  # so that it is the first, and what it does comes after the check
        def let_go(vfio_claims):
            yield
            while kept:
                one = kept.pop()
                one.close() if hasattr(one, "close") else os.close(one)

        def test_iommufd(no_leaks):
            kept.append(os.open("/dev/iommu", os.O_RDWR))

        def test_ioas(no_leaks, iommufd):
            iommufd.alloc_ioas()

        def test_raw_object(no_leaks, iommufd):
            raw.ioctl(iommufd.fileno(), uapi.IOMMU_IOAS_ALLOC, raw.struct("iommu_ioas_alloc"))

        def test_bound(no_leaks, iommufd, edu):
            host = edu.device.host
            edu.close()
            edu.device.close()
            iommufd.bind(host)

        def test_device_fd(edu, no_leaks):
            kept.append(os.dup(edu.device.fileno()))

        def test_registers(edu, no_leaks):
            kept.append(mmap.mmap(edu.device.fileno(), 4096, offset=0))

        def test_nothing(edu, no_leaks):
            pass
    """)
    result.assert_outcomes(passed=7, errors=6)
    result.stdout.fnmatch_lines(
        [
            line
            for test, report in {
                "iommufd": "fd *: /dev/iommu",
                "ioas": "<IOAS *> of <IOMMUFD*",
                "raw_object": "id * of <IOMMUFD *still taken*",
                "bound": "<Device *> of <IOMMUFD*",
                "device_fd": "fd *: /dev/vfio/devices/vfio*",
                "registers": "mapped memory at *: */vfio*",
            }.items()
            for line in (f"*ERROR at teardown of test_{test} *", "*something was not given back:*", f"*{report}")
        ]
    )
    assert not list(journal.records())


def test_no_leaks_lets_pass_what_was_given_back_or_was_there_before(run: Run) -> None:
    run("""
        import os
        import pytest
        from pyiommufd import IOMMUFD, DMABuffer

        @pytest.fixture(scope="module", autouse=True)
        def wider():
            with IOMMUFD() as iommufd:
                yield iommufd

        def test_closed(no_leaks, iommufd, ioas, wider):
            ioas.map(DMABuffer(4096))
            with iommufd.alloc_ioas(), IOMMUFD() as other:
                other.alloc_ioas()
            wider.alloc_ioas()
    """).assert_outcomes(passed=1)


def test_device_that_the_host_wants_back(run: Run) -> None:
    run("""
        from tests.patience import until

        def test_removal(vfio_device, iommufd, dmesg, no_leaks):
            device = vfio_device(0x1234, 0x11e8, watch_removal=True)
            window = device.region(0).map()
            device.interrupts.req.trigger()
            until(lambda: device not in iommufd.devices, "the device is let go")
            assert window.closed
    """).assert_outcomes(passed=1)
