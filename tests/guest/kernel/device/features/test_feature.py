"""VFIO_DEVICE_FEATURE on a device of vfio-pci: what it has, and how the rest is refused."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pyiommufd import ClosedError, Device, DeviceFeature, FeatureAccess, IoctlError, UnsupportedError, uapi
from pyiommufd.uapi import raw

MISSING = {feature for feature in DeviceFeature if not feature.name.startswith(("LOW_POWER", "DMA_BUF"))}
"""Those of Linux 7.3 that no PCI device without SR-IOV has on vfio-pci."""
LATER = 0x1234
"""A feature that no kernel has yet."""


def test_probe_says_what_the_device_has(device: Device) -> None:
    found = {feature: device.feature(feature).probe() for feature in (*DeviceFeature, LATER)}
    power = (feature for feature in DeviceFeature if feature.name.startswith("LOW_POWER"))
    assert {found[feature] for feature in power} == {FeatureAccess.SET}
    assert found[DeviceFeature.DMA_BUF] in (FeatureAccess.GET, FeatureAccess(0))  # not before Linux 6.19
    assert {found[feature] for feature in (*MISSING, LATER)} == {FeatureAccess(0)}


@pytest.mark.parametrize("number", [*sorted(MISSING - {DeviceFeature.MIG_DEVICE_STATE}), LATER])
def test_a_feature_that_the_device_lacks_is_refused_by_name(device: Device, number: int) -> None:
    feature = device.feature(number)
    name = f"feature {LATER}" if number == LATER else DeviceFeature(number).name
    with pytest.raises(UnsupportedError) as got:
        feature.get(8)
    with pytest.raises(UnsupportedError) as put:
        feature.set(bytes(16))
    assert f"{device.name} (get {name}): E" in str(got.value)
    assert f"{device.name} (set {name}): E" in str(put.value)
    assert got.value.causes[0].summary == f"{device.name} does not have {name}"


def test_what_a_feature_does_not_do_is_refused_as_unsupported(device: Device) -> None:
    """The kernel answers EINVAL to that, as it does to a wrong argument."""
    with pytest.raises(UnsupportedError) as refusal:
        device.feature(DeviceFeature.LOW_POWER_ENTRY).get(8)
    assert refusal.value.errno == errno.EINVAL
    assert refusal.value.causes[0].fix == "SET is what it supports"


def test_a_wrong_argument_is_not_called_unsupported(device: Device) -> None:
    with pytest.raises(IoctlError) as refusal:
        device.feature(DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP).set(bytes(3))  # its struct has 8 bytes
    assert type(refusal.value) is IoctlError
    assert refusal.value.errno == errno.EINVAL
    (cause,) = refusal.value.causes
    assert (cause.summary, cause.evidence) == (
        "the struct of LOW_POWER_ENTRY_WITH_WAKEUP has 8 bytes",
        "3 were given",
    )
    with pytest.raises(IoctlError) as refusal:
        device.feature(DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP).set(b"\xff" * 8)  # the fd -1
    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("number", "access", "other"),
    [(DeviceFeature.DMA_BUF, "get", "export_dma_buf"), (DeviceFeature.MIG_DEVICE_STATE, "set", "set_state")],
)
def test_a_file_that_would_be_lost_is_not_opened(device: Device, number: int, access: str, other: str) -> None:
    call: Any = getattr(device.feature(number), access)
    with pytest.raises(ValueError, match=other):
        call(*([16] if access == "get" else []))


@pytest.mark.parametrize("number", [-1, 0x1_0000])
def test_numbers_that_are_no_feature_s(device: Device, number: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 65535"):
        device.feature(number)


def test_arguments_that_are_none(device: Device) -> None:
    wrong: Any = "LOW_POWER_ENTRY"
    with pytest.raises(TypeError, match="an int"):
        device.feature(wrong)
    feature = device.feature(DeviceFeature.PCI_VF_TOKEN)
    with pytest.raises(TypeError, match="bytes, not str"):
        feature.set(wrong)
    with pytest.raises(ValueError, match="from 3, "):
        feature.get(2, bytes(3))
    with pytest.raises(ValueError, match="to 1048576, not 4294967296"):
        feature.get(1 << 32)


def test_a_closed_device_has_no_features(device: Device) -> None:
    feature = device.feature(DeviceFeature.LOW_POWER_EXIT)
    device.close()
    for call in (feature.probe, lambda: feature.get(8), feature.set):
        with pytest.raises(ClosedError):
            call()


def test_probe_agrees_with_the_bare_ioctl(device: Device) -> None:
    fd, probe = device.fileno(), int(uapi.VFIO_DEVICE_FEATURE_PROBE)
    for feature in DeviceFeature:
        for access in FeatureAccess:
            command = raw.struct("vfio_device_feature", flags=feature | access | probe)
            try:
                raw.ioctl(fd, uapi.VFIO_DEVICE_FEATURE, command)
                supported = True
            except IoctlError:
                supported = False
            assert (access in device.feature(feature).probe()) == supported, (feature, access)


def test_bus_mastering_of_pci_goes_by_its_command_register(device: Device) -> None:
    device.bus_master = False
    assert not device.config.read16(4) & 4
    device.bus_master = True
    assert device.config.read16(4) & 4


def test_no_zpci_error_outside_of_zpci(device: Device) -> None:
    with pytest.raises(UnsupportedError, match="ZPCI_ERROR"):
        device.zpci_error()


def test_no_dma_logging_without_a_driver_that_logs(device: Device) -> None:
    with pytest.raises(UnsupportedError, match="set DMA_LOGGING_START"):
        device.dma_logging.start([(0, 4095)])
    with pytest.raises(UnsupportedError, match="get DMA_LOGGING_REPORT"):
        device.dma_logging.report(0, 4096, 4096)
    with pytest.raises(UnsupportedError, match="set DMA_LOGGING_STOP"):
        device.dma_logging.stop()
