"""Which QEMU is used, and what is asked of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.guest.qemu import QEMU, choose_accelerator, cpu_virtualises, find_qemu, kvm_openable, probe_boots
from pyiommufd.testing.provision.architecture import AARCH64, ARCHITECTURES

PROGRAM = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(PROGRAM is None, reason="no qemu-system-x86_64 here")


def program(path: Path, version: str) -> str:
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian 1:{version}+dfsg-1)'\n")
    path.chmod(0o755)
    return str(path)


@needs_qemu
def test_the_machines_own() -> None:
    qemu = find_qemu(environment={"PATH": str(Path(PROGRAM or "").parent)})
    assert qemu.path == PROGRAM
    assert qemu.version >= (7, 2)


def test_option_goes_before_variable(tmp_path: Path) -> None:
    option, variable = program(tmp_path / "option", "9.1.0"), program(tmp_path / "variable", "10.2.50")
    environment = {"PATH": str(tmp_path), "PYIOMMUFD_QEMU": variable}
    assert find_qemu(option, environment).version == (9, 1)
    assert find_qemu("option", environment).path == option
    assert find_qemu(None, environment).version == (10, 2)


def test_a_qemu_of_another_architecture(tmp_path: Path) -> None:
    """One that is named is refused; the variable's, which is for every guest, is passed over."""

    def emulator(name: str, board: str) -> str:
        path = tmp_path / name
        path.write_text(f"""#!/bin/sh
case $1 in -machine) echo "Supported machines are:"; echo "none  empty"; echo "{board}  a board";;
*) echo "QEMU emulator version 10.1.0";; esac
""")
        path.chmod(0o755)
        return str(path)

    x86, arm = emulator("x86", "q35"), emulator("arm", "virt")
    with pytest.raises(GuestMissingError, match="no machines of aarch64: name qemu-system-aarch64"):
        find_qemu(x86, architecture=AARCH64)
    with pytest.raises(GuestMissingError, match="no machines of x86_64: name qemu-system-x86_64"):
        find_qemu(arm)
    assert find_qemu(arm, architecture=AARCH64).path == arm
    emulator("qemu-system-aarch64", "virt")
    environment = {"PATH": str(tmp_path), "PYIOMMUFD_QEMU": x86}
    assert find_qemu(None, environment, architecture=AARCH64).path == str(tmp_path / "qemu-system-aarch64")
    assert find_qemu(None, environment).path == x86


def test_a_guest_of_aarch64_takes_a_newer_qemu(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    way = "pyiommufd guest --iommu smmuv3 --build-kernel fetches one"
    with pytest.raises(GuestMissingError, match=f"apt-get install qemu-system-arm .10.0 or newer., or {way}"):
        find_qemu(environment=environment, architecture=AARCH64)
    program(tmp_path / "qemu-system-aarch64", "9.2.1")
    with pytest.raises(GuestMissingError, match=f"is QEMU 9.2, and the guest needs 10.0 or newer: .* {way}"):
        find_qemu(environment=environment, architecture=AARCH64)
    program(tmp_path / "qemu-system-aarch64", "10.0.2")
    assert find_qemu(environment=environment, architecture=AARCH64).version == (10, 0)


def test_what_is_not_this_machines_is_emulated(tmp_path: Path) -> None:
    other = next(one for one in ARCHITECTURES.values() if not one.native)
    chosen = choose_accelerator(QEMU("/nowhere", (10, 0)), tmp_path, tmp_path, architecture=other)
    assert chosen == "tcg,thread=multi"


def test_too_old_a_qemu(tmp_path: Path) -> None:
    old = program(tmp_path / "qemu", "7.1.0")
    with pytest.raises(GuestMissingError, match=r"is QEMU 7\.1, and the guest needs 7\.2 or newer"):
        find_qemu(old)


def test_what_is_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(GuestMissingError, match=r"/false is not a QEMU that works: its --version says: "):
        find_qemu(shutil.which("false"))
    for name in ("true", "bash"):  # the latter says "version 5.2"
        with pytest.raises(GuestMissingError, match=rf"^Guest\(qemu=…\): /.*/{name} is not a QEMU that works: "):
            find_qemu(name)
    script = tmp_path / "script"
    script.write_text("no program\n")
    script.chmod(0o755)
    with pytest.raises(GuestMissingError, match=r"/script cannot be run: Exec format error"):
        find_qemu(str(script))
    with pytest.raises(GuestMissingError, match="PYIOMMUFD_QEMU: no-such is not a program"):
        find_qemu(None, {"PATH": str(tmp_path), "PYIOMMUFD_QEMU": "no-such"})


def test_missing_qemu_names_the_package(tmp_path: Path) -> None:
    if Path("/usr/libexec/qemu-kvm").exists():
        pytest.skip("this distribution has QEMU off the PATH")
    with pytest.raises(GuestMissingError, match="apt-get install qemu-system-x86"):
        find_qemu(environment={"PATH": str(tmp_path)})


@needs_qemu
def test_properties_are_qemus_own() -> None:
    properties = find_qemu(PROGRAM).device_properties("intel-iommu")
    assert {"intremap", "aw-bits", "device-iotlb"} <= properties
    assert find_qemu(PROGRAM).device_properties("no-such-device") == frozenset()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu vmx sse", True), ("svm", True), ("fpu sse", False), ("vmxon hypervisor", False), ("", False)],
)
def test_virtualisation_is_a_flag_of_its_own(flags: str, expected: bool) -> None:
    assert cpu_virtualises(f"processor\t: 0\nflags\t\t: {flags}\nvmx flags\t: vnmi\n") == expected


@pytest.mark.parametrize(
    ("version", "threads"), [((7, 2), "single"), ((8, 1), "single"), ((8, 2), "multi"), ((11, 1), "multi")]
)
def test_emulation_is_by_threads_only_where_that_does_not_crash(version: tuple[int, int], threads: str) -> None:
    assert QEMU("qemu", version).emulation == f"tcg,thread={threads}"


@needs_qemu
def test_acceleration_is_kvm_only_where_it_works(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel")  # so nothing boots by it, whatever the machine can do
    qemu = find_qemu(PROGRAM)
    assert choose_accelerator(qemu, kernel, tmp_path) == qemu.emulation
    if cpu_virtualises(Path("/proc/cpuinfo").read_text()) and kvm_openable():
        assert (tmp_path / "kvm-probe").read_text().endswith("fails")


@needs_qemu
def test_probe_of_no_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel")
    qemu = find_qemu(PROGRAM)
    assert not probe_boots(qemu, kernel, qemu.emulation, timeout=3)
