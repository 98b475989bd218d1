"""Network interfaces of other network namespaces that stand above one of this machine's cards.

Such as the macvlan of a container: the kernel links an interface to what is above it within one namespace only. Each
other namespace is asked from within, by a thread that enters it (setns(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pyiommufd.host import sysfs
from pyiommufd.host.uses import netlink

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # Linux 7.3, include/uapi/linux/nsfs.h


@dataclass(frozen=True, slots=True)
class ForeignLink:
    """An interface above one of this network namespace.

    Attributes:
        name: Its name, and in whose eyes.
        below: The number of the interface that it stands on.
    """

    name: str
    below: int


@dataclass(slots=True)
class ForeignLinks:
    """What other network namespaces have.

    Attributes:
        found: The interfaces.
        unseen: Whose namespace could not be asked, and why, for a sentence.
    """

    found: list[ForeignLink] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def foreign_links(namespaces: Iterable[tuple[str, str]]) -> ForeignLinks:
    """Ask other network namespaces.

    Args:
        namespaces: The file of each, such as ``/proc/70/ns/net``, and whose it is. What is gone by now, or is no
            network namespace, is left out; one that is named twice is asked once.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, as few looks come to this

    # A thread that ends with this: it does not come back from where it goes.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_all_links_above_ours, namespaces).result()


def _all_links_above_ours(namespaces: Iterable[tuple[str, str]]) -> ForeignLinks:
    result = ForeignLinks()
    with _opened(f"{sysfs.PROC}/self/ns/net") as ours:
        seen = {_inode(ours)}
        for path, whose in namespaces:
            try:
                with _opened(path) as fd:
                    if ours is None or fd is None or _inode(fd) in seen:
                        continue
                    seen.add(_inode(fd))
                    result.found += [
                        ForeignLink(f"{link.name} of {whose}", link.below) for link in _links_above_ours(fd, ours)
                    ]
            except OSError as error:
                result.unseen.append(f"{whose} ({error.strerror})")
    return result


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int | None]:
    """A network namespace's file; None where there is none of that path.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        yield None
        return
    try:
        yield fd if _is_network(fd) else None
    finally:
        os.close(fd)


def _is_network(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False  # no namespace at all


def _inode(fd: int | None) -> int | None:
    return None if fd is None else os.fstat(fd).st_ino


def _links_above_ours(namespace: int, ours: int) -> list[netlink.Link]:
    """The interfaces in a network namespace, which this thread enters, that stand above one of ours."""
    import ctypes  # likewise

    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # In this order: by naming another namespace the kernel gives it its number.
    links = [link for link in netlink.bare_links() if link.below and link.below_in is not None]
    number = netlink.namespace_number(ours) if links else None
    return [link for link in links if link.below_in == number]
