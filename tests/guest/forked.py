"""`python -m pyiommufd.cli` in a fork of this process: starting a Python and importing all anew takes a guest seconds.

For tests whose point is what a process of the command line does, not how it comes to be one.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import traceback
from typing import Any

import click

from pyiommufd.cli.__main__ import main
from pyiommufd.cli.group import cli


def start_cli(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command of the command line.

    Args:
        arguments: Of the command line.
        options: Of `subprocess.Popen`, for text, but for ``env``, ``pass_fds`` and those of its own process group.
    """
    cli.get_command(click.Context(cli), arguments[0])  # imported here, it is there in every fork
    # What Popen calls between fork and exec never comes back, so there is no exec. The rest is Popen's.
    return subprocess.Popen(
        [sys.executable, "-m", "pyiommufd.cli", *arguments],
        text=True,
        preexec_fn=lambda: _become_cli(arguments),
        **options,
    )


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end; what it says is in the result."""
    with start_cli(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _become_cli(arguments: tuple[str, ...]) -> None:
    """What a new Python would have that this fork has not, then the command line."""
    status: object = 1
    try:
        # Objects of the test are not to be finalized: the numbers of their fds are soon those of others.
        gc.freeze()
        gc.enable()
        # With them goes the pipe by whose end Popen sees that the program runs.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)) and number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored, signal.SIG_IGN)
        logging.getLogger().handlers.clear()
        sys.unraisablehook = sys.__unraisablehook__
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        sys.argv[1:] = arguments
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            if isinstance(status, str):
                sys.stderr.write(f"{status}\n")
            sys.stdout.flush()
        finally:
            os._exit(status if isinstance(status, int) else int(status is not None))
