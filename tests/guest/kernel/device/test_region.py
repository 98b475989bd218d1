"""Regions by pread and pwrite."""

from __future__ import annotations

import errno

import pytest

from pyiommufd import (
    ClosedError,
    ConfigSpace,
    Device,
    IoctlError,
    MmapArea,
    RegionIndex,
    UnsupportedError,
    uapi,
)
from pyiommufd.kernel.device.region_bytes import RegionFlag
from pyiommufd.uapi import device_ioctls

CONFIG, VGA = 7, 8
LIVENESS = 0x04


def test_registers_of_edu(device: Device) -> None:
    region = device.region(0)
    assert region.size == 1 << 20
    assert region.flags & RegionFlag.READ
    assert region.flags & RegionFlag.WRITE
    assert region.flags & RegionFlag.MMAP
    assert region.read(0, 4)[0] == 0xED
    region.write(LIVENESS, bytes.fromhex("00ff00aa"))
    assert region.read(LIVENESS, 4) == bytes.fromhex("ff00ff55")


def test_config_space(device: Device) -> None:
    config = device.config
    assert config.index == CONFIG
    assert config.size == 256
    assert config.read(0, 4) == bytes.fromhex("3412e811")
    # Longer than the kernel reads at a time.
    assert len(config.read(0, 256)) == 256
    # The line register is for software to keep something in; vfio lets it through.
    before = config.read(0x3C, 1)
    config.write(0x3C, b"\x0b")
    assert config.read(0x3C, 1) == b"\x0b"
    config.write(0x3C, bytearray(before))


def test_command_register_by_config_and_property_agree(device: Device) -> None:
    device.bus_master = False
    assert not device.config.read(4, 2)[0] & 4
    device.bus_master = True
    assert device.config.read(4, 2)[0] & 4
    # Only that bit has changed.
    assert device.config.read(4, 2)[0] & 2


def test_empty_region(device: Device) -> None:
    region = device.region(1)
    assert region.size == 0
    assert region.read(0, 0) == b""
    missing = rf"{device.name} has no region 1 \(it has 0 \(BAR0\), 7 \(CONFIG\)\)"
    with pytest.raises(ValueError, match=missing):
        region.read(0, 1)
    with pytest.raises(ValueError, match=missing):
        region.write(0, b"x")
    with pytest.raises(ValueError, match=missing):
        region.ioeventfd(0, 4, 1)
    with pytest.raises(UnsupportedError, match=missing):
        region.map()


def test_region_that_is_not_there(device: Device) -> None:
    for index in (VGA, 9, 0xFFFF_FFFF):
        with pytest.raises(IoctlError) as caught:
            device.region(index)
        assert caught.value.errno == errno.EINVAL
    for wrong in (-1, 1 << 32):
        with pytest.raises(ValueError, match="index of a region"):
            device.region(wrong)
    with pytest.raises(TypeError):
        device.region("0")  # type: ignore[arg-type]


def test_regions_that_are_there(device: Device) -> None:
    regions = device.regions
    assert list(regions) == [RegionIndex.BAR0, RegionIndex.CONFIG]
    assert all(isinstance(index, RegionIndex) for index in regions)
    assert [region.size for region in regions.values()] == [1 << 20, 256]
    assert regions[0].index == RegionIndex.BAR0 == device.region(RegionIndex.BAR0).index
    with regions[RegionIndex.BAR0].map() as window:
        assert window.read32(0) & 0xFF == 0xED
    # The kernel's numbers.
    assert [*RegionIndex] == list(range(uapi.VFIO_PCI_NUM_REGIONS))
    device.close()
    with pytest.raises(ClosedError):
        _ = device.regions


def test_region_of_what_is_no_pci_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the number of a BAR, and no MSI-X table to be looked for in region 7. No guest here has such a device."""

    def no_config_space(self: object, device: Device, index: int) -> None:
        raise AssertionError(f"{device} has no region {index}")

    monkeypatch.setattr(device_ioctls, "device_info", lambda _: (uapi.VFIO_DEVICE_FLAGS_PLATFORM, 1, 0, []))
    monkeypatch.setattr(ConfigSpace, "__init__", no_config_space)
    assert device.region(0).mappable == (MmapArea(0, 1 << 20),)


def test_missing_region_is_named_with_those_that_are_there(device: Device) -> None:
    for index in (100, RegionIndex.VGA):
        with pytest.raises(IoctlError) as caught:
            device.region(index)
        (cause,) = caught.value.causes
        assert cause.summary == f"{device.name} has no region {int(index)}"
        assert cause.evidence == "it has 0 (BAR0), 7 (CONFIG)"


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, -1), (1 << 20, 1), ((1 << 20) - 3, 4), (1 << 70, 1)])
def test_range_outside(device: Device, offset: int, size: int) -> None:
    region = device.region(0)
    with pytest.raises(ValueError, match="not within"):
        region.read(offset, size)
    if size > 0:
        with pytest.raises(ValueError, match="not within"):
            region.write(offset, bytes(size))
        with pytest.raises(ValueError, match="not within"):
            region.map(offset, size)


def test_write_takes_bytes_only(device: Device) -> None:
    with pytest.raises(TypeError):
        device.region(0).write(0, "text")  # type: ignore[arg-type]


def test_reads_and_writes_with_memory_decode_off(device: Device) -> None:
    region, config = device.region(0), device.config
    command = config.read(4, 2)
    config.write(4, bytes([command[0] & ~2, command[1]]))
    for use in (lambda: region.read(0, 4), lambda: region.write(LIVENESS, bytes(4))):
        with pytest.raises(IoctlError) as caught:
            use()
        assert caught.value.errno == errno.EIO
        (cause,) = caught.value.causes
        assert cause.summary == "the device's memory decode is off"
        assert cause.fix == "set its memory_decode to True"
    device.memory_decode = True
    assert config.read(4, 2) == command
    assert region.read(0, 4)[0] == 0xED
