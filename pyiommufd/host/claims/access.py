"""Device nodes for a user who is not root: an entry of the node's access control list, which leaves owner and mode.

`/dev/iommu` is everyone's: a second user gets a second entry. acl(5) says what entries mean; the form in which the
kernel takes them is that of Linux 7.3, ``include/uapi/linux/posix_acl_xattr.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.errors import ClaimError

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFF_FFFF
READ_WRITE = 6

Entries = dict[tuple[int, int], int]
"""Permissions by tag and id, as the kernel has them."""


def granted(node: Path, uid: int) -> int | None:
    """What a node's list gives a user by name, 6 being to read and to write; None where it does not name the user.

    Raises:
        OSError: The node is not there, or has no such lists.
    """
    return _read(node).get((_USER, uid))


def grant(node: Path, uid: int, permissions: int | None = READ_WRITE) -> None:
    """Let a user open a node, or, with None, no longer name the user in its list.

    Raises:
        ClaimError: The file system that the node is in has no access control lists.
        OSError: What the kernel answered.
    """
    entries = _read(node)
    mask = entries.pop((_MASK, _NO_ID), None)
    if mask is not None:
        # The old mask may limit what others' entries grant: apply it to them, since the new mask may be wider.
        entries = {key: value & mask if _is_masked(key[0]) else value for key, value in entries.items()}
    if permissions is None:
        entries.pop((_USER, uid), None)
    else:
        entries[_USER, uid] = permissions
    if any(tag in (_USER, _GROUP) for tag, _ in entries):
        entries[_MASK, _NO_ID] = 0
        for (tag, _), value in list(entries.items()):
            if _is_masked(tag):
                entries[_MASK, _NO_ID] |= value
    try:
        os.setxattr(node, _ATTRIBUTE, _packed(entries))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise ClaimError(
            f"{node} cannot be given to one user: the file system of {node.parent} has no access control lists "
            "(a kernel with CONFIG_TMPFS_POSIX_ACL has)"
        ) from error


def _is_masked(tag: int) -> bool:
    return tag in (_USER, _GROUP_OBJ, _GROUP)


def _read(node: Path) -> Entries:
    try:
        data = os.getxattr(node, _ATTRIBUTE)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        mode = node.stat().st_mode
        return {
            (_USER_OBJ, _NO_ID): mode >> 6 & 7,
            (_GROUP_OBJ, _NO_ID): mode >> 3 & 7,
            (_OTHER, _NO_ID): mode & 7,
        }
    return dict(_unpacked(data))


def _unpacked(data: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    for tag, permissions, number in struct.iter_unpack("<HHI", data[4:]):
        yield (tag, number), permissions


def _packed(entries: Entries) -> bytes:
    # The kernel wants them in this order.
    body = (struct.pack("<HHI", tag, entries[tag, number], number) for tag, number in sorted(entries))
    return struct.pack("<I", _VERSION) + b"".join(body)
