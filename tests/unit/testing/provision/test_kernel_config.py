"""The guest kernel's configuration."""

from __future__ import annotations

from pyiommufd.testing.provision.kernel_config import ESSENTIAL, FRAGMENT, merge, parse, unmet

BASE = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_NR_CPUS=1\n\n#\n# A section\n#\n"


def test_parse() -> None:
    assert parse(BASE) == {"CONFIG_A": "n", "CONFIG_B": "y", "CONFIG_NR_CPUS": "1"}


def test_merge_overrides_in_place() -> None:
    assert parse(merge(BASE, "CONFIG_A=m\nCONFIG_B=n\nCONFIG_C=y\n")) == {
        "CONFIG_A": "m", "CONFIG_B": "n", "CONFIG_NR_CPUS": "1", "CONFIG_C": "y",
    }  # fmt: skip
    assert merge(BASE, "CONFIG_B=n").count("CONFIG_B") == 1


def test_unmet_names_what_did_not_take() -> None:
    result = "CONFIG_A=m\nCONFIG_C=y\n# CONFIG_D is not set\nCONFIG_N=8\n"
    fragment = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=m\nCONFIG_D=n\nCONFIG_E=n\nCONFIG_N=4\n"
    assert unmet(fragment, result) == ["CONFIG_A=y", "CONFIG_B=y", "CONFIG_N=4"]


def test_ours_is_well_formed() -> None:
    lines = [line for line in FRAGMENT.read_text().splitlines() if line and not line.startswith("# ")]
    assert len(parse("\n".join(lines))) == len(lines), "a line is no option, or an option is there twice"
    assert {name for name in ESSENTIAL if parse(FRAGMENT.read_text()).get(name) != "y"} == set()
