"""``pyiommufd check``: whether this machine is ready for passthrough."""

from __future__ import annotations

import sys

import click

from pyiommufd.cli import records
from pyiommufd.cli.output import (
    COLOURS,
    ReadingCommand,
    echo,
    fitted,
    json_option,
    print_indented,
    print_json,
    show_progress,
    style,
)
from pyiommufd.cli.status import MISSING
from pyiommufd.host.checks.finding import State
from pyiommufd.host.checks.readiness import readiness

_KEYS = {"ready": "whether nothing is missing", "findings": "what was found, an array"}


@click.command(cls=ReadingCommand)
@json_option(_KEYS | records.nested("findings", records.FINDING))
def check(as_json: bool) -> None:
    """Check whether this host is ready for passthrough; each shortfall with what was seen and what mends it.

    Looks at the IOMMU, iommufd, nodes for vfio devices, the driver vfio-pci, isolation of interrupts, memory that
    firmware keeps, whether all that the host does can be seen from here, the IOMMU's address width, and for this user
    the limit on locked memory and the nodes' permissions; then at devices that lose power or cannot be reset, and
    groups that mix host and passthrough devices.

    Exit status 3 where something is missing.
    """
    with show_progress("looking at this machine"):
        findings = readiness()
    ready = all(finding.state is not State.MISSING for finding in findings)
    if as_json:
        print_json({"ready": ready, "findings": [records.finding_record(finding) for finding in findings]})
    else:
        width = max(len(finding.check) for finding in findings)
        margin = " " * (width + 11)
        for finding in findings:
            state = style(f"{finding.state:<7}", fg=COLOURS.get(finding.state))
            summary = fitted(finding.summary, margin, margin)[len(margin) :]
            echo(state, f"{finding.check:<{width}}", summary, sep="  ")
            for label, text in (("seen", finding.evidence), ("fix", finding.fix)):
                if text and (finding.state is not State.OK or label == "seen"):
                    print_indented(label, text, len(margin))
        echo("ready for passthrough" if ready else "not ready for passthrough")
    if not ready:
        sys.exit(MISSING)
