"""Which device has which feature: the table of docs/features.md, and each that is lacking refused by its name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    Device,
    DeviceFeature,
    FeatureAccess,
    IoctlError,
    IOVARange,
    UnsupportedError,
    find_device,
)
from pyiommufd.testing.drivers import edu, igb
from tests.guest.devices.factories import Claimer

PAGE = Path(__file__).parents[3] / "docs/features.md"
PCI = {
    "edu": (edu.VENDOR_ID, edu.DEVICE_ID),
    "nvme": (0x1B36, 0x0010),
    "igb": (igb.VENDOR_ID, igb.DEVICE_ID),
    "virtio": (0x1AF4, 0x1044),  # virtio-rng
}
MEDIATED = {"mtty": "mtty-2", "mbochs": "mbochs-small"}
UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1{:03}"


def table() -> dict[str, dict[str, str]]:
    """For each device what the page says of each feature."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    head, *body = rows
    return {device: {row[0].strip("`"): row[at] for row in body} for at, device in enumerate(head) if at > 1}


@pytest.fixture(scope="module")
def mediated() -> Iterator[dict[str, str]]:
    """The mediated devices of the kernel's samples, by their drivers."""
    made = {}
    modules = Path(os.environ["PYIOMMUFD_MODULES"])
    for module in ("mdev", *MEDIATED):
        if not Path(f"/sys/module/{module}").exists():  # for good: this kernel unloads none
            subprocess.run(["insmod", modules / f"{module}.ko"], check=True)
    for number, (driver, kind) in enumerate(MEDIATED.items()):
        made[driver] = UUID.format(number)
        Path(f"/sys/class/mdev_bus/{driver}/mdev_supported_types/{kind}/create").write_text(made[driver])
    yield made
    for name in made.values():
        (find_device(name).sys_path / "remove").write_text("1")


@pytest.fixture(params=[*PCI, *MEDIATED])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(kind: str, claim: Claimer, mediated: dict[str, str], iommufd: IOMMUFD) -> Device:
    return iommufd.bind(claim(*PCI[kind]) if kind in PCI else mediated[kind])


def test_each_feature_is_there_as_the_page_says_or_refused_by_name(kind: str, device: Device) -> None:
    for feature in DeviceFeature:
        one = device.feature(feature)
        found = one.probe()
        words = ", ".join((access.name or "").lower() for access in FeatureAccess if access in found)
        assert table()[kind][feature.name] == (words or "-"), feature
        if FeatureAccess.GET not in found and feature is not DeviceFeature.DMA_BUF:
            with pytest.raises(UnsupportedError, match=feature.name):
                one.get(64)
        if FeatureAccess.SET not in found and feature is not DeviceFeature.MIG_DEVICE_STATE:
            with pytest.raises(UnsupportedError, match=feature.name):
                one.set(bytes(64))


@pytest.fixture
def mtty(mediated: dict[str, str], iommufd: IOMMUFD) -> Device:
    """Its core checks what is logged, and its own part notes no writes: there is no DMA to note."""
    return iommufd.bind(mediated["mtty"])


def test_dma_logging(mtty: Device) -> None:
    log = mtty.dma_logging
    with pytest.raises(ValueError, match="start"):
        log.report(0, 4096)
    assert log.start([IOVARange(0x10000, 0x1FFFF), (0, 4095)]) == 4096
    bitmap = log.report(0x10000, 65 * 4096)
    assert (bitmap.iova, bitmap.pages, bitmap.page_size) == (0x10000, 65, 4096)
    assert len(bitmap.words) == 2
    assert list(bitmap.ranges()) == []
    log.stop()
    with pytest.raises(ValueError, match="start"):
        log.report(0, 4096)
    assert log.report(0, 1 << 21, 1 << 20).pages == 2


def test_the_kernel_sees_every_range_that_is_logged(mtty: Device) -> None:
    ranges = [(at << 12, (at << 12) + 4095) for at in range(256)]
    assert mtty.dma_logging.start(ranges) == 4096
    with pytest.raises(IoctlError, match="E2BIG") as refusal:
        mtty.dma_logging.start([*ranges, (1 << 30, (1 << 30) + 4095)])
    assert refusal.value.causes[0].evidence == "257 ranges"
    assert mtty.dma_logging.start([(0, (1 << 64) - 4097)]) == 4096


@pytest.mark.parametrize(
    ("ranges", "page_size", "says"),
    [
        ([], 4096, "no range"),
        ([(0, 4094)], 4096, "begin and end"),
        ([(1, 4096)], 4096, "begin and end"),
        ([(0, 4095)], 8192, "begin and end"),
        ([(4096, 8191), (0, 8191)], 4096, "overlap at 0x1000"),
        ([(0, 4095)], 0, "power of two"),
        ([(0, 4095)], 2048, "at least"),
        ([(0, 4095)], 3000, "power of two"),
        ([(4096, 4095)], 4096, "not a range"),
        ([((1 << 64) - 4096, (1 << 64) - 1)], 4096, "last address"),
    ],
)
def test_ranges_that_cannot_be_logged(mtty: Device, ranges: list[tuple[int, int]], page_size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mtty.dma_logging.start(ranges, page_size)


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "says"),
    [
        (0, 4096, 2048, "at least"),
        (0, 4096, 12288, "power of two"),
        (4095, 4096, 4096, "multiples"),
        (0, 4097, 4096, "multiples"),
        (0, 0, 4096, "range"),
        ((1 << 64) - 4096, 8192, 4096, "last address"),
        ((1 << 64) - 4096, 4096, 4096, "last address"),
    ],
)
def test_ranges_that_cannot_be_reported(mtty: Device, iova: int, length: int, page_size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mtty.dma_logging.report(iova, length, page_size)
