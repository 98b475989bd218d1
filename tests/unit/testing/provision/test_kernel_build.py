"""Building a kernel: real apt, dpkg and make, on a source that is a makefile and builds at once."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError, KernelBuildError
from pyiommufd.testing.provision import kernel_build
from pyiommufd.testing.provision.apt import Archive, Package
from pyiommufd.testing.provision.architecture import AARCH64, X86_64
from pyiommufd.testing.provision.kernel_build import (
    build_kernel,
    choose,
    complete_source,
    kernel_name,
    missing_packages,
    unpack_source,
)
from pyiommufd.testing.provision.kernel_config import essential, fragment, merge
from pyiommufd.testing.provision.kernels import CachedKernel, cached_kernels
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress
from tests.patience import patience, until

MakeArchive = Callable[[Mapping[tuple[str, str], Mapping[str, Path]]], Archive]

pytestmark = pytest.mark.skipif(
    any(shutil.which(program) is None for program in ("apt-get", "dpkg-deb", "make", "xz")),
    reason="no Debian tools here",
)

# The targets that a build asks for, as far as files go; allnoconfig drops what @DROP@ matches.
MAKEFILE = """\
allnoconfig:
\tgrep -v '@DROP@' $(KCONFIG_ALLCONFIG) > .config
bzImage:
\t@echo '  CC      init/main.o'
\t@echo run >> @COUNT@
\t@sleep @SLEEP@
\t@FAIL@
\tmkdir -p arch/x86/boot; echo kernel > arch/x86/boot/bzImage
Image:
	mkdir -p arch/$(ARCH)/boot; echo $(CROSS_COMPILE) > arch/$(ARCH)/boot/Image
modules:
\tmkdir -p drivers/vfio; echo module > drivers/vfio/mdev.ko
kernelrelease:
\t@echo @RELEASE@
headers_install:
\tmkdir -p $(INSTALL_HDR_PATH)/include; echo header > $(INSTALL_HDR_PATH)/include/x.h
"""


LINK = "tools/testing/selftests/vfio/hw.h"


class Quiet(Progress):
    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(self.text)


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Makes the files of a linux-source package; `arguments` replace the @WORDS@ of the makefile."""

    def make(version: str, **arguments: str) -> dict[str, Path]:
        words = {
            "drop": "NOTHING",
            "sleep": "0",
            "fail": "true",
            "release": f"{version}.9",
            "count": str(tmp_path / "count"),
        }
        makefile = MAKEFILE
        for word, value in (words | arguments).items():
            makefile = makefile.replace(f"@{word.upper()}@", value)
        top = tmp_path / f"linux-source-{version}"
        (top / "include/uapi/linux").mkdir(parents=True)
        (top / "include/uapi/linux/iommufd.h").write_text("uapi")
        # What is kept has a link to what is not.
        (top / "drivers/dma").mkdir(parents=True)
        (top / "drivers/dma/hw.h").write_text("registers")
        (top / "tools/testing/selftests/vfio").mkdir(parents=True)
        (top / LINK).symlink_to("../../../../drivers/dma/hw.h")
        (top / "Makefile").write_text(makefile)
        tarball = tmp_path / f"linux-source-{version}.tar.xz"
        subprocess.run(["tar", "-cJf", str(tarball), "-C", str(tmp_path), top.name], check=True)
        return {f"usr/src/{tarball.name}": tarball}

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_choice() -> None:
    offered = [
        Package(f"linux-source-{v}", p) for v, p in (("7.10", "7.10.1-1"), ("7.3", "7.3.4-1"), ("6.1", "6.1.9-2"))
    ]
    assert choose(offered, None).name == "linux-source-7.10"
    assert choose(offered, "7.3").name == choose(offered, "7.3.4").name == "linux-source-7.3"
    for version, wrong in (
        ("7.1", "no linux-source 7.1 is on offer"),
        ("7.3.5", "no linux-source 7.3.5 is on offer"),
        ("6.1", "the guest needs 6.12 or later, not 6.1"),
    ):
        with pytest.raises(KernelBuildError) as caught:
            choose(offered, version)
        assert str(caught.value).startswith(f"{wrong}: choose one of 7.10, 7.3, or name the image ")
    with pytest.raises(KernelBuildError, match=r"no linux-source 6\.12 or later is on offer: name the image of a"):
        choose(offered[2:], None)


def test_entry_depends_on_source_and_configuration() -> None:
    package = Package("linux-source-7.3", "7.3.4-1")
    names = {kernel_name(package, "a"), kernel_name(package, "b"), kernel_name(Package(package.name, "7.3.5-1"), "a")}
    assert len(names) == 3
    assert all(name.startswith("7.3-") for name in names)
    assert kernel_name(package, "a") in names


def test_entries_of_earlier_versions_are_still_found() -> None:
    assert kernel_name(Package("linux-source-7.3", "7.3.4-1"), "a") == "7.3-b377c8e05711"


def test_entry_is_of_an_architecture() -> None:
    assert re.fullmatch(r"7\.3-aarch64-[0-9a-f]{12}", kernel_name(Package("linux-source-7.3", "7.3.4-1"), "a", AARCH64))


@pytest.mark.skipif(AARCH64.native, reason="not a foreign architecture here")
def test_build_for_another_architecture(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_archive: MakeArchive,
    make_source: Callable[..., dict[str, Path]],
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "aarch64-linux-gnu-gcc").symlink_to(str(shutil.which("gcc")))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    kernel = build_kernel(architecture=AARCH64, cache=cache, archive=archive, progress=Quiet())
    assert kernel.image == kernel.folder / "Image"
    assert kernel.image.read_text() == "aarch64-linux-gnu-\n"
    assert "CONFIG_ARM_SMMU_V3=y" in (kernel.folder / "config").read_text()
    assert build_kernel(architecture=AARCH64, cache=cache, archive=archive, progress=Quiet()) == kernel
    x86 = build_kernel(cache=cache, archive=archive, progress=Quiet())
    assert (cached_kernels(cache), cached_kernels(cache, AARCH64)) == ([x86], [kernel])


@pytest.mark.skipif(AARCH64.native, reason="not a foreign architecture here")
def test_missing_cross_compiler_is_named(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_archive: MakeArchive,
    make_source: Callable[..., dict[str, Path]],
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    tools = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    place = cache.parent / "bin"
    place.mkdir()
    for path in reversed(tools):
        if not path.name.startswith("aarch64-"):
            (place / path.name).unlink(missing_ok=True)
            (place / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(GuestMissingError, match=r"kernel for aarch64 needs .*: apt-get install gcc-aarch64-linux-gnu$"):
        build_kernel(architecture=AARCH64, cache=cache, archive=archive, progress=Quiet())


def test_whole_build(
    cache: Path, tmp_path: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({
        ("linux-source-7.3", "7.3.9-1"): make_source("7.3", drop="CONFIG_SYNC_FILE="),
        ("linux-source-6.12", "6.12.9-1"): make_source("6.12"),
    })  # fmt: skip
    progress = Quiet()
    kernel = build_kernel(cache=cache, archive=archive, progress=progress)
    assert kernel.release == "7.3.9"
    assert (kernel.folder / "bzImage").read_text() == "kernel\n"
    assert [module.name for module in kernel.kernel().modules] == ["mdev.ko"]
    assert (kernel.folder / "headers/include/x.h").exists()
    assert (kernel.folder / "source/include/uapi/linux/iommufd.h").read_text() == "uapi"
    assert (kernel.folder / "source" / LINK).read_text() == "registers"
    assert "CONFIG_IOMMUFD=y" in (kernel.folder / "config").read_text()
    assert kernel.manifest["unmet"] == ["CONFIG_SYNC_FILE=y"]
    assert (cache / "sources" / kernel.manifest["source"]).is_file()
    assert "left out: CONFIG_SYNC_FILE=y" in progress.text.getvalue()
    assert {path.name for path in (cache / "kernels").iterdir() if not path.name.endswith(".lock")} == {
        kernel.folder.name
    }

    assert build_kernel(cache=cache, archive=archive, progress=Quiet()) == kernel
    assert (tmp_path / "count").read_text() == "run\n"
    (kernel.folder / "bzImage").write_text("damaged")
    assert build_kernel(cache=cache, archive=archive, progress=Quiet()).folder == kernel.folder
    assert (tmp_path / "count").read_text() == "run\nrun\n"
    assert build_kernel("6.12", cache=cache, archive=archive, progress=Quiet()).release == "6.12.9"


def test_build_that_fails_leaves_its_log_and_nothing_else(
    cache: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    source = make_source("7.3", fail="echo main.c:1: error: broken >\\&2; exit 1")
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): source})
    with pytest.raises(KernelBuildError, match="broken") as caught:
        build_kernel(cache=cache, archive=archive, progress=Quiet())
    assert caught.value.log is not None
    assert "broken" in Path(caught.value.log).read_text()
    left = {path.name for path in (cache / "kernels").iterdir() if not path.name.endswith(".lock")}
    assert left == {Path(caught.value.log).name}


def test_option_that_is_essential(
    cache: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3", drop="CONFIG_VFIO_DEVICE_CDEV=")})
    with pytest.raises(KernelBuildError, match="it does not take CONFIG_VFIO_DEVICE_CDEV=y"):
        build_kernel(cache=cache, archive=archive, progress=Quiet())
    assert "CONFIG_VFIO_DEVICE_CDEV" in essential(X86_64)


def test_several_at_once_build_once(
    cache: Path, tmp_path: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3", sleep="2")})
    results, reports = [], [Quiet() for _ in range(3)]

    def build(progress: Quiet) -> None:
        results.append(build_kernel(cache=cache, archive=archive, progress=progress))

    threads = [threading.Thread(target=build, args=(progress,)) for progress in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.folder for result in results}) == 1
    assert len(results) == 3
    assert (tmp_path / "count").read_text() == "run\n"
    waited = "waiting for another process that is working on kernel 7.3-"
    assert sum(waited in progress.text.getvalue() for progress in reports) == 2


def test_leftovers_of_a_killed_build_are_no_hindrance(
    cache: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    name = kernel_name(Package("linux-source-7.3", "7.3.9-1"), fragment(X86_64))
    stale = cache / f"kernels/.{name}.building/tree/arch"
    stale.mkdir(parents=True)
    (stale / "half.o").touch()
    assert build_kernel(cache=cache, archive=archive, progress=Quiet()).folder.name == name
    assert not stale.exists()


def test_interrupt_ends_the_compilers(
    cache: Path, tmp_path: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    class Interrupt(Quiet):
        def update(self, text: str) -> None:
            raise KeyboardInterrupt(text)

    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3", sleep="7654")})
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_kernel(cache=cache, archive=archive, progress=Interrupt())
    assert time.monotonic() - start < patience(30)
    until(lambda: not any(b"sleep\x007654" in cmdline for cmdline in _command_lines()), "the compilers end")
    assert not any(path.name.endswith(".building") for path in (cache / "kernels").iterdir())


def _command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return lines


def test_archive_out_of_reach_falls_back_to_what_was_built(
    cache: Path, tmp_path: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    built = build_kernel(cache=cache, archive=archive, progress=Quiet())
    shutil.rmtree(tmp_path / "dists")
    shutil.rmtree(tmp_path / "apt")
    progress = Quiet()
    assert build_kernel("7.3", cache=cache, archive=archive, progress=progress) == built
    assert "using 7.3.9, built earlier" in progress.text.getvalue()
    with pytest.raises(KernelBuildError):
        build_kernel("6.12", cache=cache, archive=archive, progress=Quiet())


def test_missing_tools_are_named_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program in ("gcc", "ld", "make", "apt-get", "dpkg-deb", "tar", "xz", "rsync"):
        if found := shutil.which(program):
            (tmp_path / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {"bc", "bison", "flex"} <= set(missing_packages())
    assert not {"gcc", "make", "xz-utils"} & set(missing_packages())


def test_missing_tools_are_an_error_before_anything_is_fetched(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_archive: MakeArchive,
    make_source: Callable[..., dict[str, Path]],
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    monkeypatch.setattr(kernel_build, "_PROGRAMS", {"no-such-a": "package-a", "no-such-b": "package-b"})
    with pytest.raises(GuestMissingError, match="apt-get install package-a package-b"):
        build_kernel(cache=cache, archive=archive, progress=Quiet())
    assert not (cache / "sources").exists()


def test_parts_of_a_source(
    tmp_path: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3"), ("other", "1"): {}})
    target = tmp_path / "target"
    target.mkdir()
    unpack_source(tmp_path / "pool/linux-source-7.3_7.3.9-1_all.deb", target, ["include/uapi"])
    assert [path.name for path in target.iterdir()] == ["include"]
    with pytest.raises(KernelBuildError, match="holds no kernel source"):
        unpack_source(tmp_path / "pool/other_1_all.deb", target)


def test_source_that_an_earlier_build_kept_less_of(
    cache: Path, make_archive: MakeArchive, make_source: Callable[..., dict[str, Path]]
) -> None:
    archive = make_archive({("linux-source-7.3", "7.3.9-1"): make_source("7.3")})
    kernel = build_kernel(cache=cache, archive=archive, progress=Quiet())
    linked = kernel.folder / "source" / LINK
    for deb_is_there in (True, False):
        linked.resolve().unlink()
        if not deb_is_there:
            (cache / "sources" / kernel.manifest["source"]).unlink()
        progress = Quiet()
        complete_source(kernel, cache=cache, archive=archive, progress=progress)
        assert linked.read_text() == "registers"
        assert ("fetching" in progress.text.getvalue()) is not deb_is_there
    assert [path.name for path in (cache / "kernels").iterdir() if path.is_dir()] == [kernel.folder.name]
    # Whole by now: nothing is unpacked again.
    progress = Quiet()
    complete_source(kernel, cache=cache, archive=archive, progress=progress)
    assert not progress.text.getvalue()

    linked.resolve().unlink()
    (cache / "sources" / kernel.manifest["source"]).unlink()
    gone = CachedKernel(kernel.folder, {**kernel.manifest, "package_version": "7.3.8-1"})
    with pytest.raises(KernelBuildError, match=r"7\.3\.8-1.* is no longer on offer"):
        complete_source(gone, cache=cache, archive=archive, progress=Quiet())


def test_lock_is_released_by_death(tmp_path: Path) -> None:
    # Whoever holds it is killed without a chance to clean up: the next one must not wait for ever.
    path = tmp_path / ".x.lock"
    child = os.fork()
    if not child:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    progress = Quiet()
    with locked(path, progress, "x"):
        assert progress.text.getvalue() == ""


def test_fragment_survives_merging() -> None:
    merged = merge("", fragment(X86_64))
    assert all(f"{name}=y\n" in merged for name in essential(X86_64))
