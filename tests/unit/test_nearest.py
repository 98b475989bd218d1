"""Names that are nearest to one that is not there: wherever there is a list of what can be given."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pyiommufd import ClaimError, DeviceNotFoundError, find_device, plan_claim
from pyiommufd.cli.group import cli
from pyiommufd.nearest import did_you_mean
from tests.fake_sysfs import FakeSysfs


def test_nearest() -> None:
    assert did_you_mean("clam", ["plan", "claim", "claims"]) == "; did you mean claim?"
    assert did_you_mean("Mounted", ["mounted", "route"]) == "; did you mean mounted?"
    assert did_you_mean("EINVL", ["einval"]) == "; did you mean einval?"
    assert did_you_mean("sdc", ["sda", "sdb", "nvme0"]) == "; did you mean sda or sdb?"
    assert did_you_mean("VFIO_BIND", ["IOMMU_VFIO_IOAS", "VFIO_DEVICE_BIND_IOMMUFD"]).endswith(
        "VFIO_DEVICE_BIND_IOMMUFD?"
    )
    assert did_you_mean("9:9", {"9:8": "0:9:8"}) == "; did you mean 0:9:8?"
    for word, name in (
        ("xyz", "plan"),
        ("nonesuch", "none"),
        ("EFOO", "ELOOP"),
        ("00:20.0", "0000:00:02.0"),
        ("x", "y"),
    ):
        assert did_you_mean(word, [name]) == ""
    assert did_you_mean("", []) == did_you_mean("", ["x"]) == ""


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("03:00", "0000:00:03.0"),
        ("00:03", "0000:00:03.0"),
        ("00:1f", "0000:00:1f.0 or 0000:00:1f.2"),
        ("1f.2", "0000:00:1f.2"),
        ("0001:00:03.0", "0000:00:03.0"),
        ("00:03.1", "0000:00:03.0"),
        ("00:04.0", "0000:00:03.0"),
        ("00:20.0", ""),  # not 00:1f.0, which is the next by its number
        ("05:00.0", ""),
        ("1af4:1041", ""),
    ],
)
def test_addresses_are_near_by_their_numbers(given: str, names: str) -> None:
    there = ["0000:00:00.0", "0000:00:03.0", "0000:00:1f.0", "0000:00:1f.2"]
    assert did_you_mean(given, there) == (f"; did you mean {names}?" if names else "")


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["lst"], "No such command 'lst'; did you mean list?"),
        (["qqq"], "No such command 'qqq'; there are check, list, "),
        (["claim", "--force", "mountd", "x"], "did you mean mounted?"),
        (["list", "--bus", "pcie"], "did you mean pci?"),
        (["list", "--standing", "claimabel"], "did you mean claimable?"),
        (["guest", "--iommu", "virtoi", "--", "true"], "did you mean virtio?"),
        (["run", "--vmm", "qmu", "x", "--", "true"], "did you mean qemu?"),
        (["explain", "IOMMU_IOAS_MP", "EINVAL"], "did you mean IOMMU_IOAS_MAP"),
        (["explain", "bnd", "EINVAL"], "did you mean VFIO_DEVICE_BIND_IOMMUFD"),
        (["explain", "atach", "EINVAL"], "did you mean VFIO_DEVICE_ATTACH_IOMMUFD_PT"),
        (["explain", "map", "EINVLA"], "did you mean EINVAL"),
        (["explain", "VFIO_BIND", "EPERM"], "no request 'VFIO_BIND'; did you mean VFIO_DEVICE_BIND_IOMMUFD?"),
        (["explain", "map", "EFOO"], "'EFOO' is not an errno; give a name"),
    ],
    ids=" ".join,
)
def test_commands_name_the_nearest(arguments: list[str], near: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert near in result.stderr


def test_devices_and_drivers(fake: FakeSysfs) -> None:
    for name in ("0000:00:01.0", "0000:2b:00.0"):
        fake.pci(name, driver="nvme", group=1)
    for wrong in ("0000:2b:00.1", "2b:01.0", "2c:00.0"):
        with pytest.raises(DeviceNotFoundError, match=r"did you mean 0000:2b:00\.0"):
            find_device(wrong)
    result = CliRunner().invoke(cli, ["list", "--driver", "nvm"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "none: no device on nvm; did you mean nvme?" in result.stderr
    assert CliRunner().invoke(cli, ["list", "--driver", "nonesuch"]).stderr.endswith("none: no device on nonesuch\n")
    (fake.root / "bus/pci/drivers/vfio-pci").mkdir(parents=True)
    with pytest.raises(ClaimError, match=r"there is no driver vfio-pic here; .*: vfio-pci; did you mean vfio-pci\?"):
        plan_claim("0000:2b:00.0", driver="vfio-pic")
    with pytest.raises(ValueError, match=r"force names mountd; .*; did you mean mounted"):
        plan_claim("0000:2b:00.0", force=["mountd"])
