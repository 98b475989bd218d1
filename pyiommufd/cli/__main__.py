"""The entry point of ``pyiommufd`` and ``python -m pyiommufd.cli``."""

from __future__ import annotations

import gc
import sys

MISSING = 3
"""The exit status for: this machine lacks something."""


def main() -> None:
    """Run the command line; never returns."""
    gc.disable()  # until the command has been imported: what imports make stays
    try:
        import click  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("pyiommufd: the command line needs click: pip install 'pyiommufd[cli]'\n")  # noqa: TID251
        sys.exit(MISSING)
    from pyiommufd.cli.group import cli
    from pyiommufd.cli.output import streams

    gc.freeze()  # nor is it looked at when Python ends
    with streams():
        cli(prog_name="pyiommufd")


if __name__ == "__main__":
    main()
