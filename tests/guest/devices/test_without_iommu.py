"""The commands on a machine whose devices no IOMMU covers, and vfio takes all the same (Linux 7.3)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyiommufd import HostDevice, Monitor, list_devices, list_groups, plan_claim, recover
from pyiommufd.cli.group import cli
from pyiommufd.host.persistent import boot_unit, claim_file
from pyiommufd.testing.drivers import edu
from tests.patience import patience

ALL_MEMORY = "its DMA reaches all memory, and nothing blocks it"
FORCED = ("--force", "noiommu")
NOBODY = 65534
OPEN = """
import sys
from pyiommufd import DeviceFile, IoctlError

try:
    DeviceFile(sys.argv[1])
except IoctlError as error:
    print(error.causes[0].summary, "/", error.errno)
"""


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def run_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status).stdout)


@pytest.fixture
def device() -> Iterator[HostDevice]:
    """An edu device; everything is given back in the end, and the others have stayed on their drivers."""
    found = [one for one in list_devices("pci") if (one.vendor_id, one.device_id) == (edu.VENDOR_ID, edu.DEVICE_ID)]
    if not found or not found[0].without_iommu:
        pytest.skip("an IOMMU covers the devices here: run tests/boot/test_devices.py")
    before = {one.name: one.driver for one in list_devices()}
    assert {one for one in before.values() if one} >= {"virtio-pci"}
    yield found[0]
    assert {one.name: one.driver for one in list_devices()} == before
    assert list_groups() == []


@pytest.fixture
def claimed(device: HostDevice) -> Iterator[HostDevice]:
    run("claim", *FORCED, device.name)
    yield device.refreshed()
    run("release", "--all")


def test_no_command_takes_the_group_for_an_iommu(claimed: HostDevice) -> None:
    """VFIO has made it; every command says that the device reaches all memory."""
    name, node = claimed.name, claimed.vfio_cdev
    assert node is not None
    checked = run_json("check", status=3)
    found = {(one["check"], one["state"]): one for one in checked["findings"]}
    assert ("iommu", "missing") in found
    assert ("iommu", "ok") not in found
    assert ("cdev", "ok") in found
    assert found["iommu", "warning"]["devices"] == [name]
    assert "reaches all memory" in found["iommu", "warning"]["summary"]
    assert {one["check"] for one in checked["findings"]}.isdisjoint({"isolated-msi", "reserved", "mixed-group"})
    standing = {one["name"]: (one["standing"], one["group"]) for one in run_json("list")}
    assert standing.pop(name) == ("vfio-noiommu", claimed.group_id)
    assert {one for one, _ in standing.values()} <= {"no-group", "bridge"}
    for way in (Path(node).name, node, f"/sys/class/vfio-dev/{Path(node).name}"):
        assert ALL_MEMORY in run("show", way).stdout
    (group,) = run_json("groups")
    assert (group["id"], group["made_by_vfio"], group["devices"][0]["name"]) == (claimed.group_id, True, name)
    assert f"group {claimed.group_id} (no IOMMU: {ALL_MEMORY})" in run("topology").stdout
    assert f"vfio-noiommu: {ALL_MEMORY}" in run("list").stderr
    assert f"no IOMMU: {ALL_MEMORY}" in run("groups").stdout
    assert ALL_MEMORY in run("caps", name).stdout
    assert [one["devices"] for one in run_json("claims")] == [[name]]
    for request, errno in (("bind", "EPERM"), ("attach", "EINVAL"), ("open", "EPERM")):
        assert ALL_MEMORY in run("explain", request, errno, name).stdout
    # The kernel asks for isolated interrupts only where an IOMMU is.
    causes = run_json("explain", "bind", "EPERM", name)["causes"]
    assert causes == []


def test_plan_and_second_claim(claimed: HostDevice) -> None:
    """The device is on vfio: that makes it no safer, also when the claim is gone and the driver has stayed."""
    name = claimed.name
    assert {one["kind"] for one in run_json("plan", name, status=3)["refusals"]} == {"claimed", "noiommu"}
    assert "claimed already" in run("claim", *FORCED, name, status=1).stderr
    assert "[claimed]" in run("rebind", name, status=1).stderr
    run("release", name)
    folder = Path("/sys/bus/pci")
    (folder / "devices" / name / "driver_override").write_text("vfio-pci")
    (folder / "drivers/vfio-pci/bind").write_text(name)
    try:
        refused = run("claim", name, status=3).stderr
        assert "[noiommu]" in refused
        assert "to override: --force noiommu; with noiommu forced, DMA of the device reaches all of memory" in refused
        with plan_claim(name, force=["noiommu"]).apply() as claim:
            assert claim.devices[0].without_iommu
    finally:
        (folder / "drivers/vfio-pci/unbind").write_text(name)
        (folder / "devices" / name / "driver_override").write_text("\n")


def test_holders_and_watch(device: HostDevice) -> None:
    with Monitor(["vfio-dev"]) as monitor:
        command = ["pyiommufd", "run", *FORCED, "--vmm", "other", device.name]
        shown = subprocess.run(
            [*command, "--", "sh", "-c", f"pyiommufd holders --json {device.name}; true"],
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        nodes = {one["node"] for one in json.loads(shown.stdout)}
        (node,) = nodes
        assert Path(node).name.startswith("noiommu-vfio")
        events = [monitor.poll(patience()), monitor.poll(patience())]
    assert [(event.action, event.name) for event in events if event] == [
        ("add", Path(node).name),
        ("remove", Path(node).name),
    ]
    assert all(event is not None and event.device == device for event in events)
    refused = run("run", *FORCED, device.name, "--", "qemu-system-x86_64", status=125).stderr
    assert "the VM's addresses would not be translated" in refused


def test_user_needs_a_capability_as_well(device: HostDevice) -> None:
    """The node is the user's, and the kernel asks for CAP_SYS_RAWIO all the same."""
    run("claim", *FORCED, "--user", "nobody", device.name)
    try:
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
        opened = subprocess.run(
            [*as_nobody, sys.executable, "-c", OPEN, device.name],
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
        assert opened.stdout == "devices without an IOMMU are for CAP_SYS_RAWIO only / 1\n", opened.stderr
        checked = subprocess.run(
            [*as_nobody, sys.executable, "-m", "pyiommufd.cli", "check", "--json"],
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )
        found = [one for one in json.loads(checked.stdout)["findings"] if one["check"] == "permissions"]
        assert [(one["state"], one["devices"]) for one in found] == [("missing", [device.name])]
        assert "CAP_SYS_RAWIO" in found[0]["evidence"]
    finally:
        run("release", device.name)


def test_claim_of_a_killed_process_and_one_for_every_boot(device: HostDevice) -> None:
    child = os.fork()
    if not child:
        try:
            plan_claim(device, force=["noiommu"]).apply()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert device.refreshed().on_vfio
    assert recover() == [device.name]
    assert device.refreshed().driver is None
    systemd = Path("/run/systemd/system")
    systemd.mkdir(parents=True)
    try:
        run("claim", *FORCED, "--persist", device.name)
        (file,) = claim_file.files()
        kept = file.read_bytes()
        run("release", "--all")
        # As after a boot: what is forced is on record.
        file.write_bytes(kept)
        boot_unit.install()
        run("claim", "--persistent")
        assert device.refreshed().vfio_cdev is not None
        run("release", "--all")
    finally:
        shutil.rmtree(systemd)
