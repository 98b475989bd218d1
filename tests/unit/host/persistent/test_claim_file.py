"""Persistent claims on record: readable, whole, root's, and of the very devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyiommufd import ClaimError, find_device, plan_claim
from pyiommufd.host import durable
from pyiommufd.host.claims.at_boot import plan_again
from pyiommufd.host.persistent import claim_file
from pyiommufd.host.persistent.claim_file import PersistentClaim, persistent_claim, read
from pyiommufd.host.persistent.identity import IDS, Identity
from tests.fake_sysfs import FakeSysfs

WHOLE = """\
version = 1
device = [{name="x", path="y", vendor="", device="", subsystem_vendor="", subsystem_device="", class="", revision=""}]
"""
BOARD: dict[str, Any] = {"subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "revision": "0x02"}


@pytest.fixture
def machine(fake: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A group of two behind a bridge that is in it, and a device alone."""
    monkeypatch.setattr(claim_file, "FOLDER", tmp_path / "etc/claims.d")
    fake.pci("0000:00:01.0", driver="pcieport", class_code=0x060400, group=2)
    fake.pci("0000:01:00.0", parent="0000:00:01.0", group=2, driver="nvme", **BOARD)
    fake.pci("0000:01:00.1", parent="0000:00:01.0", group=2, ids=(0x8086, 0x1), **BOARD)
    fake.pci("0000:00:03.0", group=3, ids=(0x8086, 0x10FB), **BOARD)
    return fake


def write(text: str, name: str = "x.toml") -> Path:
    claim_file.FOLDER.mkdir(parents=True, exist_ok=True)
    (claim_file.FOLDER / name).write_text(text)
    (claim_file.FOLDER / name).chmod(0o644)
    return claim_file.FOLDER / name


def put(claim: PersistentClaim) -> None:
    durable.write(claim.file, claim.text)


def test_what_is_written_is_read(machine: FakeSysfs) -> None:
    claim = persistent_claim(plan_claim("0000:01:00.0", force=["mounted", "swap"]), 'the "user"\\ ü\t')
    assert claim.file == claim_file.FOLDER / "0000:01:00.0.toml"
    assert [identity.name for identity in claim.wanted] == ["0000:01:00.0"]
    # The bridge stays on its driver: it is no matter of the claim.
    assert [identity.name for identity in claim.companions] == ["0000:01:00.1"]
    assert claim.force == ("mounted", "swap")
    put(claim)
    assert read(claim.file) == claim
    assert claim_file.files() == [claim.file]
    text = claim.file.read_text()
    assert text.startswith("#")
    assert 'path = "pci0000:00/01.0/00.0"' in text
    assert claim.file.stat().st_mode & 0o777 == 0o644


ODD = ["\x7f", "\0", "\x1f\x80\x85", "\r\n", "\t\b\f", '"' * 3, "'''", "\\", "\u2028", "\U0001f600", "#", "", " \ufeff"]


@pytest.fixture(scope="module")
def some_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("claims.d") / "x.toml"


@given(st.lists(st.text(), min_size=len(ODD), max_size=len(ODD)))
@example(ODD)
def test_whatever_is_in_a_string_is_read_again(some_file: Path, texts: list[str]) -> None:
    user, driver, name, path, serial, *rest = texts
    identity = Identity(name, tuple(rest[: len(IDS)]), path, serial, tuple(rest[len(IDS) :]))
    claim = PersistentClaim(some_file, (identity,), (), (), user, driver)
    put(claim)
    assert read(some_file) == claim


def test_name_that_is_no_text(machine: FakeSysfs) -> None:
    """Of bytes that are no UTF-8: known before anything is done."""
    with pytest.raises(ClaimError, match=r"0000:00:03\.0\.toml cannot hold .*al\\udcffice.*not text"):
        persistent_claim(plan_claim("0000:00:03.0"), os.fsdecode(b"al\xffice"))


def test_plan_is_of_the_same_devices_elsewhere(machine: FakeSysfs) -> None:
    (machine.root / "bus/pci/drivers/vfio-pci").mkdir()
    claim = persistent_claim(plan_claim("0000:01:00.0", driver="vfio_pci", force=["mounted"]))
    put(claim)
    claim = read(claim.file)
    for number in (0, 1):
        (machine.root / f"bus/pci/devices/0000:01:00.{number}").unlink()
        (machine.root / f"kernel/iommu_groups/2/devices/0000:01:00.{number}").unlink()
        old = machine.root / f"devices/pci0000:00/0000:00:01.0/0000:01:00.{number}"
        new = old.with_name(f"0000:07:00.{number}")
        old.rename(new)
        machine.link(f"bus/pci/devices/{new.name}", new)
        machine.link(f"kernel/iommu_groups/2/devices/{new.name}", new)
    plan = plan_again(claim)
    assert [device.name for device in plan.devices] == ["0000:07:00.0"]
    assert plan.force == {"mounted"}
    assert plan.driver == "vfio_pci"
    assert claim.may_take(find_device("0000:07:00.1"))
    assert not claim.may_take(find_device("0000:00:03.0"))


def test_group_that_somebody_has_joined(machine: FakeSysfs) -> None:
    claim = persistent_claim(plan_claim("0000:01:00.0"))
    machine.pci("0000:01:00.2", parent="0000:00:01.0", group=2, ids=(0x8086, 0x2), **BOARD)
    with pytest.raises(ClaimError, match=r"no longer what they were: 0000:01:00\.2 has joined"):
        plan_again(claim)


def test_group_that_a_companion_has_left(machine: FakeSysfs) -> None:
    claim = persistent_claim(plan_claim("0000:01:00.0"))
    (machine.root / "kernel/iommu_groups/2/devices/0000:01:00.1").unlink()
    with pytest.raises(ClaimError, match=r"0000:01:00\.1 has left"):
        plan_again(claim)
    (machine.root / "bus/pci/devices/0000:01:00.1").unlink()
    with pytest.raises(ClaimError, match="is not here"):
        plan_again(claim)


def test_device_that_is_claimed_at_boot_already(machine: FakeSysfs) -> None:
    put(persistent_claim(plan_claim("0000:01:00.0")))
    with pytest.raises(ClaimError, match=r"0000:01:00\.0 is claimed at boot already, by .*01:00\.0\.toml; release"):
        persistent_claim(plan_claim("0000:01:00.1"))
    assert persistent_claim(plan_claim("0000:00:03.0")).companions == ()


def test_name_of_a_file_that_is_taken(machine: FakeSysfs) -> None:
    put(persistent_claim(plan_claim("0000:01:00.0")))
    (claim_file.FOLDER / "0000:01:00.0.toml").rename(claim_file.FOLDER / "0000:00:03.0.toml")
    plan = plan_claim("0000:00:03.0")
    assert persistent_claim(plan).file.name == "0000:00:03.0-2.toml"
    assert persistent_claim(plan, reserved=["/x/0000:00:03.0-2.toml"]).file.name == "0000:00:03.0-3.toml"


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_file_that_others_may_write_is_not_used(machine: FakeSysfs, mode: int) -> None:
    claim = persistent_claim(plan_claim("0000:00:03.0"))
    put(claim)
    claim.file.chmod(mode)
    with pytest.raises(ClaimError, match="can be written by users other than root"):
        read(claim.file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "version None"),
        ("version = 0", "version 0"),
        ("version = true", "version True"),
        ("version = 1.0", "version 1.0"),
        ("version = '2'", "version '2'"),
        ("version = 1", "no device"),
        ("version = 1\ndevice = []", "no device"),
        ("version = 1\ndevice = 3", "3 is not an array"),
        ("version = 1\ndevice = [3]", "3 is not a table"),
        ("version = 1\n[device]\nname = 'x'", "{'name': 'x'} is not an array"),
        ("version = 1\ndevice = [[['name', 'x'], ['path', 'y']]]", "is not a table"),
        ("version = 1\n[[device]]\nname = 'x'", "no path"),
        ("version = 1\n[[device]]\nname = 1979-05-27", "is not a string"),
        (WHOLE.replace('vendor=""', "vendor=[{}]", 1), "[{}] is not a string"),
        (f"{WHOLE}companion = 'x'", "'x' is not an array"),
        (f"{WHOLE}force = 'mounted'", "'mounted' is not an array"),
        (f"{WHOLE}force = [['mounted']]", "['mounted'] is not a string"),
        (f"{WHOLE}user = 1000", "1000 is not a string"),
        (f"{WHOLE}driver = {{}}", "{} is not a string"),
        (f"{WHOLE}more = 1", "unknown key more"),
        ("version = [", "Invalid"),
        ("\0", "Invalid"),
        (f"x = {'[' * 100_000}", "deep"),
        (f"{WHOLE}force = ['mountd']", "force names mountd; what can be forced is root, mounted"),
        (f"{WHOLE}force = ['claimed']", "force names claimed"),
    ],
)
def test_file_that_is_none_is_named(machine: FakeSysfs, text: str, reason: str) -> None:
    with pytest.raises(ClaimError, match=r"x\.toml is not a persistent claim") as caught:
        read(write(text))
    assert reason in str(caught.value)


def test_file_that_is_no_text(machine: FakeSysfs) -> None:
    file = write(WHOLE)
    file.write_bytes(WHOLE.encode("utf-16"))
    with pytest.raises(ClaimError, match=r"x\.toml is not a persistent claim .*utf-8"):
        read(file)
    file.unlink()
    file.mkdir(0o755)
    with pytest.raises(ClaimError, match=r"x\.toml is not a persistent claim .*directory"):
        read(file)


def test_file_of_a_newer_version_is_not_to_be_removed(machine: FakeSysfs) -> None:
    with pytest.raises(ClaimError, match=r"x\.toml has been made by a newer pyiommufd .*: use that one") as caught:
        read(write("version = 2\ndevice = 'of another form'\nmore = 1"))
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("line", ["more = 1", "serial = 3", 'twins = "x"', "ids = []"])
def test_what_is_not_understood_is_not_passed_over(machine: FakeSysfs, line: str) -> None:
    claim = persistent_claim(plan_claim("0000:00:03.0"))
    put(claim)
    text = claim.file.read_text().replace("twins = []", line)
    with pytest.raises(ClaimError, match="is not a persistent claim"):
        read(write(text))
    with pytest.raises(ClaimError, match="unknown key more"):
        read(write(claim.file.read_text().replace("force", "more = 1\nforce")))


def test_link_that_leads_nowhere(machine: FakeSysfs) -> None:
    claim_file.FOLDER.mkdir(parents=True)
    (claim_file.FOLDER / "x.toml").symlink_to("nowhere")
    with pytest.raises(ClaimError, match="No such file"):
        read(claim_file.FOLDER / "x.toml")
