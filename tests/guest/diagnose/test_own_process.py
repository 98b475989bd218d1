"""Where the one who is in the way is the caller's own process, the refusal says so."""

from __future__ import annotations

import errno
import os
import uuid

import pytest

from pyiommufd import IOMMUFD, Claim, CloseError, Device, DeviceFile, HostDevice, IoctlError


def evidence(device: Device, *others: int) -> str:
    """That this process has the device open, by its fd and these."""
    fds = ", ".join(f"fd {fd}" for fd in sorted((device.fileno(), *others)))
    return f"this process (pid {os.getpid()}) holds {device.host.refreshed().vfio_cdev} by {fds}"


@pytest.mark.parametrize("same", [True, False], ids=["same iommufd", "another"])
def test_device_that_is_bound_already(claimed: Claim, iommufd: IOMMUFD, first: HostDevice, same: bool) -> None:
    device = iommufd.bind(first)
    with IOMMUFD() as other:
        asked = iommufd if same else other
        with pytest.raises(IoctlError) as caught:
            asked.bind(first)
        assert caught.value.errno == errno.EINVAL
        (cause,) = caught.value.causes
        assert cause.summary == "this process has the device bound"
        assert cause.evidence == evidence(device)
        # The two ways out that it names.
        assert cause.fix == f"use {device!r}, or close() it first"
        device.close()
        asked.bind(first).close()


def test_each_fd_of_one_device_is_named_in_one_cause(
    request: pytest.FixtureRequest, claimed: Claim, iommufd: IOMMUFD, first: HostDevice
) -> None:
    """Of an object, of a copy that none has, and a mapping; a release says so once for the group."""
    device = iommufd.bind(first)
    copy = os.dup(device.fileno())
    request.addfinalizer(lambda: os.close(copy))
    with device.region(0).map(), Device.from_fd(os.dup(copy), iommufd) as twin:
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(first)
        (cause,) = caught.value.causes
        assert cause.evidence == f"{evidence(device, copy, twin.fileno())} and 1 more"
        assert cause.fix == f"use {device!r}, or close() all 2 Devices of it first"
        with pytest.raises(CloseError) as left:
            claimed.release()
        assert str(left.value).count("holds") == 1
        assert str(left.value).count("stays as it is, as ") == len(left.value.errors) - 1
    device.close()
    with pytest.raises(IoctlError) as caught:
        iommufd.bind(first)
    assert caught.value.causes[0].fix == f"take fd {copy} over by Device.from_fd(), or close it first"


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
