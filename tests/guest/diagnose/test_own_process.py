"""Where the one who is in the way is the caller's own process, the refusal says so."""

from __future__ import annotations

import errno
import os
import uuid

import pytest

from pyiommufd import IOMMUFD, Claim, Device, DeviceFile, HostDevice, IoctlError


def evidence(device: Device) -> str:
    return f"this process (pid {os.getpid()}) holds {device.host.refreshed().vfio_cdev} by fd {device.fileno()}"


@pytest.mark.parametrize("same", [True, False], ids=["same iommufd", "another"])
def test_device_that_is_bound_already(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, same: bool) -> None:
    device = iommufd.bind(first)
    with IOMMUFD() as other:
        asked = iommufd if same else other
        with pytest.raises(IoctlError) as caught:
            asked.bind(first)
        assert caught.value.errno == errno.EINVAL
        (cause,) = caught.value.causes
        assert cause.summary == "this process has bound the device already"
        assert cause.evidence == evidence(device)
        # The two ways out that it names.
        assert "close() it first: it is among the devices of the IOMMUFD object that bound it" in cause.fix
        assert device in iommufd.devices
        device.close()
        asked.bind(first).close()


def test_file_that_is_open_and_not_bound_is_not_blamed(claimed: Claim, iommufd: IOMMUFD, first: HostDevice) -> None:
    with DeviceFile(first), pytest.raises(IoctlError) as caught:
        iommufd.bind(first, token=uuid.uuid4())
    assert caught.value.errno == errno.EINVAL
    assert not any("another fd" in cause.summary or "this process" in str(cause) for cause in caught.value.causes)
    assert any("VF token" in cause.summary for cause in caught.value.causes)


def test_peer_that_is_bound_elsewhere(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, peer: HostDevice) -> None:
    device = iommufd.bind(peer)
    with IOMMUFD() as other, pytest.raises(IoctlError) as caught:
        other.bind(first)
    assert caught.value.errno == errno.EPERM
    cause = caught.value.causes[0]
    assert cause.summary == "the group is owned by another iommufd of this process"
    assert cause.evidence == evidence(device)
    assert f"whose devices have fd {device.fileno()}" in cause.fix
