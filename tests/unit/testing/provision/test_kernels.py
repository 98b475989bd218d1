"""Which kernel is booted, and what becomes of a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError
from pyiommufd.testing.provision.architecture import AARCH64, X86_64, Architecture
from pyiommufd.testing.provision.kernels import (
    CachedKernel,
    Kernel,
    cache_folder,
    cached_kernels,
    find_kernel,
    release_order,
)


def cached(cache: Path, name: str, release: str, architecture: Architecture = X86_64) -> Path:
    folder = cache / "kernels" / name
    (folder / "modules").mkdir(parents=True)
    (folder / architecture.image).write_bytes(release.encode())
    (folder / "modules/mdev.ko").touch()
    CachedKernel.write_manifest(folder, architecture, release=release)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


@pytest.fixture
def cache(environment: dict[str, str]) -> Path:
    return cache_folder(environment)


def test_cache_folder(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "pyiommufd"
    assert cache_folder({}) == cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/pyiommufd"


def test_newest_goes_first(cache: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for name, release in (("7.10-a", "7.10.1"), ("7.9-b", "7.9.12"), ("6.12-c", "6.12.117")):
        cached(cache, name, release)
    assert [kernel.release for kernel in cached_kernels(cache)] == ["7.10.1", "7.9.12", "6.12.117"]
    kernel = find_kernel(environment=environment, root=tmp_path)
    assert kernel.image == cache / "kernels/7.10-a/bzImage"
    assert [module.name for module in kernel.modules] == ["mdev.ko"]


def test_kernel_is_named_by_its_version(cache: Path, environment: dict[str, str]) -> None:
    for name, release in (("7.1-a", "7.1.9"), ("6.12-b", "6.12.9"), ("6.12-c", "6.12.117"), ("6.1-d", "6.1.2-rc1")):
        cached(cache, name, release)
    for version, folder in (("6.12", "6.12-c"), ("6.12.9", "6.12-b"), ("7.1", "7.1-a"), ("6.1.2-rc1", "6.1-d")):
        assert find_kernel(version, environment).image == cache / "kernels" / folder / "bzImage"
    assert find_kernel(environment=environment | {"PYIOMMUFD_KERNEL": "7.1"}).image == cache / "kernels/7.1-a/bzImage"
    with pytest.raises(GuestMissingError, match=r"Guest\(kernel=…\): no kernel 6\.13 .* --build-kernel 6\.13 makes"):
        find_kernel("6.13", environment)


def test_version_that_no_build_would_take(cache: Path, environment: dict[str, str]) -> None:
    for built in ("none", "7.1.9"):
        with pytest.raises(GuestMissingError) as caught:
            find_kernel("5.0", environment)
        assert str(caught.value) == (
            "Guest(kernel=…): no kernel 5.0 has been built here: the guest needs 6.12 or later, not 5.0; "
            f"built are: {built}"
        )
        if built == "none":
            cached(cache, "7.1-a", "7.1.9")


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "half a manifest", "no image"])
def test_damage_is_noticed_and_passed_over(
    cache: Path, environment: dict[str, str], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(cache, "6.12-a", "6.12.1")
    folder = cached(cache, "7.3-b", "7.3.4")
    match damage:
        case "flip":
            (folder / "bzImage").write_bytes(b"7.3.5")
        case "truncate":
            (folder / "bzImage").write_bytes(b"")
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "half a manifest":
            (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:40])
        case "no image":
            (folder / "bzImage").unlink()
    assert CachedKernel.load(folder) is None
    assert find_kernel(environment=environment, root=tmp_path).image.parent.name == "6.12-a"
    assert f"the kernel in {folder} is damaged" in capsys.readouterr().err


def test_what_is_being_built_is_not_there_yet(cache: Path) -> None:
    cached(cache, ".7.3-a.building", "7.3.4")
    (cache / "kernels/7.3-a.log").touch()
    damaged: list[Path] = []
    assert cached_kernels(cache, damaged=damaged) == []
    assert damaged == []


def test_option_then_variable_then_cache(cache: Path, environment: dict[str, str], tmp_path: Path) -> None:
    cached(cache, "7.3-a", "7.3.4")
    option, variable = tmp_path / "option", tmp_path / "variable"
    for image in (option, variable):
        image.write_bytes(bytes(0x202) + b"HdrS")
    environment["PYIOMMUFD_KERNEL"] = str(variable)
    assert find_kernel(str(option), environment) == Kernel(option)
    assert find_kernel(None, environment) == Kernel(variable)


def test_named_cached_kernel_brings_its_modules(cache: Path, environment: dict[str, str]) -> None:
    folder = cached(cache, "7.3-a", "7.3.4")
    assert find_kernel(str(folder / "bzImage"), environment).modules == (folder / "modules/mdev.ko",)
    (folder / "bzImage").write_bytes(b"")
    with pytest.raises(GuestMissingError, match="damaged"):
        find_kernel(str(folder / "bzImage"), environment)


def test_named_kernel_that_is_not_there(environment: dict[str, str]) -> None:
    with pytest.raises(GuestMissingError, match=r"Guest\(kernel=…\): there is no kernel image /nowhere"):
        find_kernel("/nowhere", environment)
    with pytest.raises(GuestMissingError, match="PYIOMMUFD_KERNEL: there is no kernel image /nowhere"):
        find_kernel(None, environment | {"PYIOMMUFD_KERNEL": "/nowhere"})


def test_named_file_that_is_no_kernel(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(GuestMissingError, match=rf"^Guest\(kernel=…\): {tmp_path} is a folder, not a kernel image$"):
        find_kernel(str(tmp_path), environment)
    with pytest.raises(GuestMissingError, match=r"^Guest\(kernel=…\): /etc/hostname is no kernel image for x86, a bzI"):
        find_kernel("/etc/hostname", environment)
    elf = tmp_path / "vmlinux"
    elf.write_bytes(b"\x7fELF")
    assert find_kernel(str(elf), environment) == Kernel(elf)


def test_each_architecture_has_its_own(cache: Path, environment: dict[str, str]) -> None:
    x86, arm = cached(cache, "7.3-a", "7.3.4"), cached(cache, "7.3-aarch64-b", "7.3.4", AARCH64)
    for version in (None, "7.3"):
        assert find_kernel(version, environment).image == x86 / "bzImage"
        assert find_kernel(version, environment, architecture=AARCH64).image == arm / "Image"
    with pytest.raises(GuestMissingError, match=r"/Image is no kernel image for x86"):
        find_kernel(str(arm / "Image"), environment)
    with pytest.raises(GuestMissingError, match=r"/bzImage is no kernel image for arm64, an Image"):
        find_kernel(str(x86 / "bzImage"), environment, architecture=AARCH64)
    (arm / "Image").unlink()
    missing = r"no kernel 7\.3 for aarch64 .*: pyiommufd guest --iommu smmuv3 --build-kernel 7\.3 makes one"
    with pytest.raises(GuestMissingError, match=missing):
        find_kernel("7.3", environment, architecture=AARCH64)


def test_damage_is_told_to_who_wants_that_architecture(
    cache: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    cached(cache, "7.3-a", "7.3.4")
    (cached(cache, "7.3-aarch64-b", "7.3.4", AARCH64) / "Image").write_bytes(b"")
    find_kernel(environment=environment)
    assert capsys.readouterr().err == ""
    with pytest.raises(GuestMissingError):
        find_kernel(environment=environment, architecture=AARCH64)
    assert "aarch64-b is damaged; pyiommufd guest --iommu smmuv3 --build-kernel" in capsys.readouterr().err


def test_kernel_of_an_older_record_is_for_x86(cache: Path) -> None:
    folder = cached(cache, "7.3-a", "7.3.4")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"architecture": "x86_64",', ""))
    (kernel,) = cached_kernels(cache)
    assert (kernel.architecture, kernel.image) == (X86_64, folder / "bzImage")


def test_named_kernel_for_arm64(environment: dict[str, str], tmp_path: Path) -> None:
    image = tmp_path / "own"
    image.write_bytes(bytes(0x38) + b"ARM\x64" + bytes(0x100))
    assert find_kernel(str(image), environment, architecture=AARCH64) == Kernel(image)


def test_no_kernel_says_how_to_get_one(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(GuestMissingError, match="pyiommufd guest --build-kernel"):
        find_kernel(None, environment, root=tmp_path)


def test_order_of_releases() -> None:
    releases = ["7.10.0-rc1", "7.9.12", "6.12.117+deb13", "6.2"]
    assert sorted(releases, key=release_order, reverse=True) == releases
