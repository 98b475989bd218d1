"""A distribution's kernel: its configuration and the order of its modules."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyiommufd.testing.provision.distribution_kernel import boot_modules, find, module_content, module_name
from pyiommufd.testing.provision.kernels import find_kernel

RELEASE = "6.17.0-5-generic"
WITH = "CONFIG_IOMMUFD=m\nCONFIG_VFIO_DEVICE_CDEV=y\n"
TABLE = """\
kernel/drivers/vfio/pci/vfio-pci.ko.zst: kernel/drivers/vfio/pci/vfio-pci-core.ko.zst kernel/drivers/vfio/vfio.ko.zst
kernel/drivers/vfio/pci/vfio-pci-core.ko.zst: kernel/drivers/vfio/vfio.ko.zst
kernel/drivers/vfio/vfio.ko.zst:
kernel/fs/9p/9p.ko.zst: kernel/net/9p/9pnet.ko.zst kernel/fs/netfs/netfs.ko.zst
kernel/net/9p/9pnet_virtio.ko.zst: kernel/net/9p/9pnet.ko.zst
kernel/net/9p/9pnet.ko.zst:
kernel/fs/netfs/netfs.ko.zst:
kernel/sound/unrelated.ko.zst:
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("boot", f"lib/modules/{RELEASE}"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / f"boot/vmlinuz-{RELEASE}").write_bytes(bytes(0x202) + b"HdrS")
    (tmp_path / f"boot/config-{RELEASE}").write_text(WITH)
    (tmp_path / f"lib/modules/{RELEASE}/modules.dep").write_text(TABLE)
    return tmp_path


def test_kernel_with_both_options(root: Path) -> None:
    assert find(RELEASE, root) == root / f"boot/vmlinuz-{RELEASE}"


@pytest.mark.parametrize("config", ["", "CONFIG_IOMMUFD=m\n", "# CONFIG_IOMMUFD is not set\n" + WITH.split()[1]])
def test_kernel_without(root: Path, config: str) -> None:
    (root / f"boot/config-{RELEASE}").write_text(config)
    assert find(RELEASE, root) is None


def test_configuration_beside_the_modules(root: Path) -> None:
    (root / f"boot/config-{RELEASE}").rename(root / f"lib/modules/{RELEASE}/config")
    assert find(RELEASE, root) is not None
    assert find("another", root) is None


def test_modules_come_after_what_they_need(root: Path) -> None:
    names = [module_name(path.name) for path in boot_modules(RELEASE, root)]
    assert names == ["9pnet", "9pnet_virtio", "netfs", "9p", "vfio", "vfio_pci_core", "vfio_pci"]
    assert boot_modules("another", root) == ()


def test_running_kernel_is_the_last_resort(root: Path) -> None:
    running = os.uname().release
    environment = {"XDG_CACHE_HOME": str(root / "cache")}
    for path in ("boot/vmlinuz-", "boot/config-", "lib/modules/"):
        (root / f"{path}{RELEASE}").rename(root / f"{path}{running}")
    kernel = find_kernel(None, environment, root=root)
    assert kernel.image == root / f"boot/vmlinuz-{running}"
    assert len(kernel.boot_modules) == 7
    named = find_kernel(str(kernel.image), environment, root=root)
    assert named == kernel


def test_compressed_modules(tmp_path: Path) -> None:
    content = b"\x7fELF" + bytes(5000)
    (tmp_path / "a.ko").write_bytes(content)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(content))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(content))
    suffixes = ["", ".xz", ".gz"]
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", str(tmp_path / "a.ko")], check=True)
        suffixes.append(".zst")
    for suffix in suffixes:
        assert module_content(tmp_path / f"a.ko{suffix}") == content
