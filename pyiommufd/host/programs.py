"""The system's own programs that are run as root."""

from __future__ import annotations

import os

_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")


def system_program(name: str) -> str | None:
    """The path of a program, or None where there is none of that name.

    The system's folders come first: sbin is not on everyone's PATH, and what a user has put on it is not to be run as
    root in the system's stead. The PATH is for systems that have their programs elsewhere.
    """
    import shutil  # here, as few looks at a machine run a program

    return shutil.which(name, path=os.pathsep.join([*_FOLDERS, os.environ.get("PATH", os.defpath)]))
