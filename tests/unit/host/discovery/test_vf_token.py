"""What is a VF token, and whose bind takes one."""

from __future__ import annotations

import uuid

import pytest

from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.host.discovery.vf_token import as_token, takes_token
from tests.fake_sysfs import FakeSysfs

TOKEN = uuid.UUID("bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3")


def test_what_is_one() -> None:
    assert as_token(str(TOKEN)) == as_token(TOKEN.bytes) == as_token(TOKEN) == TOKEN
    with pytest.raises(ValueError, match="'x' is not a UUID"):
        as_token("x")
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        as_token(TOKEN.bytes[1:])
    for other in (None, TOKEN.int):
        with pytest.raises(TypeError, match="a VF token is a UUID, not"):
            as_token(other)  # type: ignore[arg-type]


def test_who_takes_one(fake: FakeSysfs) -> None:
    physical = fake.pci("0000:01:00.0", driver="vfio-pci", group=1, cdev=-1, sriov_totalvfs="2")
    virtual = fake.pci("0000:01:00.1", driver="vfio-pci", group=2, cdev=-1)
    fake.link(f"{virtual.relative_to(fake.root)}/physfn", physical)
    hosts = fake.pci("0000:02:00.0", driver="nvme", group=3, sriov_totalvfs="2")
    plain = fake.pci("0000:02:00.1", driver="vfio-pci", group=4, cdev=-1)
    fake.link(f"{plain.relative_to(fake.root)}/physfn", hosts)
    other = fake.pci("0000:03:00.0", driver="vfio-pci", group=5, cdev=-1)
    found = map(from_sys_path, (physical, virtual, hosts, plain, other))
    assert [takes_token(device) for device in found] == [True, True, True, False, False]
