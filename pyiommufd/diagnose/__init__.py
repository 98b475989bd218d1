"""Diagnosis of refused requests: ranked causes, each with evidence and a fix.

The names below are what `pyiommufd.kernel` uses. The module of one is imported when it is first used, which is after a
refusal: to look at a machine takes more modules than all else together.
"""

from __future__ import annotations

from pyiommufd.errors import explain_with

TYPE_CHECKING = False  # type checkers take this name for true; typing is slow to import
if TYPE_CHECKING:
    from pyiommufd.causes import Cause
    from pyiommufd.diagnose.attach import attach_error, pasids_error
    from pyiommufd.diagnose.bind import bind_error
    from pyiommufd.diagnose.device_requests import (
        IN_LOW_POWER,
        bytes_error,
        no_interrupt_error,
        no_region,
        no_region_error,
    )
    from pyiommufd.diagnose.explain import general_causes
    from pyiommufd.diagnose.hwpt import hwpt_alloc_error
    from pyiommufd.diagnose.interrupts import ioeventfd_error, set_irqs_error
    from pyiommufd.diagnose.mapping import change_process_error, map_error, map_file_error, revoked_error, unmap_error
    from pyiommufd.diagnose.mapping_rows import HOLE
    from pyiommufd.diagnose.migration import data_error, precopy_error, state_error
    from pyiommufd.diagnose.node import open_cdev_causes, open_iommufd_causes
    from pyiommufd.diagnose.objects import HUGE_PAGES_IN_USE, destroy_error, mediated_info_causes
    from pyiommufd.diagnose.reset import hot_reset_error, reset_error
    from pyiommufd.diagnose.smmuv3 import command_name
    from pyiommufd.diagnose.virtual import (
        hw_queue_destroy_error,
        invalidation_error,
        nested_alloc_error,
        registers_map_error,
        vdevice_alloc_error,
        viommu_alloc_error,
    )
else:
    import sys

    from pyiommufd.errors import IoctlError
    from pyiommufd.on_demand import on_demand

    _look_up, __dir__ = on_demand(
        __name__,
        {
            "attach": "attach_error pasids_error",
            "bind": "bind_error",
            "device_requests": "IN_LOW_POWER bytes_error no_interrupt_error no_region no_region_error",
            "explain": "general_causes",
            "hwpt": "hwpt_alloc_error",
            "interrupts": "ioeventfd_error set_irqs_error",
            "mapping": "change_process_error map_error map_file_error revoked_error unmap_error",
            "mapping_rows": "HOLE",
            "migration": "data_error precopy_error state_error",
            "node": "open_cdev_causes open_iommufd_causes",
            "objects": "HUGE_PAGES_IN_USE destroy_error mediated_info_causes",
            "reset": "hot_reset_error reset_error",
            "smmuv3": "command_name",
            "virtual": """
                hw_queue_destroy_error invalidation_error nested_alloc_error registers_map_error vdevice_alloc_error
                viommu_alloc_error
            """,
        },
    )

    def __getattr__(name):
        refusal = sys.exc_info()[1]
        if name not in __all__:
            return _look_up(name)
        try:
            return _look_up(name)
        except (ImportError, OSError, AttributeError):
            # It cannot be imported: no fd is left, say, which may be why the kernel refused; or a signal handler has
            # interrupted its import. That the kernel refused is said all the same.
            if isinstance(refusal, IoctlError):
                raise refusal from None
            raise


def _general(request: str, errno: int) -> tuple[Cause, ...]:
    try:
        from pyiommufd.diagnose.explain import general_causes
    except (ImportError, OSError, AttributeError):  # as above
        return ()
    return general_causes(request, errno)


# errors is a lower layer and must not import diagnose, so diagnose registers its function there.
explain_with(_general)

__all__ = [
    "HOLE",
    "HUGE_PAGES_IN_USE",
    "IN_LOW_POWER",
    "attach_error",
    "bind_error",
    "bytes_error",
    "change_process_error",
    "command_name",
    "data_error",
    "destroy_error",
    "general_causes",
    "hot_reset_error",
    "hw_queue_destroy_error",
    "hwpt_alloc_error",
    "invalidation_error",
    "ioeventfd_error",
    "map_error",
    "map_file_error",
    "mediated_info_causes",
    "nested_alloc_error",
    "no_interrupt_error",
    "no_region",
    "no_region_error",
    "open_cdev_causes",
    "open_iommufd_causes",
    "pasids_error",
    "precopy_error",
    "registers_map_error",
    "reset_error",
    "revoked_error",
    "set_irqs_error",
    "state_error",
    "unmap_error",
    "vdevice_alloc_error",
    "viommu_alloc_error",
]
