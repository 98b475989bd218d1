"""What mends several refusals: in Python, and for commands to print, as a command or in the kernel's terms."""

from __future__ import annotations

from pyiommufd.errors import Fix
from pyiommufd.host.checks.lacks import no_noiommu_mode
from pyiommufd.host.discovery.devices import HostDevice


def claim(device: HostDevice, why: str) -> Fix:
    """To take a device from the host; ``why`` comes before it."""
    name = device.name
    if not device.without_iommu:
        return Fix(f"{why}: plan_claim([{name!r}]).apply()", f"{why}: pyiommufd claim {name}")
    if (mode := no_noiommu_mode()) is not None:
        why += f", once vfio's enable_unsafe_noiommu_mode is on ({mode.fix})"
    python = f'{why}: plan_claim([{name!r}], force=["noiommu"]).apply()'
    return Fix(python, f"{why}: pyiommufd claim --force noiommu {name}")


def set_token(physical: str) -> Fix:
    """To have a VF token that is known, of a physical function that nobody holds: its last user's, or a random one."""
    return Fix(
        f"bind {physical} first with a token, which sets it, and then this device with the same",
        f"set one, by pyiommufd caps --vf-token UUID {physical}, and give the same then; or have pyiommufd run "
        f"--vf-token UUID hand over both, {physical} first",
    )


CLAIM_GROUP = Fix("claim the group: plan_claim([DEVICE]).apply()", "claim the group: pyiommufd claim DEVICE")

ELSEWHERE = Fix(
    "map after the attach, or elsewhere: IOAS.iova_ranges() says where once a device is attached",
    "map after the attach, or elsewhere: IOMMU_IOAS_IOVA_RANGES says where once a device is attached",
)
READ_ONLY = Fix(
    "map read-only memory with writeable=False, and device registers by Region.export_dma_buf()",
    "map read-only memory without IOMMU_IOAS_MAP_WRITEABLE, and device registers by VFIO_DEVICE_FEATURE_DMA_BUF",
)
WHOLE_PAGES = Fix(
    "map whole pages; files of memory only (IOAS.map_file), and of a file no more than it has",
    "map whole pages; files of memory only (IOMMU_IOAS_MAP_FILE), and of a file no more than it has",
)
IOMMU_PAGES = Fix(
    "map whole pages of the IOMMU: IOAS.iova_alignment is their size",
    "map whole pages of the IOMMU: out_iova_alignment of IOMMU_IOAS_IOVA_RANGES is their size",
)
HW_INFO = Fix("give what hw_info() says of its type", "give what pyiommufd caps DEVICE says of its type")

MEMORY_LIMIT = (
    "raise the limit on locked memory (ulimit -l; LimitMEMLOCK= of a systemd unit; pyiommufd run --memlock), or have "
    "CAP_IPC_LOCK"
)
"""What helps against the limit on locked memory."""
