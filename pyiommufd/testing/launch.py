"""Runs a program that dies with the process that started it, even if that is killed with SIGKILL.

``python -I -S launch.py PARENT PROGRAM ARG…``: asks the kernel for SIGKILL when the parent goes, then becomes the
program. A file to be run, since between fork and exec of a threaded Python process no Python code is safe.
The kernel means the parent *thread*: the one that starts this must outlive the program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program named on the command line."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the launcher is gone")  # it went before the request: nothing would tell us any more
    try:
        os.execv(program, sys.argv[2:])  # noqa: S606 - no shell on purpose
    except OSError as error:
        sys.exit(f"{program}: {error.strerror}")


if __name__ == "__main__":
    main()
