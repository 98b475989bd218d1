"""The distribution's archive: what is read of apt's configuration, and what is made of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyiommufd.testing.errors import GuestMissingError, KernelBuildError
from pyiommufd.testing.provision.apt import (
    Archive,
    Package,
    Source,
    further_suites,
    newest_first,
    os_release,
    parse_deb822,
    parse_one_line,
    read_sources,
)

MakeEtc = Callable[[str], Path]
MakeArchive = Callable[[Mapping[tuple[str, str], Mapping[str, Path]]], Archive]

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian http://other.example/debian
Suites: bookworm bookworm-updates
# another, within
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""


def test_deb822() -> None:
    sources = parse_deb822(DEB822)
    assert [source.uri for source in sources] == ["http://mirror.example/debian", "http://other.example/debian"]
    assert sources[0].suites == ("bookworm", "bookworm-updates")
    assert sources[0].components == ("main", "contrib")
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n" in sources[0].stanza(["sid"])


def test_one_line() -> None:
    text = (
        "# deb http://commented.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main contrib # x\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb http://security.example/debian-security bookworm-security main\n"
    )
    first, second = parse_one_line(text)
    assert first == Source(
        "http://mirror.example/debian", ("bookworm",), ("main", "contrib"),
        {"arch": "amd64", "signed-by": "/usr/share/keyrings/k.gpg"},
    )  # fmt: skip
    assert first.stanza(["sid"]) == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/k.gpg\n"
    )
    assert second.suites == ("bookworm-security",)


def test_sources_in_all_files(tmp_path: Path, make_etc: MakeEtc) -> None:
    folder = make_etc(DEB822)
    (folder / "sources.list").write_text("deb http://list.example/debian bookworm main\n")
    (folder / "sources.list.d/old.list.save").write_text("deb http://saved.example/debian bookworm main\n")
    assert read_sources(folder)[0].uri == "http://list.example/debian"
    assert len(read_sources(folder)) == 3


def test_suites_beyond() -> None:
    assert further_suites("debian", "bookworm") == ["bookworm-backports", "stable-backports"]
    assert further_suites("ubuntu", "noble") == []


@needs_apt
def test_private_configuration(tmp_path: Path, make_etc: MakeEtc) -> None:
    third_party = "Types: deb\nURIs: http://third.example/x\nSuites: bookworm\nComponents: stable\n"
    folder = make_etc(DEB822.replace("http://other.example/debian", "") + "\n" + third_party)
    archive = Archive(tmp_path / "apt", etc=folder, release={"ID": "debian", "VERSION_CODENAME": "bookworm"})
    archive.configure()
    assert [(source.uri, source.suites) for source in parse_deb822(archive.wanted)] == [
        ("http://mirror.example/debian", ("bookworm", "bookworm-updates")),
        ("http://mirror.example/debian", ("bookworm-backports",)),
        ("http://mirror.example/debian", ("stable-backports",)),
    ]
    # apt itself reads it, and every folder that it would write to is ours.
    environment = os.environ | {"APT_CONFIG": str(tmp_path / "apt/apt.conf")}
    dump = subprocess.run(["apt-config", "shell", "LISTS", "Dir::State::lists/d", "CACHE", "Dir::Cache/d",
                           "STATUS", "Dir::State::status/f", "PARTS", "Dir::Etc::parts/d",
                           "SOURCES", "Dir::Etc::sourceparts/d"],
                          env=environment, capture_output=True, text=True, check=True).stdout  # fmt: skip
    places = dict(line.split("=", 1) for line in dump.splitlines())
    assert len(places) == 5
    for name, place in places.items():
        assert place.strip("'").startswith(str(tmp_path / "apt")), (name, place)


@needs_apt
def test_machine_without_an_archive_of_its_distribution(tmp_path: Path, make_etc: MakeEtc) -> None:
    archive = Archive(tmp_path / "apt", etc=make_etc(""), release={"ID": "debian", "VERSION_CODENAME": "x"})
    with pytest.raises(GuestMissingError, match=r"Guest\(kernel=…\)"):
        archive.configure()


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestMissingError, match="apt-get"):
        Archive(tmp_path / "apt").configure()


@pytest.fixture
def local(tmp_path: Path, make_archive: MakeArchive) -> Archive:
    names = [("source-6.12", "6.12.3-1"), ("source-7.3", "7.3.1-1"), ("source-7.3", "7.3.10-1~bpo1"),
             ("source-7.10", "7.10-1"), ("other", "9")]  # fmt: skip
    archive = make_archive({name: {} for name in names})
    archive.configure()
    return archive


@needs_apt
def test_packages_on_offer(local: Archive) -> None:
    local.update()
    assert local.packages(r"source-[\d.]+") == [
        Package("source-7.10", "7.10-1"), Package("source-7.3", "7.3.10-1~bpo1"), Package("source-6.12", "6.12.3-1"),
    ]  # fmt: skip
    assert local.packages("no-such") == []


@needs_apt
def test_download_is_checked_and_kept(local: Archive, tmp_path: Path) -> None:
    local.update()
    package = Package("source-6.12", "6.12.3-1")
    deb = local.download(package, tmp_path / "sources")
    assert deb.read_bytes() == (tmp_path / "pool/source-6.12_6.12.3-1_all.deb").read_bytes()
    (tmp_path / "pool/source-6.12_6.12.3-1_all.deb").unlink()
    assert local.download(package, tmp_path / "sources") == deb
    tampered = tmp_path / "pool/source-7.10_7.10-1_all.deb"
    tampered.write_bytes(tampered.read_bytes()[:-1] + b"x")
    with pytest.raises(KernelBuildError, match=r"apt-get download source-7\.10"):
        local.download(Package("source-7.10", "7.10-1"), tmp_path / "sources")
    assert [path.name for path in (tmp_path / "sources").iterdir()] == [deb.name]


@needs_apt
def test_unsigned_archive_is_refused(local: Archive, tmp_path: Path) -> None:
    sources = tmp_path / "etc/sources.list.d/distribution.sources"
    sources.write_text(sources.read_text().replace("Trusted: yes\n", ""))
    local.configure()
    local.update()
    with pytest.raises(KernelBuildError, match="not signed"):
        local.packages(r"source-.*")


@needs_apt
def test_lists_are_fetched_once_a_day(local: Archive, tmp_path: Path) -> None:
    local.update()
    index = tmp_path / "dists/bookworm/main/binary-amd64/Packages"
    index.unlink()
    local.update()
    assert local.packages(r"source-7\.3")


def test_order_is_dpkgs() -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg here")
    packages = [Package("x", version) for version in ("7.3.4-1~bpo13+1", "7.3.4-1", "7.3.10-1", "1:1", "7.3.4-1~rc1")]
    assert [package.version for package in newest_first(packages)] == [
        "1:1", "7.3.10-1", "7.3.4-1", "7.3.4-1~rc1", "7.3.4-1~bpo13+1",
    ]  # fmt: skip


def test_os_release(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("# x\nID=debian\nVERSION_CODENAME='trixie'\nNAME=\"Debian GNU/Linux\"\n")
    assert os_release(tmp_path / "os-release") == {
        "ID": "debian", "VERSION_CODENAME": "trixie", "NAME": "Debian GNU/Linux",
    }  # fmt: skip
    assert os_release(tmp_path / "none") == {}
