"""The distribution's packages, asked for without touching the system: apt with folders of our own.

The mirrors, keyrings and proxies are this machine's, read from its own configuration; signatures are checked by apt.
Works as any user.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyiommufd.testing.errors import GuestError, GuestMissingError, KernelBuildError
from pyiommufd.testing.option_names import option_name
from pyiommufd.testing.provision.architecture import Architecture, own_architecture
from pyiommufd.testing.provision.progress import Progress

STABLE_BACKPORTS = "stable-backports"
"""Debian's name for the backports of whatever release is stable by now: it saves a list of releases here."""

_FRESH = 24 * 3600.0

# What the machine's own apt.conf may say about reaching a mirror. The rest stays out: it may hold hooks that
# clean up the system's folders.
_KEPT = re.compile(
    r"Acquire::(https?|ftp|socks5h?|tor|Retries|ForceIPv[46]|Check-Valid-Until|Check-Date|Max-ValidTime)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of packages that this machine uses.

    Attributes:
        uri: Where it is.
        suites: Its suites, such as ``bookworm``.
        components: Its components, such as ``main``.
        options: Further fields of a stanza in apt's deb822 format, such as ``Signed-By``, by lower-case name.
    """

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    def stanza(self, suites: Iterable[str]) -> str:
        """This archive in apt's deb822 format, with other suites."""
        fields = {"Types": "deb", "URIs": self.uri, "Suites": " ".join(suites), "Components": "main"}
        kept = ("signed-by", "trusted", "check-valid-until", "allow-weak", "allow-insecure")
        fields |= {key.title(): value for key, value in self.options.items() if key in kept}
        return "".join(f"{key}: {value}\n" for key, value in fields.items())


def parse_deb822(text: str) -> list[Source]:
    """The archives in a ``.sources`` file; those of source packages or disabled ones left out."""
    sources = []
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", uncommented):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line.rstrip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.pop("enabled", "yes").lower() not in ("no", "false", "off", "0")
        if enabled and "deb" in fields.pop("types", "").split():
            suites = tuple(fields.pop("suites", "").split())
            components = tuple(fields.pop("components", "").split())
            sources += [Source(uri, suites, components, fields) for uri in fields.pop("uris", "").split()]
    return sources


def parse_one_line(text: str) -> list[Source]:
    """The archives in a ``.list`` file; those of source packages left out."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options = (option.partition("=") for option in (match[1] or "").split())
            fields = {key.lower(): value.replace(",", " ") for key, _, value in options}
            sources.append(Source(match[2], (match[3],), tuple(match[4].split()), fields))
    return sources


def read_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """All archives that this machine's apt is configured to use."""
    sources = []
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for file in files:
        if file.is_file() and file.suffix in (".list", ".sources"):
            parse = parse_deb822 if file.suffix == ".sources" else parse_one_line
            sources += parse(file.read_text(errors="replace"))
    return sources


def further_suites(distribution: str, codename: str) -> list[str]:
    """The suites beyond a release's own that may offer a newer kernel."""
    if distribution != "debian":
        return []
    return [f"{codename}-backports", STABLE_BACKPORTS]


@dataclass(frozen=True, slots=True)
class Package:
    """A package on offer.

    Attributes:
        name: Its name.
        version: Its version.
    """

    name: str
    version: str


class Archive:
    """apt, with folders of its own below one folder.

    Args:
        folder: Where lists and caches are kept.
        etc: This machine's apt configuration.
        release: The content of this machine's ``os-release``, as fields.
        architecture: Whose packages; None: this machine's.
    """

    def __init__(
        self, folder: Path, *, etc: Path = Path("/etc/apt"), release: Mapping[str, str] | None = None,
        architecture: Architecture | None = None,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._architecture = own_architecture() if architecture is None else architecture
        self._etc = etc
        self._release = os_release() if release is None else release
        self._complaints = ""
        self._sources = folder / "private.sources"
        self.wanted = ""

    def _environment(self) -> dict[str, str]:
        return os.environ | {"APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C"}

    def _run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self._environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def configure(self) -> None:
        """Write the private configuration.

        Raises:
            GuestMissingError: This machine has no apt, or no archive of its distribution.
        """
        if shutil.which("apt-get") is None:
            raise GuestMissingError(
                "building a kernel takes its source from Debian's or Ubuntu's archive, by apt-get, which is not here: "
                f"name a kernel that has IOMMUFD and VFIO_DEVICE_CDEV with {option_name('kernel')}"
            )
        for name in ("lists/partial", "cache/archives/partial", "empty"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        self.wanted = "\n".join(self._stanzas())
        own, packages_of = self._folder, self._architecture.debian
        lines = [
            f'Dir::Etc::main "/dev/null"; Dir::Etc::parts "{own}/empty"; Dir::Etc::preferencesparts "{own}/empty";',
            f'Dir::Etc::sourcelist "{own}/private.sources"; Dir::Etc::sourceparts "{own}/empty";',
            f'Dir::State::lists "{own}/lists"; Dir::State::status "{own}/status"; Dir::Cache "{own}/cache";',
            # Only the package lists; as the user we are, whose folders apt's own user may not enter.
            f'Acquire::Languages "none"; APT::Architectures "{packages_of}"; APT::Architecture "{packages_of}";',
            'APT::Sandbox::User "root"; Acquire::GzipIndexes "true";',
        ]
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
        lines += [line for line in dump.splitlines() if _KEPT.match(line)]
        (self._folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def _stanzas(self) -> list[str]:
        distribution, codename = self._release.get("ID", ""), self._release.get("VERSION_CODENAME", "")
        sources = [source for source in read_sources(self._etc) if "main" in source.components]
        own = [s for s in sources if any(re.fullmatch(f"{codename}(-[a-z]+)?", suite) for suite in s.suites)]
        # Debian's testing and unstable may be named by what they are.
        own = own or [s for s in sources if {"sid", "unstable", "testing", "stable"} & set(s.suites)]
        if not own:
            raise GuestMissingError(
                f"no archive of {distribution or 'this distribution'} {codename} in {self._etc}: "
                f"name a kernel with {option_name('kernel')}"
            )
        stanzas = [source.stanza(source.suites) for source in own]
        known = {suite for source in own for suite in source.suites}
        for source in own:
            if codename in source.suites:
                # One stanza a suite: what a mirror lacks then does not spoil the others.
                stanzas += [
                    source.stanza([suite]) for suite in further_suites(distribution, codename) if suite not in known
                ]
        return list(dict.fromkeys(stanzas))

    def update(self) -> None:
        """Fetch the package lists, unless that was done within a day."""
        stamp = self._folder / "updated"
        if self._sources.is_file() and stamp.is_file() and stamp.read_text() == self.wanted:
            age = time.time() - stamp.stat().st_mtime
            if 0 <= age < _FRESH:
                return
        self._sources.write_text(self.wanted)
        result = self._run("apt-get", "update", "-q")
        alias = self._codename(STABLE_BACKPORTS)
        if alias is not None:
            # Mirrors that copy or cache by name may keep an older state under the alias.
            self._sources.write_text(self.wanted.replace(f"Suites: {STABLE_BACKPORTS}\n", f"Suites: {alias}\n"))
            result = self._run("apt-get", "update", "-q")
        # A suite that a mirror lacks fails the whole; what counts is what is on offer afterwards.
        self._complaints = result.stderr.strip()
        if result.returncode == 0 or any((self._folder / "lists").glob("*_Packages*")):
            stamp.write_text(self.wanted)

    def _codename(self, suite: str) -> str | None:
        """What the fetched lists say the suite is called."""
        for file in (self._folder / "lists").glob(f"*_{suite}_*Release"):
            if match := re.search(r"^Codename: (\S+)$", file.read_text(errors="replace"), re.MULTILINE):
                return match[1]
        return None

    def packages(self, pattern: str) -> list[Package]:
        """The packages on offer whose name matches; the newest version of each, the newest first.

        Args:
            pattern: A regular expression for the whole name.

        Raises:
            KernelBuildError: The lists could not be fetched.
        """
        names = self._run("apt-cache", "pkgnames").stdout.split()
        found = []
        for name in sorted(name for name in names if re.fullmatch(pattern, name)):
            newest = ""
            for line in self._run("apt-cache", "madison", name).stdout.splitlines():
                version = line.split("|")[1].strip()
                if not newest or newer(version, newest):
                    newest = version
            if newest:
                found.append(Package(name, newest))
        if not found and self._complaints:
            (self._folder / "updated").unlink(missing_ok=True)
            raise KernelBuildError(f"apt-get update: {self._complaints}")
        return newest_first(found)

    def download(self, package: Package, folder: Path) -> Path:
        """Fetch a package; apt checks it against the signed lists.

        Returns:
            The ``.deb`` in the folder.

        Raises:
            KernelBuildError: It could not be fetched.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # apt names the file so, with the colon of an epoch escaped.
        name = f"{package.name}_{package.version.replace(':', '%3a')}_all.deb"
        if (folder / name).is_file():
            return folder / name
        with_place = folder / f".fetching-{os.getpid()}"
        with_place.mkdir(exist_ok=True)
        try:
            result = self._run("apt-get", "download", "-q", f"{package.name}={package.version}", cwd=with_place)
            fetched = list(with_place.glob("*.deb"))
            if result.returncode != 0 or not fetched:
                (self._folder / "updated").unlink(missing_ok=True)  # the lists may be out of date
                raise KernelBuildError(f"apt-get download {package.name}: {result.stderr.strip()}")
            fetched[0].replace(folder / name)
        finally:
            shutil.rmtree(with_place, ignore_errors=True)
        return folder / name

    def needed(self, names: Sequence[str]) -> list[str]:
        """The file names of the packages, and of all that they need, down to the C library.

        Raises:
            GuestError: The archive cannot be reached, or they cannot be had from it.
        """
        result = self._install("--print-uris", *names)
        files = re.findall(r"^'\S+' (\S+\.deb) \d+", result.stdout, re.MULTILINE)
        if result.returncode != 0 or not files:
            # The lists may be out of date, or never have come.
            (self._folder / "updated").unlink(missing_ok=True)
            raise GuestError("; ".join(filter(None, (self._complaints, _complaint(result)))))
        return files

    def unpack(self, names: Sequence[str], files: Sequence[str], root: Path, progress: Progress) -> None:
        """Fetch the packages, which apt checks against the signed lists, and unpack them, installing nothing.

        Args:
            names: The packages.
            files: What is `needed` for them.
            root: The folder that they are unpacked into; it is made.
            progress: What is told how far it is.

        Raises:
            GuestError: Not all of them came, or one is no package.
        """
        result = self._install("--download-only", *names)
        fetched = [self._folder / "cache/archives" / file for file in files]
        if result.returncode != 0 or not all(file.is_file() for file in fetched):
            (self._folder / "updated").unlink(missing_ok=True)
            raise GuestError(_complaint(result))
        root.mkdir(parents=True)
        for number, package in enumerate(fetched, start=1):
            progress.update(f"{number} packages unpacked")
            result = subprocess.run(["dpkg-deb", "-x", package, root], capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise GuestError(f"dpkg-deb -x {package.name}: {result.stderr.strip()}")
        self._run("apt-get", "clean")

    def _install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("apt-get", "install", "-q", "-y", "--no-install-recommends", *arguments)


def _complaint(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip() or f"apt-get: status {result.returncode}, and no packages"


def missing_programs() -> list[str]:
    """What is not here of the programs that fetch and unpack packages."""
    return [name for name in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(name) is None]


def newer(version: str, other: str) -> bool:
    """Whether one package version is newer than another, as dpkg orders them."""
    result = subprocess.run(["dpkg", "--compare-versions", version, "gt", other], check=False)
    return result.returncode == 0


def newest_first(packages: Iterable[Package]) -> list[Package]:
    """The packages by version, the newest first."""
    result: list[Package] = []
    for package in packages:
        place = 0
        while place < len(result) and newer(result[place].version, package.version):
            place += 1
        result.insert(place, package)
    return result


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of ``os-release``; none where there is no such file."""
    fields = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            key, separator, value = line.partition("=")
            if separator and not key.startswith("#"):
                fields[key] = value.strip("\"'")
    return fields
