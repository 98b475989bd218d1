"""The reading commands on a real kernel: what they say is what sysfs and the kernel say."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pyiommufd import IOMMUFD, Claim, Device, DeviceFeature, HostDevice, Monitor, list_devices, plan_claim
from pyiommufd.host import drivers
from pyiommufd.uapi.known import REQUESTS, known_requests
from tests.guest.forked import run_cli, start_cli
from tests.patience import patience


def run(*arguments: str, status: int = 0) -> str:
    done = run_cli(*arguments)
    assert done.returncode == status, done
    assert "\x1b" not in done.stdout
    return done.stdout


def run_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status))


def test_check_finds_this_guest_ready() -> None:
    shown = run_json("check")
    assert shown["ready"] is True
    states = {finding["check"]: finding["state"] for finding in shown["findings"]}
    for name in ("iommu", "iommufd", "cdev", "vfio-pci", "isolated-msi", "reserved", "memlock", "permissions"):
        assert states[name] == "ok", name
    # edu devices beside others on their bus have no reset.
    assert states["reset"] == "warning"


@pytest.mark.long
def test_a_user_who_may_not_is_told(first: HostDevice) -> None:
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        sys.executable,
        "-m",
        "pyiommufd.cli",
    ]
    done = subprocess.run([*command, "check", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["permissions"]["state"] == "missing"
    assert "/dev/iommu" in findings["permissions"]["summary"]
    assert findings["memlock"]["state"] == "warning"


def test_list_is_what_sysfs_has() -> None:
    shown = {device["name"]: device for device in run_json("list", "--bus", "pci")}
    assert sorted(shown) == sorted(path.name for path in Path("/sys/bus/pci/devices").iterdir())
    for device in list_devices("pci"):
        one = shown[device.name]
        assert (one["driver"], one["group"], one["iommu"]) == (device.driver, device.group_id, device.iommu)


def test_group_and_blockers(first: HostDevice, neighbour: HostDevice) -> None:
    blockers = [] if neighbour.refreshed().on_vfio else [neighbour.name]
    (group,) = run_json("groups", str(first.group_id))
    assert group["blockers"] == blockers
    assert {device["name"] for device in group["devices"]} >= {first.name, neighbour.name}
    shown = run_json("show", first.name)
    assert shown["iommu_group"] == group
    assert neighbour.name in shown["plan"]["companions"]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not here (package graphviz)")
def test_holders_and_topology(device: Device, first: HostDevice, tmp_path: Path) -> None:
    (holder,) = run_json("holders", first.name)
    assert (holder["pid"], holder["how"]) == (os.getpid(), f"fd {device.fileno()}")
    shown = run_json("topology")
    (one,) = [each for each in shown["devices"] if each["name"] == first.name]
    assert one["holders"] == [holder]
    names = [each["name"] for each in shown["devices"]]
    assert sorted(names) == sorted(each.name for each in list_devices())
    picture = tmp_path / "topology.svg"
    run("topology", "--svg", str(picture))
    tree = ElementTree.parse(picture)  # noqa: S314 - our own picture
    texts = ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    for name in names:
        assert len([text for text in texts if text.startswith(name)]) == 1, name
    assert f"pid {os.getpid()}" in texts


def test_explain_says_what_this_guest_rules_out(alone: HostDevice) -> None:
    with plan_claim(alone).apply():
        shown = run_json("explain", "bind", "EPERM", alone.name)
    general = [cause["summary"] for cause in run_json("explain", "bind", "EPERM")["causes"]]
    assert (shown["causes"], shown["ruled_out"]) == ([], general)


def test_explain_sees_the_holder(device: Device, first: HostDevice) -> None:
    shown = run_json("explain", "bind", "EINVAL", first.name)
    assert f"pid {os.getpid()}" in shown["causes"][0]["evidence"]


def test_caps_of_the_kernel(iommufd: IOMMUFD) -> None:
    shown = run_json("caps")
    assert shown["requests"] == known_requests(iommufd.fileno())
    assert shown["cdev"] is True
    assert all(shown["requests"][name] for name in REQUESTS[:14])  # of 6.8 and before
    # Asking has made nothing, and destroyed nothing.
    assert iommufd.alloc_ioas().id == 1


def test_caps_of_a_device(claimed: Claim, first: HostDevice) -> None:
    shown = run_json("caps", first.name)
    info = shown["hw_info"]
    with IOMMUFD() as iommufd, iommufd.bind(first) as device:
        assert shown["features"]["LOW_POWER_ENTRY"] == ["set"]
        assert {name for name, access in shown["features"].items() if access} == {
            feature.name for feature in DeviceFeature if device.feature(feature).probe()
        }
        assert info["data"] == device.hw_info().data.hex()
        assert info["type"] == "intel_vtd"
        shown = run_json("caps", first.name, status=1)
    assert (shown["hw_info"], shown["features"]) == (None, None)
    assert f"pid {os.getpid()}" in shown["why_not"]


def test_caps_of_a_device_that_nobody_claimed() -> None:
    bridge = next(device for device in list_devices("pci") if device.driver == "pcieport")
    assert "claim" in run_json("caps", bridge.name, status=1)["why_not"]


def test_watch(claimed: Claim, peer: HostDevice) -> None:
    command = ["watch", "--json", "--count", "2", "--timeout", f"{patience():.0f}", "--bus", "pci"]
    with Monitor(["pci"]) as monitor, start_cli(*command, stdout=subprocess.PIPE) as process:
        # It listens from when it has started, which nothing tells: so until it has heard.
        while process.poll() is None:
            drivers.unbind(peer)
            drivers.bind(peer, "vfio-pci")
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        assert {event["action"] for event in events} <= {"bind", "unbind"}
        assert {event["name"] for event in events} == {peer.name}
        assert {event["device"]["name"] for event in events} == {peer.name}

        async def first_event() -> str:
            async for event in monitor:
                return event.name
            raise AssertionError

        assert asyncio.run(asyncio.wait_for(first_event(), patience())) == peer.name
