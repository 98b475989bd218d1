"""Folders of the cache that are there whole or not at all: each has a digest of all that is in it.

One that is damaged counts as not there, and is made again by whoever wants it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.provision.architecture import ARCHITECTURES, X86_64, Architecture

FORMAT = 1
"""How the record of a folder is written."""

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something made earlier, in a folder of its own.

    Attributes:
        folder: The folder.
        manifest: What it is.
    """

    folder: Path
    manifest: Mapping[str, Any] = field(hash=False)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What is in the folder, or None where it is not there whole."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
                return None
            return cls(folder, manifest) if manifest.get("sha256") == _digest(folder) else None
        except (OSError, ValueError):
            return None

    @classmethod
    def newest(cls, folder: Path, architecture: Architecture) -> Iterator[Self]:
        """The whole ones below a folder for an architecture, the one made last first; each is read as it is wanted."""
        manifests = [path for path in folder.glob(f"[!.]*/{_MANIFEST}") if named_for(path.parent) is architecture]
        for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
            if entry := cls.load(manifest.parent):
                yield entry

    @classmethod
    @contextlib.contextmanager
    def made(cls, folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
        """Make one: what the block puts into the folder given becomes, if it succeeds, the entry.

        Args:
            folder: The entry's, of whose name the caller holds the lock.
            facts: The manifest, to which the block may add; afterwards it is all of it.

        Raises:
            GuestError: What was written is not what is read.
        """
        work = folder.with_name(f".{folder.name}.unpacking")
        shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
        work.mkdir(parents=True)
        try:
            yield work
            facts |= {"format": FORMAT, "sha256": _digest(work)}
            (work / _MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if cls.load(folder) is None:
            raise GuestError(f"what was just made in {folder} is not there whole: is the disk failing?")


def entry_name(first: str, architecture: Architecture, *made_from: str) -> str:
    """The name of an entry of the cache: what it is, for which architecture, and the digest of what it is made from.

    x86-64 is not named: entries were for that one before they were for others.
    """
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()
    return "-".join((first, *([] if architecture is X86_64 else [architecture.name]), key[:12]))


def named_for(folder: Path) -> Architecture:
    """The architecture of an entry, by the name that `entry_name` gave it."""
    return next((one for one in ARCHITECTURES.values() if f"-{one.name}-" in folder.name), X86_64)


def _digest(folder: Path) -> str:
    """A digest of every name and all content below a folder, its manifest aside."""
    digest = hashlib.sha256()
    for name, content in _content(folder):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _content(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            yield name, str(path.readlink()).encode()
        elif path.is_file() and name != _MANIFEST:
            yield name, path.read_bytes()
