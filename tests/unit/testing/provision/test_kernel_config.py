"""The guest kernel's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyiommufd.testing.provision import kernel_config
from pyiommufd.testing.provision.architecture import AARCH64, ARCHITECTURES, X86_64, Architecture
from pyiommufd.testing.provision.kernel_config import essential, fragment, merge, parse, unmet

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
    for file in Path(kernel_config.__file__).parent.glob("*.config"):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("# ")]
        assert len(parse("\n".join(lines))) == len(lines), f"{file}: a line is no option, or an option is there twice"


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_ours_has_what_is_essential(architecture: Architecture) -> None:
    options = parse(fragment(architecture))
    assert {name for name in essential(architecture) if options.get(name) != "y"} == set()


def test_one_architecture_lacks_the_iommus_of_the_other() -> None:
    x86, arm = parse(fragment(X86_64)), parse(fragment(AARCH64))
    assert (x86["CONFIG_INTEL_IOMMU"], x86.get("CONFIG_ARM_SMMU_V3", "n")) == ("y", "n")
    assert (arm["CONFIG_INTEL_IOMMU"], arm["CONFIG_ARM_SMMU_V3"]) == ("n", "y")
    assert {arm[name] for name in ("CONFIG_IOMMUFD_TEST", "CONFIG_VIRTIO_IOMMU", "CONFIG_9P_FS")} == {"y"}
