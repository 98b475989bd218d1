"""Whether this machine is ready for passthrough: each shortfall with what was seen and what mends it."""

from __future__ import annotations

from pyiommufd.host.checks import device_checks, platform_checks
from pyiommufd.host.checks.finding import Finding, Machine
from pyiommufd.host.discovery.devices import list_devices, list_groups

CHECKS = (
    platform_checks.iommu,
    platform_checks.iommufd,
    platform_checks.cdev,
    platform_checks.vfio_pci,
    platform_checks.isolated_msi,
    platform_checks.namespaces,
    device_checks.reserved,
    platform_checks.address_width,
    platform_checks.memlock,
    device_checks.permissions,
    device_checks.d3cold,
    device_checks.reset,
    device_checks.mixed_group,
)
"""The checks, in the order in which they are reported."""


def readiness(machine: Machine | None = None) -> tuple[Finding, ...]:
    """Everything that this machine lacks for passthrough, and what is in order.

    Complete for root; others may not see all of it. The limits are those of the calling process.
    """
    if machine is None:
        machine = Machine(tuple(list_devices()), tuple(list_groups()))
    return tuple(finding for check in CHECKS for finding in check(machine))
