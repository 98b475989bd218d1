"""Links from the kernel's names, wherever a page or a docstring has them, to the kernel's own documentation.

Its page on iommufd is made from ``include/uapi/linux/iommufd.h``: what has a kernel-doc comment there has an anchor. Of
VFIO it has prose only.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx

_SITE = "https://docs.kernel.org"
_IOMMUFD = f"{_SITE}/userspace-api/iommufd.html"
_VFIO = f"{_SITE}/driver-api/vfio.html"
_VFIO_SECTIONS = dict.fromkeys(
    ("VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_ATTACH_IOMMUFD_PT", "VFIO_DEVICE_DETACH_IOMMUFD_PT"), "vfio-device-cdev"
)

ANCHORS = {
    "IOMMU_DESTROY": "iommu_destroy",
    "IOMMU_IOAS_ALLOC": "iommu_ioas_alloc",
    "IOMMU_IOAS_ALLOW_IOVAS": "iommu_ioas_allow_iovas",
    "IOMMU_IOAS_COPY": "iommu_ioas_copy",
    "IOMMU_IOAS_IOVA_RANGES": "iommu_ioas_iova_ranges",
    "IOMMU_IOAS_MAP": "iommu_ioas_map",
    "IOMMU_IOAS_MAP_FILE": "iommu_ioas_map_file",
    "IOMMU_IOAS_UNMAP": "iommu_ioas_unmap",
    "IOMMU_IOAS_CHANGE_PROCESS": "iommu_ioas_change_process",
    "IOMMU_IOAS_NOIOMMU_GET_PA": "iommu_ioas_noiommu_get_pa",
    "IOMMU_OPTION": "iommu_option",
    "IOMMU_VFIO_IOAS": "iommu_vfio_ioas",
    "IOMMU_HWPT_ALLOC": "iommu_hwpt_alloc",
    "IOMMU_HWPT_INVALIDATE": "iommu_hwpt_invalidate",
    "IOMMU_HWPT_SET_DIRTY_TRACKING": "iommu_hwpt_set_dirty_tracking",
    "IOMMU_HWPT_GET_DIRTY_BITMAP": "iommu_hwpt_get_dirty_bitmap",
    "IOMMU_GET_HW_INFO": "iommu_hw_info",
    "IOMMU_FAULT_QUEUE_ALLOC": "iommu_fault_alloc",
    "IOMMU_VIOMMU_ALLOC": "iommu_viommu_alloc",
    "IOMMU_VDEVICE_ALLOC": "iommu_vdevice_alloc",
    "IOMMU_VEVENTQ_ALLOC": "iommu_veventq_alloc",
    "IOMMU_HW_QUEUE_ALLOC": "iommu_hw_queue_alloc",
    "IOMMU_IOAS_MAP_": "iommufd_ioas_map_flags",
    "IOMMU_OPTION_": "iommufd_option",
    "IOMMU_OPTION_OP_": "iommufd_option_ops",
    "IOMMU_VFIO_IOAS_": "iommufd_vfio_ioas_op",
    "IOMMU_HWPT_ALLOC_": "iommufd_hwpt_alloc_flags",
    "IOMMU_HWPT_DATA_": "iommu_hwpt_data_type",
    "IOMMU_HWPT_INVALIDATE_DATA_": "iommu_hwpt_invalidate_data_type",
    "IOMMU_HWPT_GET_DIRTY_BITMAP_": "iommufd_hwpt_get_dirty_bitmap_flags",
    "IOMMU_HWPT_DIRTY_TRACKING_": "iommufd_hwpt_set_dirty_tracking_flags",
    "IOMMU_HWPT_FAULT_ID_VALID": "iommufd_hwpt_alloc_flags",
    "IOMMU_VTD_S1_": "iommu_hwpt_vtd_s1_flags",
    "IOMMU_VTD_INV_FLAGS_": "iommu_hwpt_vtd_s1_invalidate_flags",
    "IOMMU_VIOMMU_INVALIDATE_DATA_": "iommu_hwpt_invalidate_data_type",
    "IOMMU_HW_INFO_TYPE_": "iommu_hw_info_type",
    "IOMMU_HW_INFO_FLAG_": "iommufd_hw_info_flags",
    "IOMMU_HW_INFO_VTD_": "iommu_hw_info_vtd_flags",
    "IOMMU_HW_INFO_ARM_SMMUV3_": "iommu_hw_info_arm_smmuv3_flags",
    "IOMMU_HW_CAP_": "iommufd_hw_capabilities",
    "IOMMU_PGFAULT_FLAGS_": "iommu_hwpt_pgfault_flags",
    "IOMMU_PGFAULT_PERM_": "iommu_hwpt_pgfault_perm",
    "IOMMUFD_PAGE_RESP_": "iommufd_page_response_code",
    "IOMMU_VIOMMU_TYPE_": "iommu_viommu_type",
    "IOMMU_VEVENTQ_FLAG_": "iommu_veventq_flag",
    "IOMMU_VEVENTQ_TYPE_": "iommu_veventq_type",
    "IOMMU_HW_QUEUE_TYPE_": "iommu_hw_queue_type",
}
"""The structs of iommufd's requests, and by their first letters the enums of its other constants."""

STRUCTS = {
    "iommu_hw_info_amd",
    "iommu_hw_info_arm_smmuv3",
    "iommu_hw_info_tegra241_cmdqv",
    "iommu_hw_info_vtd",
    "iommu_hwpt_pgfault",
    "iommu_hwpt_page_response",
}
"""Other structs that docstrings name."""

_NAME = re.compile(r"\b(?:(?:IOMMU|IOMMUFD|VFIO)_[A-Z0-9_]+|(?:iommu|vfio)_[a-z0-9_]+)\b")
_NOT_IN = (nodes.literal_block, nodes.reference, nodes.title, pending_xref, desc_signature, nodes.raw)


def link(name: str) -> str | None:
    """Where the kernel's documentation has a name of its headers."""
    if name.startswith("VFIO_"):
        return f"{_VFIO}#{_VFIO_SECTIONS.get(name, 'vfio-user-api')}"
    anchor = name if name in STRUCTS or name in ANCHORS.values() else ANCHORS.get(name)
    starts = [start for start in ANCHORS if start.endswith("_") and name.startswith(start)]
    if anchor is None and starts:
        anchor = ANCHORS[max(starts, key=len)]
    return anchor and f"{_IOMMUFD}#c.{anchor}"


def _link_names(app: Sphinx, doctree: nodes.document) -> None:
    del app
    for text in list(doctree.findall(nodes.Text)):
        parent: nodes.Node | None = text.parent
        while parent is not None and not isinstance(parent, _NOT_IN):
            parent = parent.parent
        if parent is not None or text.parent is None:
            continue
        if isinstance(text.parent, nodes.literal):
            if _NAME.fullmatch(str(text)) and (target := link(str(text))) is not None:
                reference = nodes.reference("", refuri=target, internal=False)
                text.parent.replace_self(reference)
                reference += nodes.literal(str(text), str(text))
        elif pieces := list(_linked(str(text))):
            text.parent.replace(text, pieces)


def _linked(text: str) -> Iterator[nodes.Node]:
    """A text in pieces, where it has such names."""
    end = 0
    for match in _NAME.finditer(text):
        if (target := link(match[0])) is not None:
            yield nodes.Text(text[end : match.start()])
            yield nodes.reference("", match[0], refuri=target, internal=False)
            end = match.end()
    if end:
        yield nodes.Text(text[end:])


class Constants(Directive):
    """``.. kernel-constants:: PREFIX``: an entry for each constant of `pyiommufd.uapi` that begins with it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The entries."""
        uapi = importlib.import_module("pyiommufd.uapi")
        lines = []
        for name, value in vars(uapi).items():
            if name.startswith(self.arguments[0]) and isinstance(value, int):
                lines += [f".. py:data:: {name}", f"   :value: {value:#x}", "   :no-contents-entry:", ""]
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, "pyiommufd.uapi"), self.content_offset, parent)
        return parent.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", _link_names)
    app.add_directive("kernel-constants", Constants)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
