"""pyiommufd/uapi against the headers that a kernel installs, name by name: what a compiler makes of each.

The kernels are those that `pyiommufd guest --build-kernel` has made here; ``PYIOMMUFD_TEST_KERNELS`` names others, as
folders that have ``headers/`` and ``manifest.json``.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from pyiommufd.testing.provision.kernels import CachedKernel, cache_folder, cached_kernels, release_order
from tests.abi.differences import DECLARED, LEFT_OUT, compare
from tests.abi.header_facts import HeaderFacts, read_headers

OURS = Path(__file__).resolve().parents[2] / "pyiommufd/uapi"
OUR_HEADERS = ("iommufd.h", "vfio.h")
THEIRS = ("linux/iommufd.h", "linux/vfio.h", "linux/vfio_zdev.h")


def kernels() -> list[CachedKernel]:
    named = os.environ.get("PYIOMMUFD_TEST_KERNELS")
    if named is None:
        return cached_kernels(cache_folder())
    loaded = {folder: CachedKernel.load(Path(folder)) for folder in named.split(os.pathsep)}
    if missing := [folder for folder, kernel in loaded.items() if kernel is None]:
        raise pytest.UsageError(f"PYIOMMUFD_TEST_KERNELS: there is no whole kernel in {', '.join(missing)}")
    return [kernel for kernel in loaded.values() if kernel is not None]


KERNELS = kernels()
NO_KERNEL = pytest.mark.skipif(not KERNELS, reason="no kernel was built here: pyiommufd guest --build-kernel makes one")


def theirs(kernel: CachedKernel, work: Path) -> HeaderFacts:
    include = kernel.folder / "headers/include"
    return read_headers([include / name for name in THEIRS], [include], work)


def ours(folder: Path, kernel: CachedKernel, work: Path) -> HeaderFacts:
    # The same kernel's headers for what ours include, which is no more than the ioctl macros.
    return read_headers([folder / name for name in OUR_HEADERS], [folder, kernel.folder / "headers/include"], work)


@NO_KERNEL
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.release)
def test_every_name_that_both_have_means_the_same(kernel: CachedKernel, tmp_path: Path) -> None:
    found = compare(theirs(kernel, tmp_path), ours(OURS, kernel, tmp_path), release_order(kernel.release))
    counts = f"{found.constants} constants, {found.structs} structs, {found.fields} fields"
    print(f"\nLinux {kernel.release}: {counts} compared")
    for reason, names in found.left_out.items():
        print(f"  left out, {reason}: {' '.join(names)}")
    print(f"  not in this kernel yet: {' '.join(found.newer) or 'nothing'}")
    assert found.wrong == []
    # So that a parser that finds nothing is no success.
    assert found.constants > 200
    assert found.structs > 60
    assert found.fields > 250


@NO_KERNEL
def test_what_is_left_out_is_still_there_to_leave_out(tmp_path: Path) -> None:
    if release_order(KERNELS[0].release)[:2] < DECLARED:
        pytest.skip(f"the newest kernel here is {KERNELS[0].release}")
    facts = theirs(KERNELS[0], tmp_path)
    names = facts.names | facts.others
    assert [pattern for pattern in LEFT_OUT if not any(re.fullmatch(pattern, name) for name in names)] == []


@NO_KERNEL
@pytest.mark.parametrize(
    ("pattern", "replacement", "name"),
    [
        pytest.param(r"IOMMUFD_CMD_IOAS_MAP = 0x85", "IOMMUFD_CMD_IOAS_MAP = 0x86", "IOMMU_IOAS_MAP", id="ioctl"),
        pytest.param(
            r"(struct iommu_ioas_map \{[^}]*)uint64_t user_va, ",
            r"\1uint32_t user_va; uint64_t ",
            "user_va",
            id="width",
        ),
        pytest.param(
            r"(struct iommu_ioas_map \{[^}]*)uint64_t user_va, length, iova",
            r"\1uint64_t user_va, length; int64_t iova",
            "iova",
            id="sign",
        ),
        pytest.param(
            r"(struct iommu_ioas_unmap \{[^}]*)iova, length",
            r"\1length, iova",
            "struct iommu_ioas_unmap.iova",
            id="order",
        ),
        pytest.param(
            r"(struct iommu_destroy \{)([^}]*)\}", r"\1\2\tuint32_t more;\n}", "struct iommu_destroy", id="longer"
        ),
        pytest.param(
            r"(struct iommu_ioas_alloc \{[^}]*)out_ioas_id", r"\1ioas", "struct iommu_ioas_alloc", id="renamed"
        ),
        pytest.param(r"IOMMU_IOAS_MAP_READABLE = [^,\s]+", "IOMMU_IOAS_MAP_READABLE = 8", "READABLE", id="flag"),
        pytest.param(r"\bIOMMUFD_PAGE_RESP_INVALID\b", "IOMMUFD_PAGE_RESP_BAD", "RESP_INVALID", id="gone"),
    ],
)
def test_a_changed_declaration_is_caught(pattern: str, replacement: str, name: str, tmp_path: Path) -> None:
    kernel = KERNELS[0]
    for header in OUR_HEADERS:
        shutil.copy(OURS / header, tmp_path)
    changed = tmp_path / "iommufd.h"
    text, changes = re.subn(pattern, replacement, changed.read_text())
    assert changes
    changed.write_text(text)
    found = compare(theirs(kernel, tmp_path), ours(tmp_path, kernel, tmp_path), release_order(kernel.release))
    assert any(name in line for line in found.wrong), found.wrong


@NO_KERNEL
def test_an_older_struct_may_be_shorter_and_not_different(tmp_path: Path) -> None:
    """As an older kernel's facts: a field fewer at the end is fine, one fewer in the middle is not."""
    kernel = KERNELS[0]
    for header in OUR_HEADERS:
        shutil.copy(OURS / header, tmp_path)
    mine = ours(OURS, kernel, tmp_path)
    shorter = tmp_path / "vfio.h"
    for gone, fine in ((", pasid", True), (", pt_id", False)):
        text, changes = re.subn(
            rf"(struct vfio_device_attach_iommufd_pt \{{[^}}]*){gone}", r"\1", (OURS / "vfio.h").read_text()
        )
        assert changes == 1
        shorter.write_text(text)
        older = ours(tmp_path, kernel, tmp_path)
        wrong = compare(older, mine, (6, 12)).wrong
        assert (not [line for line in wrong if "attach_iommufd_pt" in line]) == fine
        assert [line for line in compare(older, mine, DECLARED).wrong if "attach_iommufd_pt" in line]
