"""The group of all commands. A command's module is imported when the command is used."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from pyiommufd.cli.output import echo
from pyiommufd.cli.status import status_of
from pyiommufd.errors import IOMMUFDError

COMMANDS = {
    "check": "pyiommufd.cli.check:check",
    "list": "pyiommufd.cli.list:list_command",
    "show": "pyiommufd.cli.show:show",
    "groups": "pyiommufd.cli.groups:groups",
    "holders": "pyiommufd.cli.holders:holders",
    "topology": "pyiommufd.cli.topology:topology",
    "caps": "pyiommufd.cli.caps:caps",
    "explain": "pyiommufd.cli.explain:explain",
    "watch": "pyiommufd.cli.watch:watch",
    "plan": "pyiommufd.cli.plan:plan",
    "claim": "pyiommufd.cli.claim:claim",
    "claims": "pyiommufd.cli.claims:claims",
    "release": "pyiommufd.cli.release:release",
    "recover": "pyiommufd.cli.recover:recover",
    "rebind": "pyiommufd.cli.rebind:rebind",
    "vfs": "pyiommufd.cli.vfs:vfs",
    "run": "pyiommufd.cli.run:run",
    "guest": "pyiommufd.cli.guest:guest",
    "man": "pyiommufd.cli.man:man",
}
"""The commands by name: where each is, as module and attribute."""


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time: ``guest`` is not to wait for the others' imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which the help shows them."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - COMMANDS is ours
        return command

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
            echo(f"{ctx.command_path} {ctx.invoked_subcommand}: {error}", err=True)
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
    # Here: it takes longer to import than most commands take to run.
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("pyiommufd")
    except PackageNotFoundError:
        number = "unknown (not installed)"
    echo(f"pyiommufd, version {number}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Linux's iommufd: see IOMMU groups, claim devices, hand them on, test in a guest.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 this machine lacks something.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
