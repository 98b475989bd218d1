"""``mdev``: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pyiommufd.cli.group import cli
from pyiommufd.cli.man import page
from pyiommufd.cli.mdev import mdev
from tests.fake_sysfs import FakeSysfs

GPU, TYPE = "0000:00:02.0", "i915-GVTg_V5_4"
ONE, OTHER = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"


@pytest.fixture
def gpu(fake: FakeSysfs) -> Path:
    folder = fake.pci(GPU, driver="i915", group=1)
    fake.mdev(fake.mdev_type(folder, TYPE, 3, description="weight: 4\nfence: 4"), ONE, group=7)
    fake.mdev_type(folder, "i915-GVTg_V5_8", 0)
    return folder


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["mdev", *words])
    assert result.exit_code == status, result.output
    return result


def completed(*words: str) -> list[str]:
    """What the shell completes the last of these words with."""
    command = mdev.commands[words[0]]
    with click.Context(command) as context:
        for param, word in zip(command.params, words[1:-1], strict=False):
            context.params[param.name or ""] = word
        argument = [param for param in command.params if isinstance(param, click.Argument)][len(words) - 2]
        return [item.value for item in argument.shell_complete(context, words[-1])]


def test_list(gpu: Path) -> None:
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["PARENT", "TYPE", "AVAILABLE", "API", "NAME"]
    assert lines[1].split() == [GPU, TYPE, "3", "vfio-pci", *f"{TYPE}: weight: 4 fence: 4".split()]
    assert lines[-1].split() == [ONE, GPU, TYPE, "/dev/vfio/devices/vfio0", "7"]
    assert run("list", "00:02.0").stdout.splitlines() == lines
    assert "no device '0000:09:00.0'" not in run("list", "0000:09:00.0", status=1).stdout


def test_json_has_the_keys_that_are_documented(gpu: Path) -> None:
    first, second = json.loads(run("list", "--json").stdout)
    assert second["devices"] == []
    assert first["devices"] == [{"uuid": ONE, "vfio_cdev": "/dev/vfio/devices/vfio0", "group": 7}]
    documented = mdev.commands["list"].callback.__json_keys__  # type: ignore[union-attr]
    assert {*first, *(f"devices.{key}" for key in first["devices"][0])} == set(documented)
    assert all(key in run("list", "--help").stdout for key in documented)


def test_none(fake: FakeSysfs) -> None:
    result = run("list")
    assert (result.stdout, result.stderr) == ("", "none: no driver here makes mediated devices\n")
    assert json.loads(run("list", "--json").stdout) == []
    # This machine lacks something.
    assert "no driver here makes mediated devices" in run("create", GPU, TYPE, status=3).stderr


def test_dry_runs(gpu: Path) -> None:
    assert run("create", GPU, TYPE, "--uuid", OTHER, "--dry-run").stdout == f"{GPU}: make {OTHER} of type {TYPE}\n"
    assert run("create", GPU, TYPE, "--dry-run").stdout == f"{GPU}: make a device with a new UUID of type {TYPE}\n"
    assert run("remove", ONE, "--dry-run").stdout == f"{ONE}: remove\n"
    assert (gpu / ONE / "remove").read_text() == "\n"


def test_refusals(gpu: Path) -> None:
    for dry in ([], ["--dry-run"]):
        result = run("create", GPU, TYPE, "--uuid", ONE, *dry, status=1)
        assert result.stdout == ""
        assert "leave --uuid out" in result.stderr
        assert "no room" in run("create", GPU, "i915-GVTg_V5_8", *dry, status=1).stderr
        assert "no type" in run("create", GPU, "nothing", *dry, status=1).stderr
        assert "no mediated one" in run("remove", GPU, *dry, status=1).stderr


def test_root_is_asked_for_before_a_step_is_printed(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu / "mdev_supported_types" / TYPE / "create").touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for what, command in (("making", ("create", GPU, TYPE)), ("removing", ("remove", ONE))):
        refused = run(*command, status=1)
        assert refused.stdout == ""
        assert f"{what} mediated devices takes root" in refused.stderr
        assert "record" not in refused.stderr
        assert run(*command, "--dry-run").stdout


def test_only_what_can_be_refused_can_be_forced(gpu: Path) -> None:
    assert "Kinds: held, unseen." in " ".join(run("remove", "--help").stdout.split())
    run("remove", ONE, "--force", "noiommu", status=2)


def test_usage(gpu: Path) -> None:
    assert "not a valid UUID" in run("create", GPU, TYPE, "--uuid", "x", status=2).stderr
    run("create", GPU, status=2)
    run("remove", ONE, "--force", "nothing", status=2)
    assert "No such command 'lsit'" in run("lsit", status=2).stderr


def test_given_to_a_vmm(gpu: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "--print", ONE, "--", "qemu-system-x86_64"])
    assert result.exit_code == 0, result.output
    assert f"/sys/bus/mdev/devices/{ONE}/vfio-dev" in result.stdout
    assert "libvirt" not in result.stdout
    assert result.stdout.startswith("# for a shell:\n")  # it is bound without a claim


def test_every_command_says_whose_dma_it_is(gpu: Path) -> None:
    for command in (["show", ONE], ["groups", "7"], ["topology"]):
        result = CliRunner().invoke(cli, command)
        assert "its parent's driver does its DMA" in result.stdout, result.output


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_fit_a_terminal(
    gpu: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a UUID would make the columns too wide, it has its own line."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (["list"], ["mdev", "list"]):
        cli.main(command, standalone_mode=False)
        lines = click.unstyle(capsys.readouterr().out).splitlines()
        assert max(map(len, lines)) <= columns
        assert (ONE in lines) is (columns == 80)
        # The columns are where the head says.
        head, row = (
            line for line in lines if line.startswith("DEVICE") or line.rstrip().endswith(" 7") or " 7  " in line
        )
        assert row[head.index("GROUP")] == "7"


def test_completion(gpu: Path, fake: FakeSysfs) -> None:
    assert completed("create", "") == completed("list", "") == [GPU]
    assert completed("create", GPU, "") == [TYPE, "i915-GVTg_V5_8"]
    assert completed("create", GPU, "i915-GVTg_V5_8") == ["i915-GVTg_V5_8"]
    assert completed("remove", "") == [ONE]


def test_manual_page() -> None:
    text = page().replace("\\-", "-")
    for name, command in mdev.commands.items():
        assert f".SS mdev {name}" in text
        assert all(option in text for param in command.params for option in param.opts if option.startswith("-"))
