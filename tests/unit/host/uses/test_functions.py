"""Virtual functions in use."""

from __future__ import annotations

from pyiommufd import list_devices
from pyiommufd.host import uses
from tests.unit.host.uses.host import Host


def test_functions_on_drivers(host: Host) -> None:
    physical = host.fake.pci("0000:00:01.0", driver="igb")
    for number, driver in enumerate([None, "vfio-pci", "igbvf"]):
        name = f"0000:00:10.{number}"
        function = host.fake.pci(name, driver=driver)
        host.fake.link(f"{host.at(physical)}/virtfn{number}", function)
        if driver is None:
            assert host.refusals() == []
    assert host.refusals() == [
        ("vfs", "virtual functions of it are in use: 0000:00:10.1 (vfio-pci) and 0000:00:10.2 (igbvf)")
    ]


def test_functions_of_what_goes_with_it(host: Host) -> None:
    host.fake.vmd()
    drive = host.device("10000:01:00.0").sys_path
    assert host.refusals("0000:00:0e.0") == []
    function = host.fake.pci("10000:01:00.1", parent="10000:00:01.0", driver="vfio-pci", cdev=0)
    host.fake.link(f"{host.at(drive)}/virtfn0", function)
    refused = [("vfs", "virtual functions of it are in use: 10000:01:00.1 (vfio-pci)")]
    assert host.refusals("0000:00:0e.0") == refused
    assert set(uses.in_use(list_devices())) == {host.device("0000:00:0e.0"), host.device("10000:01:00.0")}


def test_what_goes_with_it_and_has_been_given_away(host: Host) -> None:
    host.fake.vmd()
    given = host.fake.pci("10000:01:00.2", parent="10000:00:01.0", driver="vfio-pci", cdev=0)
    refused = [("vfs", "devices that go away with it are in use: 10000:01:00.2 (vfio-pci)")]
    assert host.refusals("0000:00:0e.0") == refused
    assert set(uses.in_use(list_devices())) == {host.device("0000:00:0e.0")}
    # Its node is one of the device's like any other.
    host.node(given / "vfio-dev/vfio0", "char", "1:3", "vfio/devices/vfio0")
    host.process(70, "qemu", holds="/dev/null")
    refused.append(("held", "/dev/vfio/devices/vfio0 is held open by pid 70 (qemu)"))
    assert host.refusals("0000:00:0e.0") == refused
