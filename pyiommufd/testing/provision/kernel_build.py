"""Builds a guest kernel from the distribution's own source package, once, into the cache.

The source is the newest ``linux-source`` on offer; it is unpacked, configured by `kernel_config.fragment`, built in a
folder beside the final one, and takes its place whole. Several builds at once are safe: the later ones wait. One for
another architecture is the same source, made by Debian's cross compiler.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pyiommufd.testing.errors import GuestMissingError, KernelBuildError
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision import kernel_config
from pyiommufd.testing.provision.apt import Archive, Package
from pyiommufd.testing.provision.architecture import X86_64, Architecture
from pyiommufd.testing.provision.entry import entry_name
from pyiommufd.testing.provision.kernels import (
    OLDEST,
    CachedKernel,
    cache_folder,
    cached_kernels,
    release_order,
    too_old,
)
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress
from pyiommufd.vmm.launch import launch_command

_NAME = r"linux-source-(\d+\.\d+(?:\.\d+)?)"
_SPACE = 5 << 30
_PROGRAMS = {
    "apt-get": "apt", "bc": "bc", "bison": "bison", "dpkg-deb": "dpkg", "flex": "flex", "gcc": "gcc", "ld": "binutils",
    "make": "make", "rsync": "rsync", "tar": "tar", "xz": "xz-utils",
}  # fmt: skip
_HEADERS = {"gelf.h": "libelf-dev", "openssl/ssl.h": "libssl-dev", "stdio.h": "libc6-dev"}

# What tests read or compile of the source: the kernel's own tests of iommufd and VFIO, and what these include.
_KEPT_SOURCE = (
    "include/uapi", "drivers/iommu/iommufd/iommufd_test.h", "tools/testing/selftests/iommu",
    "tools/testing/selftests/vfio", "tools/testing/selftests/lib.mk", "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h", "tools/include", "tools/scripts", "tools/build",
    "scripts/subarch.include",
)  # fmt: skip


def missing_packages(architecture: Architecture = X86_64) -> list[str]:
    """The Debian packages that a build needs and that are not installed."""
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    missing |= missing_compiler(architecture)
    for header, package in _HEADERS.items():
        if "gcc" in missing:
            found = any(Path("/usr/include").glob(f"**/{header}"))
        else:
            check = ["gcc", "-E", "-x", "c", "-o", os.devnull, "-"]
            code = f"#include <{header}>\n".encode()
            found = subprocess.run(check, input=code, capture_output=True, check=False).returncode == 0
        if not found:
            missing.add(package)
    return sorted(missing)


def missing_compiler(architecture: Architecture) -> set[str]:
    """The Debian package of the cross compiler, where one is needed and not installed."""
    if not architecture.cross_compile or shutil.which(f"{architecture.cross_compile}gcc"):
        return set()
    return {f"gcc-{architecture.triplet.replace('_', '-')}"}


def choose(packages: Sequence[Package], version: str | None) -> Package:
    """The source package to build.

    Args:
        packages: What is on offer, the newest first.
        version: A version or how it begins, such as ``6.12``; None: the newest.

    Raises:
        KernelBuildError: None fits.
    """
    offered = [package for package in packages if _version(package) >= OLDEST]
    for package in offered:
        if version is None or _matches(package, version):
            return package
    if version is None or release_order(version) >= OLDEST:
        wrong = f"no linux-source {version or '.'.join(map(str, OLDEST)) + ' or later'} is on offer"
    else:
        wrong = too_old(version)
    names = ", ".join(package.name.removeprefix("linux-source-") for package in offered)
    instead = f"choose one of {names}, or " if names else ""
    raise KernelBuildError(f"{wrong}: {instead}name the image of a kernel with {option_name('kernel')}")


def _version(package: Package) -> tuple[int, ...]:
    match = re.fullmatch(_NAME, package.name)
    return release_order(match[1]) if match else ()


def _matches(package: Package, version: str) -> bool:
    return any(
        re.match(rf"{re.escape(version)}(?![0-9])", candidate)
        for candidate in (package.name.removeprefix("linux-source-"), package.version)
    )


def kernel_name(package: Package, fragment: str, architecture: Architecture = X86_64) -> str:
    """The name of the cache entry for a source, a configuration and an architecture.

    The compiler is no part of it: another one makes the same kernel, and a build takes minutes.
    """
    version = package.name.removeprefix("linux-source-")
    return entry_name(version, architecture, package.name, package.version, fragment)


def build_kernel(
    version: str | None = None, *, architecture: Architecture = X86_64, cache: Path | None = None,
    archive: Archive | None = None, jobs: int | None = None, progress: Progress | None = None,
) -> CachedKernel:  # fmt: skip
    """The newest kernel on offer, or that of a version: from the cache, or built.

    Args:
        version: Such as ``6.12``; None: the newest.
        architecture: The guest's.
        cache: The `cache_folder`.
        archive: Where source packages come from; None: this machine's distribution.
        jobs: Compilers at a time; None: one a CPU.
        progress: What is told how far it is.

    Raises:
        GuestMissingError: This machine lacks tools to build with, such as the cross compiler for another architecture.
        KernelBuildError: The source could not be had, or its build failed.
    """
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd guest: ") if progress is None else progress
    archive = Archive(cache / "apt") if archive is None else archive
    fragment = kernel_config.fragment(architecture)
    try:
        with locked(cache / "apt.lock", progress, "the package lists"):
            archive.configure()
            archive.update()
            package = choose(archive.packages(_NAME), version)
    except KernelBuildError as error:
        for kernel in cached_kernels(cache, architecture):
            if version is None or release_order(kernel.release)[:2] == release_order(version)[:2]:
                progress.step(f"{error}\nusing {kernel.release}, built earlier")
                return kernel
        raise
    name = kernel_name(package, fragment, architecture)
    folder = cache / "kernels" / name
    if ready := CachedKernel.load(folder):
        return ready
    with locked(cache / "kernels" / f".{name}.lock", progress, f"kernel {name}"):
        if ready := CachedKernel.load(folder):
            return ready
        if missing := missing_packages(architecture):
            whose = "a kernel" if architecture.native else f"a kernel for {architecture.name}"
            raise GuestMissingError(
                f"building {whose} needs what is not installed: apt-get install {' '.join(missing)}"
            )
        builder = _Builder(cache, package, fragment, architecture, jobs or os.cpu_count() or 1, progress)
        return builder.build(folder, archive)


class _Builder:
    """One build, in a folder beside the final one."""

    def __init__(
        self, cache: Path, package: Package, fragment: str, architecture: Architecture, jobs: int, progress: Progress
    ) -> None:
        self._cache = cache
        self._package = package
        self._fragment = fragment
        self._architecture = architecture
        # A native build is told nothing, as ever.
        prefix = architecture.cross_compile
        self._cross = [f"ARCH={architecture.linux}", f"CROSS_COMPILE={prefix}"] if prefix else []
        self._jobs = jobs
        self._progress = progress
        self._log = cache / "build.log"

    def build(self, folder: Path, archive: Archive) -> CachedKernel:
        started = time.monotonic()
        work = folder.with_name(f".{folder.name}.building")
        self._log = folder.with_name(f"{folder.name}.log")
        # Whatever is there was left by a build that was killed: this one holds the lock.
        shutil.rmtree(work, ignore_errors=True)
        self._check_space()
        self._progress.step(f"fetching {self._package.name} {self._package.version}")
        # Under that lock, too: while another process configures apt or fetches its lists, apt finds no package.
        with locked(self._cache / "apt.lock", self._progress, "the package lists"):
            deb = archive.download(self._package, self._cache / "sources")
        tree, entry = work / "tree", work / "entry"
        tree.mkdir(parents=True)
        entry.mkdir()
        self._log.write_text("")
        try:
            self._progress.step("unpacking")
            unpack_source(deb, tree)
            unmet = self._configure(tree)
            self._compile(tree)
            release = self._output(tree, "make", "-s", *self._cross, "kernelrelease").strip()
            self._collect(tree, entry)
            CachedKernel.write_manifest(
                entry,
                self._architecture,
                release=release,
                package=self._package.name,
                package_version=self._package.version,
                source=deb.name,
                compiler=self._output(tree, f"{self._architecture.cross_compile}gcc", "--version").partition("\n")[0],
                unmet=unmet,
            )
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            entry.rename(folder)
        finally:
            self._progress.end()
            shutil.rmtree(work, ignore_errors=True)
        self._log.unlink(missing_ok=True)
        kernel = CachedKernel.load(folder)
        if kernel is None:
            raise KernelBuildError(f"the kernel just built into {folder} is not there whole: is the disk failing?")
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        self._progress.step(f"built {release} in {minutes}:{seconds:02}: {kernel.image}")
        return kernel

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._cache).free
        if free < _SPACE:
            raise KernelBuildError(
                f"building a kernel needs {_SPACE >> 30} GiB in {self._cache}, where {free >> 30} are free: "
                "make room, or set XDG_CACHE_HOME to a folder elsewhere"
            )

    def _configure(self, tree: Path) -> list[str]:
        self._progress.step("configuring")
        # Not merged over what allnoconfig makes: what the fragment makes visible would then be as it is by default.
        (tree / "guest.config").write_text(kernel_config.merge("", self._fragment))
        self._make(tree, "KCONFIG_ALLCONFIG=guest.config", "allnoconfig")
        config = tree / ".config"
        unmet = kernel_config.unmet(self._fragment, config.read_text())
        fatal = [option for option in unmet if option.partition("=")[0] in kernel_config.essential(self._architecture)]
        if fatal:
            raise KernelBuildError(
                f"{self._package.name} {self._package.version} cannot be configured for a guest; "
                f"it does not take {', '.join(fatal)}"
            )
        if unmet:
            self._progress.step(f"not in this version, and left out: {', '.join(unmet)}")
        return unmet

    def _compile(self, tree: Path) -> None:
        self._progress.step(f"compiling with {self._jobs} jobs; the log is {self._log}")
        self._make(tree, f"-j{self._jobs}", self._architecture.image, "modules", count=True)

    def _make(self, tree: Path, *arguments: str, count: bool = False) -> None:
        """Run make, its output to the log.

        Raises:
            KernelBuildError: It failed; with the end of the log.
        """
        make = shutil.which("make") or "make"
        # A build is not to go on when this process is gone, however it went.
        command = launch_command([make, *self._cross, *arguments])
        compiled = 0
        with (
            self._log.open("a") as log,
            subprocess.Popen(
                command,
                cwd=tree,
                env=_clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as process,
        ):
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            try:
                for line in process.stdout:
                    log.write(line)
                    if count and re.match(r"\s+(CC|AS)\b", line):
                        compiled += 1
                        self._progress.update(f"{compiled} files compiled")
                process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode != 0:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise KernelBuildError(
                f"make {' '.join(arguments)}: status {process.returncode}; the log {self._log} ends:\n{tail}",
                log=str(self._log),
            )

    def _output(self, tree: Path, *command: str) -> str:
        result = subprocess.run(command, cwd=tree, env=_clean_environment(), capture_output=True, check=True)
        return result.stdout.decode(errors="replace")

    def _collect(self, tree: Path, entry: Path) -> None:
        """Take out of the tree what is kept; the rest is 2 GB."""
        self._progress.step("collecting headers and modules")
        boot = tree / "arch" / self._architecture.linux / "boot"
        shutil.copy2(boot / self._architecture.image, entry / self._architecture.image)
        shutil.copy2(tree / ".config", entry / "config")
        (entry / "modules").mkdir()
        for module in tree.rglob("*.ko"):
            shutil.copy2(module, entry / "modules" / module.name)
        self._make(tree, f"-j{self._jobs}", "headers_install", f"INSTALL_HDR_PATH={entry / 'headers'}")
        for name in (*_KEPT_SOURCE, f"tools/arch/{self._architecture.linux}/include"):
            _keep(tree, entry / "source", name)
        for name in _missing_targets(entry / "source"):
            _keep(tree, entry / "source", name)
        shutil.copy2(self._log, entry / "build.log")


def _keep(tree: Path, kept: Path, name: str) -> None:
    """Copy a file or folder of the source to what is kept of it; what this version lacks is passed over."""
    source, target = tree / name, kept / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.o", "*.cmd"))
    elif source.is_file():
        shutil.copy2(source, target)


def _missing_targets(kept: Path) -> list[str]:
    """What the links in what is kept of a source lead to and that is not there, as paths below its top folder."""
    top = kept.resolve()
    targets = {path.resolve() for path in top.rglob("*") if path.is_symlink() and not path.exists()}
    return sorted(str(target.relative_to(top)) for target in targets if target.is_relative_to(top))


def complete_source(
    kernel: CachedKernel, *, cache: Path | None = None, archive: Archive | None = None, progress: Progress | None = None
) -> None:
    """See to it that what the links in a kernel's ``source/`` lead to is there: earlier builds did not keep that.

    Args:
        kernel: The kernel; one whose source is whole stays as it is.
        cache: The `cache_folder`.
        archive: Where its source package comes from again, if the cache has it no more; None: this machine's
            distribution.
        progress: What is told how far it is.

    Raises:
        KernelBuildError: The package is no longer on offer.
    """
    kept = kernel.folder / "source"
    if not _missing_targets(kept):
        return
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd guest: ") if progress is None else progress
    with locked(kernel.folder.with_name(f".{kernel.folder.name}.lock"), progress, f"kernel {kernel.folder.name}"):
        if not (names := _missing_targets(kept)):
            return
        deb = cache / "sources" / str(kernel.manifest["source"])
        if not deb.is_file():
            deb = _download_again(kernel, cache, Archive(cache / "apt") if archive is None else archive, progress)
        progress.step(f"unpacking what is missing of the source of {kernel.release}")
        with tempfile.TemporaryDirectory(dir=kernel.folder.parent, prefix=".source-") as folder:
            unpack_source(deb, Path(folder), names)
            for name in names:
                (kept / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).rename(kept / name)


def _download_again(kernel: CachedKernel, cache: Path, archive: Archive, progress: Progress) -> Path:
    """The source package that a kernel was built from."""
    wanted = (kernel.manifest["package"], kernel.manifest["package_version"])
    with locked(cache / "apt.lock", progress, "the package lists"):
        archive.configure()
        archive.update()
        for package in archive.packages(_NAME):
            if (package.name, package.version) == wanted:
                progress.step(f"fetching {package.name} {package.version}")
                return archive.download(package, cache / "sources")
    raise KernelBuildError(
        f"{' '.join(map(str, wanted))}, of which {kernel.folder} was built, is no longer on offer: remove that folder "
        "and build the newest"
    )


def _clean_environment() -> dict[str, str]:
    """This process's environment without what would change a kernel build."""
    dropped = ("CFLAGS", "LDFLAGS", "CPPFLAGS", "ARCH", "CROSS_COMPILE", "CC", "LD", "MAKEFLAGS", "O", "V")
    kept = {key: value for key, value in os.environ.items() if key not in dropped and not key.startswith("KBUILD_")}
    return kept | {"LC_ALL": "C", "KBUILD_BUILD_USER": "pyiommufd", "KBUILD_BUILD_HOST": "localhost"}


def unpack_source(deb: Path, target: Path, members: Sequence[str] = ()) -> None:
    """Unpack the kernel source in a ``linux-source`` package.

    Args:
        deb: The package.
        target: An existing folder; the source's top folder becomes this one.
        members: What to unpack, as paths below the source's top folder; none: all of it.

    Raises:
        KernelBuildError: The package does not hold what was expected.
    """
    kinds = {".xz": "--xz", ".bz2": "--bzip2", ".gz": "--gzip", ".zst": "--zstd"}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as package:
        assert package.stdout is not None  # noqa: S101 - it is a pipe
        try:
            with tarfile.open(fileobj=package.stdout, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name)
                    if member.isreg() and re.match(r"linux-source-[\d.]+\.tar\.", name.name):
                        content = archive.extractfile(member)
                        assert content is not None  # noqa: S101 - it is a regular file
                        command = ["tar", "-x", kinds[name.suffix], "--strip-components=1", "-C", str(target)]
                        command += ["--no-same-owner", "--wildcards"] if members else ["--no-same-owner"]
                        command += [f"*/{path}" for path in members]
                        with subprocess.Popen(command, stdin=subprocess.PIPE) as tar:
                            assert tar.stdin is not None  # noqa: S101 - it is a pipe
                            with contextlib.suppress(BrokenPipeError):
                                shutil.copyfileobj(content, tar.stdin, 1 << 20)
                        if tar.returncode != 0:
                            raise KernelBuildError(f"{deb}: tar cannot unpack the source in it")
                        return
        finally:
            package.kill()
    raise KernelBuildError(f"{deb} holds no kernel source")
