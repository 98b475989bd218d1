"""Package archives in a folder: real apt and real packages, and no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyiommufd.testing.provision.apt import Archive


@pytest.fixture
def make_etc(tmp_path: Path) -> Callable[[str], Path]:
    """Makes an apt configuration with this as its sources."""

    def make(text: str) -> Path:
        (tmp_path / "etc/sources.list.d").mkdir(parents=True)
        (tmp_path / "etc/sources.list.d/distribution.sources").write_text(text)
        return tmp_path / "etc"

    return make


@pytest.fixture
def make_archive(tmp_path: Path, make_etc: Callable[[str], Path]) -> Callable[..., Archive]:
    """Makes an archive of packages: by name and version, the files in each by their path."""

    def make(packages: Mapping[tuple[str, str], Mapping[str, Path]], architecture: str = "amd64") -> Archive:
        pool = tmp_path / "pool"
        pool.mkdir()
        stanzas = []
        for (name, version), files in packages.items():
            tree = tmp_path / "package"
            (tree / "DEBIAN").mkdir(parents=True)
            control = (
                f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
                "Maintainer: x <x@example.org>\nDescription: x\n"
            )
            (tree / "DEBIAN/control").write_text(control)
            for place, source in files.items():
                (tree / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, tree / place)
            deb = pool / f"{name}_{version}_all.deb"
            subprocess.run(["dpkg-deb", "-Znone", "--build", str(tree), str(deb)], capture_output=True, check=True)
            shutil.rmtree(tree)
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            stanzas.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
        listed = f"main/binary-{architecture}/Packages"
        index = tmp_path / "dists/bookworm" / listed
        index.parent.mkdir(parents=True)
        index.write_text("\n".join(stanzas))
        (tmp_path / "dists/bookworm/Release").write_text(
            f"Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: {architecture} all\n"
            "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(index.read_bytes()).hexdigest()} {index.stat().st_size} {listed}\n"
        )
        etc = make_etc(f"Types: deb\nURIs: file:{tmp_path}\nSuites: bookworm\nComponents: main\nTrusted: yes\n")
        return Archive(tmp_path / "apt", etc=etc, release={"ID": "ubuntu", "VERSION_CODENAME": "bookworm"})

    return make
