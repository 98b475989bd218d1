"""``pyiommufd rebind``: have devices that other tools have left without one go back to their host drivers."""

from __future__ import annotations

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.changing import (
    check_refusals,
    devices_argument,
    dry_run_option,
    ended_by_signals,
    find_devices,
    force_option,
    say,
    show_step,
    show_steps,
)
from pyiommufd.cli.output import print_visibility_note
from pyiommufd.host.claims.rebind import plan_rebind


@click.command()
@devices_argument(candidates.strays)
@force_option
@dry_run_option
def rebind(devices: tuple[str, ...], force: tuple[str, ...], dry_run: bool) -> None:
    """Have each DEVICE that another tool has left on vfio-pci, pci-stub or no driver go back to its host driver.

    That is the one that the kernel picks by the device's ids once no override is set. What is on a host driver already
    is left there; what is on record as claimed is refused, as pyiommufd release gives it back. In a container the
    host's claims may not be on record, nor its processes to be seen: run this on the host.

    Each device goes by itself, and not with its IOMMU group: one that no driver takes is put back as it was, and those
    before it stay on their drivers. Until the next boot: settings that put the device on vfio-pci there, such as
    vfio-pci.ids= or files in modprobe.d, are yours to take back.

    Steps are printed to the standard output, one a line, each before it is taken.
    """
    with ended_by_signals():
        plan = plan_rebind(find_devices(devices), force=force)
        print_visibility_note()
        for device in plan.on_host_driver:
            say(f"{device.name} is on {device.driver} already: nothing to do")
        if dry_run:
            check_refusals(plan.refusals, "the rebind")
            show_steps(plan.steps)
            return
        if plan.steps or plan.refusals:
            for device in plan.apply(report=show_step):
                if device not in plan.on_host_driver:
                    say(f"{device.name} is on {device.driver}")
