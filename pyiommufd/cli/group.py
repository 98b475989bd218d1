"""The group of all commands. A command's module is imported when the command is used."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import click

COMMANDS = {
    "guest": "pyiommufd.cli.guest:guest",
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


def _version() -> str:
    try:
        return version("pyiommufd")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="pyiommufd")
def cli() -> None:
    """Linux's iommufd: see IOMMU groups, claim devices, hand them on, test in a guest."""
