"""Virtual functions in use."""

from __future__ import annotations

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
