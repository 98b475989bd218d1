"""Runs in the guest: a shell on a pseudoterminal, whose other end is a virtio port of the guest.

``python -m pyiommufd.testing.inside.pty_shell PORT LINES COLUMNS``
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import sys
import termios

from pyiommufd.testing.inside.wire import open_port


def main() -> int:
    """Run the shell; its exit status."""
    name, lines, columns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    port = open_port(name)
    shell = shutil.which("bash") or "/bin/sh"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "guest:\\w# "
        try:
            # Without its start-up files: those are the user's of the host.
            os.execv(shell, [shell, "--norc", "--noprofile"] if shell.endswith("bash") else [shell])  # noqa: S606
        finally:
            os._exit(127)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    ends = {port: terminal, terminal: port}
    while True:
        for fd in select.select(list(ends), [], [])[0]:
            try:
                data = os.read(fd, 1 << 12)
            except OSError:
                data = b""  # a pseudoterminal whose last user is gone says EIO
            if not data:
                if fd == terminal:
                    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                return 1
            view = memoryview(data)
            while view:
                view = view[os.write(ends[fd], view) :]


if __name__ == "__main__":
    sys.exit(main())
