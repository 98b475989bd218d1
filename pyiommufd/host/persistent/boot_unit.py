"""The systemd unit that makes persistent claims at boot: shipped beside this module, installed while there is one."""

from __future__ import annotations

import contextlib
import logging
import shlex
import subprocess
from pathlib import Path

from pyiommufd.host import durable
from pyiommufd.host.persistent.environment import OPTIONS, interpreter
from pyiommufd.host.programs import system_program

NAME = "pyiommufd.service"
FOLDER = Path("/etc/systemd/system")

_SHIPPED = Path(__file__).with_name(NAME)
_COMMAND = "@COMMAND@"
_OURS = "# Written by pyiommufd claim --persist"
_RELOAD_SECONDS = 60

_log = logging.getLogger(__name__)


def has_systemd() -> bool:
    """Whether systemd runs this machine (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def command() -> str:
    """The command that has to run at boot, as a shell line, with absolute paths."""
    return shlex.join([interpreter(), *OPTIONS, "-m", "pyiommufd.cli", "claim", "--persistent"])


def text() -> str:
    """The unit, for this Python environment."""
    # systemd.service(5), systemd.unit(5): the shell's quotes do, and there are specifiers and variables.
    line = command().replace("%", "%%").replace("$", "$$")
    return _SHIPPED.read_text(encoding="utf-8").replace(_COMMAND, line)


def file() -> Path:
    """The file of the unit."""
    return FOLDER / NAME


def link() -> Path:
    """The link that enables it; what ``systemctl enable`` makes of the unit's ``WantedBy=``."""
    return FOLDER / "multi-user.target.wants" / NAME


def is_ours() -> bool:
    """Whether the unit that is installed, if any, may be replaced or removed: an administrator's own is left alone."""
    try:
        return file().read_text(encoding="utf-8", errors="replace").startswith(_OURS)
    except OSError:
        return not file().exists()


def is_installed() -> bool:
    """Whether the unit is there, runs this Python environment, and is enabled."""
    try:
        return (not is_ours() or file().read_text(encoding="utf-8") == text()) and link().is_symlink()
    except OSError:
        return False


def install() -> None:
    """Write and enable the unit; it is on disk before this returns.

    Raises:
        OSError: It cannot be written.
    """
    if is_ours():
        durable.commit(f"write {file()}", lambda: durable.write(file(), text()))
    durable.commit(f"link {link()}", _enable)
    _reload()


def _enable() -> None:
    durable.make_folder(link().parent)
    with contextlib.suppress(FileExistsError):
        link().symlink_to(file())
    durable.sync_folder(link().parent)


def remove() -> None:
    """Disable the unit and remove it.

    Raises:
        OSError: It cannot be removed.
    """
    durable.commit(f"remove {link()}", lambda: durable.remove(link()))
    if is_ours():
        durable.commit(f"remove {file()}", lambda: durable.remove(file()))
    _reload()


def remove_draft() -> None:
    """Remove what was written of the unit when its process died; the folder's other drafts are others'."""
    durable.remove(file().with_name(NAME + durable.DRAFT))


def _reload() -> None:
    """Have systemd read its units again. It does so at boot, too: no failure of it matters here."""
    systemctl = system_program("systemctl")
    if systemctl is None:
        return
    try:
        done = subprocess.run(
            [systemctl, "daemon-reload"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RELOAD_SECONDS,
            check=False,
        )
        said = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        _log.warning("systemctl daemon-reload: %s", said)
