"""Runs a program that dies with the process that started it, even if that is killed with SIGKILL.

``python -I -S launch.py OPTIONS PROGRAM ARG…``: prepares itself as the options say, asks the kernel for SIGKILL when
the parent goes, then becomes the program. A file to be run, since between fork and exec of a threaded Python process no
Python code is safe. The kernel means the parent *thread*: the one that starts this must outlive the program.

OPTIONS is a JSON object:

- ``parent``: the process that starts it;
- ``report``: the fd that gets the reason where the program cannot be run, and is closed where it can; else it goes to
  the standard error;
- ``mask``: the numbers of the signals to block, all others are not;
- ``memlock``: the limit on locked memory, in bytes, -1 for none;
- ``user``: ``{"uid": …, "gid": …, "groups": […]}`` to run as, without any privilege and without a way to get one;
- ``rehearse``: the program is looked for, as that user, and not run.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

COULD_NOT_START = 125
"""The exit status of a program that could not be run."""

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES = 64  # as many as there can be; the kernel refuses those that it does not know


def launch_command(command: Sequence[str], **options: Any) -> list[str]:
    """The command line that runs a command so, for this process, whose thread has to outlive it.

    Args:
        command: The program and its arguments.
        options: Those above, but for ``parent``.
    """
    return [sys.executable, "-I", "-S", __file__, json.dumps({"parent": os.getpid(), **options}), *command]


def main() -> None:
    """Become the program named on the command line."""
    options, command = json.loads(sys.argv[1]), sys.argv[2:]
    report = options.get("report")
    try:
        if report is not None:
            os.set_inheritable(report, False)
        _prepare(options)
        if options.get("rehearse"):
            _find(command[0])
            os._exit(0)
        os.execvp(command[0], command)  # noqa: S606 - no shell on purpose
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        text = f"{command[0]}: {reason or error}"
    if report is None:
        sys.stderr.write(f"{text}\n")  # noqa: TID251 - this file imports nothing of ours
    else:
        # Whoever reads it may be gone.
        with contextlib.suppress(OSError):
            os.write(report, text.encode(errors="replace"))
    os._exit(COULD_NOT_START)


def _prepare(options: dict[str, Any]) -> None:
    memlock, user = options.get("memlock"), options.get("user")
    if memlock is not None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
    if user is not None:
        _become(user)
    # After the change of user, which takes the request back (Linux 7.3, kernel/cred.c, commit_creds).
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options["parent"]:
        raise OSError(0, "the process that starts it is gone")  # before the request: nothing would tell us any more
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and so would the program
        signal.signal(number, signal.SIG_DFL)
    # What has come meanwhile takes effect now, as it would have on the program.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, options.get("mask", ()))


def _find(program: str) -> None:
    folders = [""] if "/" in program else os.get_exec_path()
    paths = [os.path.join(folder, program) for folder in folders]  # noqa: PTH118 - of those modules that are here
    if not any(os.access(path, os.X_OK) and not os.path.isdir(path) for path in paths):  # noqa: PTH112
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _become(user: dict[str, Any]) -> None:
    for capability in range(_CAPABILITIES):
        # What cannot be taken out of the bounding set is out of reach all the same, by no_new_privs.
        with contextlib.suppress(OSError):
            _prctl(_PR_CAPBSET_DROP, capability)
    os.setgroups(user["groups"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, argument: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    main()
