"""All that guests of an architecture are made of and that is fetched or built: in one go, into the cache."""

from __future__ import annotations

import sys
from pathlib import Path

from pyiommufd.testing.provision import foreign_root, newer_qemu
from pyiommufd.testing.provision.architecture import Architecture
from pyiommufd.testing.provision.foreign_extension import find_extension
from pyiommufd.testing.provision.foreign_packages import fetch_packages
from pyiommufd.testing.provision.kernel_build import build_kernel
from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder
from pyiommufd.testing.provision.progress import Progress


def provide(
    architecture: Architecture, version: str | None = None, *, qemu: bool = False, cache: Path | None = None,
    jobs: int | None = None, progress: Progress | None = None,
) -> CachedKernel:  # fmt: skip
    """See to it that the cache has what a guest takes.

    That is a kernel; where the architecture is not this machine's, a root, this package's extension for it, and what of
    other packages is compiled.

    Args:
        architecture: The guest's.
        version: The kernel's, such as ``6.12``; None: the newest on offer.
        qemu: Fetch a QEMU as well, with its firmware: for a machine whose own is missing or too old.
        cache: The `cache_folder`.
        jobs: Compilers of the kernel at a time; None: one a CPU.
        progress: What is told how far it is.

    Raises:
        GuestMissingError: This machine lacks tools to build with, or its archive lacks a package.
        KernelBuildError: The kernel's source could not be had, or its build failed.
        GuestError: The extension does not compile.

    Returns:
        The kernel.
    """
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd guest: ") if progress is None else progress
    # First what takes seconds, and the compiler before the kernel needs it.
    if not architecture.native:
        root = foreign_root.fetch(architecture, cache=cache, progress=progress)
        find_extension(architecture, root, cache=cache, progress=progress)
        fetch_packages(architecture, root, cache, progress)
    if qemu:
        newer_qemu.fetch(architecture=architecture, cache=cache, progress=progress)
    return build_kernel(version, architecture=architecture, cache=cache, jobs=jobs, progress=progress)
