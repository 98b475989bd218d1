"""The group of all commands. A command's module is imported when the command is used."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from pyiommufd.cli import completion as completion  # registers itself with click
from pyiommufd.cli.output import echo, said
from pyiommufd.cli.status import status_of
from pyiommufd.errors import IOMMUFDError
from pyiommufd.nearest import did_you_mean
from pyiommufd.printable import printable
from pyiommufd.version import __version__

COMMANDS = {
    "check": ("check", "Check whether this host is ready for passthrough."),
    "list": ("list_command", "List devices, and whether they can be claimed."),
    "show": ("show", "Show everything about a device, and what a claim would do."),
    "groups": ("groups", "Show IOMMU groups, and who blocks them."),
    "holders": ("holders", "Show which processes hold a device open."),
    "topology": ("topology", "Show bridges, groups and drivers as a tree, or draw them."),
    "caps": ("caps", "Show what this kernel's iommufd and a device's IOMMU can do."),
    "explain": ("explain", "Explain an errno of an ioctl, with what helps."),
    "watch": ("watch", "Watch devices come, go and change drivers."),
    "plan": ("plan", "Show what a claim would do; change nothing."),
    "claim": ("claim", "Take devices from the host, for passthrough."),
    "claims": ("claims", "Show what is claimed, by whom and since when."),
    "release": ("release", "Give claimed devices back to the host."),
    "recover": ("recover", "Undo what processes that died have left claimed."),
    "rebind": ("rebind", "Put devices that other tools have left back on host drivers."),
    "vfs": ("vfs", "Show or set the number of a device's virtual functions."),
    "mdev": ("mdev", "Show, create and remove mediated devices."),
    "run": ("run", "Run a virtual machine monitor with devices."),
    "guest": ("guest", "Run a command or a shell in a guest with a virtual IOMMU."),
    "man": ("man", "Print the manual page."),
}
"""The commands: the attribute of the module of that name, and what the list of commands says of it."""


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time: none waits for the others' imports, nor does their list."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which the help shows them."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(f"pyiommufd.cli.{cmd_name}"), COMMANDS[cmd_name][0])
        assert isinstance(command, click.Command)  # noqa: S101 - COMMANDS is ours
        if not gc.isenabled():  # as main has left it
            gc.freeze()
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, a line each."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, or the options, that begin so."""
        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; one that does not exist is answered with the nearest."""
        name = args[0]
        if not ctx.resilient_parsing and name not in self.list_commands(ctx) and not name.startswith("-"):
            near = did_you_mean(name, self.list_commands(ctx)) or f"; there are {', '.join(self.list_commands(ctx))}"
            options = {option for parameter in self.get_params(ctx) for option in parameter.opts}
            if f"--{name}" in options:
                of_command = [each for each in args[1:2] if name == "help" and each in COMMANDS]
                near = f"; try {' '.join([ctx.command_path, *of_command, f'--{name}'])}"
            ctx.fail(f"No such command '{printable(name)}'{near}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The group's own options."""
        with _usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what pyiommufd raises becomes a message and the exit status."""
        try:
            with _usage_errors():
                return super().invoke(ctx)
        except IOMMUFDError as error:
            echo(f"{ctx.command_path} {ctx.invoked_subcommand}: {said(error)}", err=True)
            sys.exit(status_of(error))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Have what click says of wrong arguments go by `echo`: it repeats them."""
    try:
        yield
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        echo(text.getvalue().rstrip(), err=True)
        sys.exit(error.exit_code)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if not value or ctx.resilient_parsing:
        return
    echo(f"pyiommufd, version {__version__}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Linux's iommufd: see IOMMU groups, claim devices, hand them on, test in a guest.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 this machine lacks something.

    \b
    The manual page: pyiommufd man | man -l -
    Completion in bash, from ~/.bashrc (for zsh and fish see there):
      eval "$(_PYIOMMUFD_COMPLETE=bash_source pyiommufd)"
    """  # noqa: D301 - click's mark for lines to keep
    if os.environ.get("NO_COLOR"):
        ctx.color = False
