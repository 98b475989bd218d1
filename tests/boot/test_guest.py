"""The `Guest` of Python: commands, files, the monitor, and its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyiommufd.testing import Edu, Guest, GuestDevice, GuestError, GuestTimeoutError, Nvme, RootPort
from pyiommufd.testing.guest.qemu import find_qemu, probe_boots
from pyiommufd.testing.provision.kernels import find_kernel
from tests.patience import patience, until

pytestmark = pytest.mark.boots

MARK = "/tmp/mark"  # noqa: S108 - in the guest


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    devices: list[GuestDevice] = [RootPort(Edu(id="away")), Nvme(size=1 << 20), Edu(dma_mask=0xFFFF_FFFF)]
    with Guest(devices=devices) as guest:
        yield guest


def processes(guest: Guest) -> bytes:
    """The commands of all processes that sleep."""
    return guest.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -ao 'sleep [0-9]*'"]).stdout


def test_run_collects_output(guest: Guest) -> None:
    result = guest.run(
        ["sh", "-c", "echo out; echo error >&2; echo $VARIABLE; pwd; exit 3"], env={"VARIABLE": "ü"}, cwd="/usr/lib"
    )
    assert result.returncode == 3
    assert result.stdout.decode() == "out\nü\n/usr/lib\n"
    assert result.stderr == b"error\n"


def test_run_reports_a_signal_as_subprocess_does(guest: Guest) -> None:
    assert guest.run(["sh", "-c", "kill -9 $$"]).returncode == -9


def test_run_has_no_standard_input(guest: Guest) -> None:
    assert guest.run(["cat"], timeout=patience()).stdout == b""


def test_output_comes_while_the_command_runs(guest: Guest) -> None:
    """The command says the second thing only after the first has come."""
    pieces: list[bytes] = []
    come = threading.Event()

    def receive(data: bytes) -> None:
        pieces.append(data)
        come.set()

    def run() -> None:
        guest.run(["sh", "-c", f"echo 1; until [ -e {MARK}-come ]; do sleep 0.1; done; echo 2"], stdout=receive)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert come.wait(patience())
        assert pieces == [b"1\n"]
    finally:
        guest.put(b"", f"{MARK}-come")
        thread.join()
    assert pieces == [b"1\n", b"2\n"]


def test_exception_of_a_callback_ends_the_wait(guest: Guest) -> None:
    def refuse(data: bytes) -> None:
        raise ZeroDivisionError(data)

    with pytest.raises(ZeroDivisionError):
        guest.run(["echo", "x"], stdout=refuse)
    assert guest.run(["true"]).returncode == 0


def test_commands_run_at_the_same_time(guest: Guest) -> None:
    """Each ends only once all have begun."""
    all_met = " -a ".join(f"-e {MARK}-met{number}" for number in (1, 2, 3))
    script = f"touch {MARK}-met$0; until [ {all_met} ]; do sleep 0.1; done"
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda n: guest.run(["sh", "-c", script, str(n)], timeout=patience()), (1, 2, 3)))
    assert [one.returncode for one in done] == [0, 0, 0]


def test_process_left_behind_does_not_hold_the_command(guest: Guest) -> None:
    script = "sleep 4322 & echo started"
    assert guest.run(["sh", "-c", script], timeout=patience()).stdout == b"started\n"
    assert b"sleep 4322" in processes(guest)


def test_time_limit_kills_the_whole_command_and_not_the_guest(guest: Guest) -> None:
    with pytest.raises(GuestTimeoutError, match="did not finish within 1 s"):
        guest.run(["sh", "-c", "sleep 4321; true"], timeout=1)
    assert b"sleep 4321" not in processes(guest)


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 20) + 7])
def test_files_there_and_back(guest: Guest, size: int) -> None:
    content = bytes(number * 7 % 256 for number in range(size))
    guest.put(content, "/tmp/file", mode=0o751)  # noqa: S108
    assert guest.get("/tmp/file") == content  # noqa: S108
    assert guest.run(["stat", "-c", "%a", "/tmp/file"]).stdout == b"751\n"  # noqa: S108


def test_refusals_keep_their_errno(guest: Guest) -> None:
    with pytest.raises(FileNotFoundError):
        guest.get("/nowhere")
    with pytest.raises(OSError, match="Read-only"):
        guest.put(b"x", "/usr/file")
    with pytest.raises(OSError, match="not a regular file"):
        guest.get("/dev/zero")


def test_dmesg_and_console(guest: Guest) -> None:
    assert "Linux version" in guest.dmesg()
    guest.run(["sh", "-c", "echo said so > /dev/console"])
    assert "said so\n" in guest.console


def test_devices_are_as_described(guest: Guest) -> None:
    nvme = guest.run(["sh", "-c", "cat /sys/bus/pci/devices/0000:00:02.0/class; cat /sys/block/nvme0n1/size"])
    assert nvme.stdout.split() == [b"0x010802", b"2048"]


def test_monitor_removes_a_device(guest: Guest) -> None:
    path = "/sys/bus/pci/devices/0000:01:00.0"
    assert guest.run(["test", "-e", path]).returncode == 0
    guest.qmp("device_del", id="away")
    until(lambda: guest.run(["test", "-e", path]).returncode, f"{path} goes")
    with pytest.raises(GuestError, match="away"):
        guest.qmp("device_del", id="away")


def test_modules_of_a_built_kernel_can_be_loaded(guest: Guest) -> None:
    if not find_kernel().modules:
        pytest.skip("the kernel named is not one that --build-kernel made")
    script = "cd $PYIOMMUFD_MODULES && insmod mdev.ko && insmod mtty.ko && ls /sys/class/mdev_bus"
    result = guest.run(["sh", "-c", script])
    assert result.stdout == b"mtty\n", result.stderr


def test_guest_outlives_the_thread_that_started_it() -> None:
    guest = Guest(devices=[])
    thread = threading.Thread(target=guest.start)
    thread.start()
    thread.join()
    # Python is done with it, and the kernel is when it is in no list any more: what was to die with it has been told.
    until(lambda: not Path(f"/proc/self/task/{thread.native_id}").exists(), "the thread ends")
    try:
        assert guest.run(["true"]).returncode == 0
    finally:
        guest.close()


def test_frozen_machine_ends_with_the_time_limit() -> None:
    with Guest(devices=[]) as guest:
        guest.run(["sh", "-c", "echo last words > /dev/console"])
        guest.qmp("stop")
        with pytest.raises(GuestTimeoutError, match="does not answer") as caught:
            guest.run(["true"], timeout=1)
        assert "last words" in caught.value.console
        with pytest.raises(GuestError):
            guest.run(["true"])


def test_death_reaches_every_waiting_command() -> None:
    with Guest(devices=[]) as guest:
        errors: list[GuestError] = []

        def wait(number: int) -> None:
            try:
                guest.run(["sh", "-c", f"touch {MARK}-waits{number}; exec sleep 600"])
            except GuestError as error:
                errors.append(error)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        crash = f"until [ -e {MARK}-waits0 -a -e {MARK}-waits1 ]; do sleep 0.1; done; echo c > /proc/sysrq-trigger"
        with pytest.raises(GuestError, match="sysrq triggered crash"):
            guest.run(["sh", "-c", f"{crash}; sleep 600"])
        for thread in threads:
            thread.join(patience())
        assert len(errors) == 2
        assert "Kernel panic" in guest.console


def test_death_by_a_signal_names_it() -> None:
    with Guest(devices=[]) as guest:
        process = guest._running._process
        assert process is not None
        process.send_signal(signal.SIGSEGV)
        with pytest.raises(GuestError, match=r"died: QEMU was ended by signal 11 \(Segmentation fault\)"):
            guest.run(["true"])


def test_closed_guest() -> None:
    guest = Guest(devices=[])
    with guest:
        pass
    guest.close()
    with pytest.raises(GuestError, match="does not run"):
        guest.run(["true"])


def test_boot_that_takes_too_long() -> None:
    with pytest.raises(GuestTimeoutError, match="not ready after"), Guest(devices=[], boot_timeout=0.3):
        pass


def test_guest_whose_clock_runs_fifty_times_too_fast_is_none() -> None:
    """As where the kernel has measured the TSC on a busy host; by mistake it does not boot so three times in a row."""
    with pytest.raises(GuestError, match="clock ran too fast in each of 3 boots"):
        Guest(devices=[], kernel_arguments=["tsc_early_khz=50000"]).start()


def test_folder_of_the_guests_own() -> None:
    with pytest.raises(ValueError, match="its own /sys"):
        Guest(folder="/sys/class").start()


def test_working_folder_may_be_the_root() -> None:
    with Guest(folder="/", devices=[]) as guest:
        assert guest.run(["pwd"]).stdout == b"/\n"


def test_probe_tells_a_kernel_that_boots(tmp_path: Path) -> None:
    qemu, kernel = find_qemu(), find_kernel().image
    assert probe_boots(qemu, kernel, qemu.emulation, timeout=patience())
    broken = tmp_path / "kernel"
    broken.write_bytes(kernel.read_bytes()[: 1 << 20])
    assert not probe_boots(qemu, broken, qemu.emulation, timeout=5)
