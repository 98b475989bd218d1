"""``pyiommufd explain``: what an errno of an ioctl means, on this machine."""

from __future__ import annotations

import errno as errno_module
import os

import click
from click.shell_completion import CompletionItem

from pyiommufd.cli import records
from pyiommufd.cli.arguments import DescribedArgument, DeviceArgument
from pyiommufd.cli.output import ReadingCommand, echo, json_option, print_indented, print_json, show_progress, style
from pyiommufd.diagnose.explain import find_errno, find_request, look, requests
from pyiommufd.host.checks.lacks import REACHES_ALL
from pyiommufd.host.discovery.devices import find_device

_KEYS = {
    "request": "the kernel's name of the ioctl",
    "errno": "the errno, a number",
    "name": "its name",
    "meaning": "what libc says of it",
    "device": "the name of the device, or null",
    "causes": "what may be behind it, the likeliest first",
    "ruled_out": "what may be behind it elsewhere, and is not so here now; their summaries",
}


class _Request(click.types.StringParamType):
    name = "ioctl"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return find_request(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        return [CompletionItem(name) for name in requests() if incomplete.upper() in name.upper() and " " not in name]


class _Errno(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "errno"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else find_errno(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        return [CompletionItem(n) for n in sorted(errno_module.errorcode.values()) if n.startswith(incomplete.upper())]


@click.command(cls=ReadingCommand)
@click.argument(
    "request",
    cls=DescribedArgument,
    label="IOCTL",
    description="The kernel's name or a part of it: VFIO_DEVICE_BIND_IOMMUFD, bind, attach, map, hwpt_alloc; open for "
    "a node; sysfs-bind for a driver's bind in sysfs.",
    type=_Request(),
)
@click.argument("errno", cls=DescribedArgument, label="ERRNO", description="A name or number.", type=_Errno())
@click.argument("device", required=False, cls=DeviceArgument)
@json_option(_KEYS | records.nested("causes", records.CAUSE))
def explain(request: str, errno: int, device: str | None, as_json: bool) -> None:
    """Explain why the kernel answered IOCTL with ERRNO, the likeliest cause first, each with what helps.

    With DEVICE, what this machine shows now comes first; what cannot be seen from outside follows, and what is not so
    is said to be ruled out.
    """
    target = None if device is None else find_device(device)
    with show_progress("looking at this machine"):
        seen = look(request, errno, target)
    causes = seen.found + seen.possible
    name = errno_module.errorcode.get(errno, str(errno))
    if as_json:
        print_json(
            {
                "request": request,
                "errno": errno,
                "name": name,
                "meaning": os.strerror(errno),
                "device": None if target is None else target.name,
                "causes": [records.cause_record(cause) for cause in causes],
                "ruled_out": [cause.summary for cause in seen.ruled_out],
            }
        )
        return
    about = "" if target is None else f" on {target.name}"
    echo(style(f"{request}{about}: {name} ({os.strerror(errno)})", bold=True))
    if target is not None and target.without_iommu:
        echo(f"  no IOMMU covers it: {REACHES_ALL}")
    if not causes:
        echo(f"  {'none of the known reasons holds now' if seen.ruled_out else 'no reason for this is known'}")
    for number, cause in enumerate(causes, 1):
        echo(f"{number:>3}. {cause.summary}")
        for label, text in (("seen", cause.evidence), ("fix", cause.command or cause.fix)):
            if text:
                print_indented(label, text, 5)
    for cause in seen.ruled_out:
        print_indented("not the reason now", cause.summary, 2)
