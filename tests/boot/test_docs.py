"""The documentation: it builds without a warning, leads to every public name, and has no link into the void."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from docstrings import PACKAGES, public_classes
from sphinx.util.inventory import InventoryFile

from tests.unit.public_names import NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Sphinx makes of the pages, with every reference looked up; a page that none leads to is a warning, too."""
    folder = tmp_path_factory.mktemp("docs")
    doctrees, made = folder / "read", folder / "site"
    build = [sys.executable, "-m", "sphinx", "-qnW", "--keep-going", "-d", str(doctrees), str(DOCS), str(made)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return made


def test_every_public_name_has_an_entry(site: Path) -> None:
    """An attribute may have it with the public class that it is inherited from."""
    entries = {name for kind, name in _entries(site) if kind.startswith("py:")}
    exported = {f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__}
    exported.discard("pyiommufd.vmm.User")  # that of pyiommufd
    assert sorted(exported - entries) == []
    bases = {kind.__name__: [base.__name__ for base in kind.__mro__] for kind in public_classes()}
    missing = []
    for name in NAMES.read_text().split():
        owner, _, attribute = name.partition(".")
        if not any(f"{package}.{base}.{attribute}" in entries for base in bases[owner] for package in PACKAGES):
            missing.append(name)
    assert missing == []


def test_every_constant_and_fixture_has_an_entry(site: Path) -> None:
    entries = set(_entries(site))
    constants = re.findall(r"^(\w+): Final", (DOCS.parent / "pyiommufd/uapi/__init__.pyi").read_text(), re.MULTILINE)
    assert len(constants) > 200
    assert [name for name in constants if ("py:data", f"pyiommufd.uapi.{name}") not in entries] == []
    assert {name for kind, name in entries if kind == "std:fixture"} >= {"iommufd", "ioas", "edu", "dmesg", "no_leaks"}


def test_links_lead_somewhere(site: Path) -> None:
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    dead = []
    for page, text in pages.items():
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            if ":" not in path and (not target.exists() or (anchor and anchor not in anchors.get(target, ()))):
                dead.append(f"{page.relative_to(site)}: {link}")
    assert len(pages) > 20
    assert dead == []


def _entries(site: Path) -> list[tuple[str, str]]:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    return [(kind, name) for kind, names in inventory.items() for name in names]
