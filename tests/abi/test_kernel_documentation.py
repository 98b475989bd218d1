"""The links of the documentation into the kernel's: an anchor is there for what has a kernel-doc comment."""

from __future__ import annotations

import re

import pytest
from kernel_names import ANCHORS, STRUCTS, link

from pyiommufd import uapi
from pyiommufd.testing.provision.kernels import release_order
from tests.abi.test_abi import KERNELS, NO_KERNEL


@NO_KERNEL
def test_anchors_are_those_of_the_newest_header() -> None:
    kernel = max(KERNELS, key=lambda one: release_order(one.release))
    header = (kernel.folder / "headers/include/linux/iommufd.h").read_text()
    documented = set(re.findall(r"^ \* (?:struct|enum) (\w+) - ", header, re.MULTILINE))
    documented |= set(re.findall(r"^/\*\*\n \* (?:struct|enum) (\w+)$", header, re.MULTILINE))
    assert {*ANCHORS.values(), *STRUCTS} - documented == set()


@pytest.mark.parametrize("start", ["IOMMU_", "VFIO_"])
def test_every_constant_has_a_link(start: str) -> None:
    names = [name for name in vars(uapi) if name.startswith(start)]
    assert len(names) > 70
    assert [name for name in names if link(name) is None] == []
