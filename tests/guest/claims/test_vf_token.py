"""Virtual functions of a physical function that a vfio user has: the kernel wants the token that they share."""

from __future__ import annotations

import errno
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import (
    IOMMUFD,
    AccessDeniedError,
    Cause,
    Device,
    HandoverError,
    HostDevice,
    IoctlError,
    UnsupportedError,
    plan_claim,
)
from pyiommufd.host.claims.record import DeviceState
from pyiommufd.host.claims.vfs import set_vfs
from pyiommufd.vmm.vf_token import check_token
from tests.guest.forked import run_cli

State = dict[str, DeviceState]

BINDS = """
import os, sys
from pyiommufd.vmm import Handover

with Handover.inherited() as handover:
    assert "PYIOMMUFD_VF_TOKEN" not in os.environ
    for file in handover.devices:
        token = handover.token_of(file)
        print(handover.iommufd.bind(file, token=token).name, token, *sys.argv[1:])
"""
"""Any program that drives its devices: what it has bound, and with which token."""


@pytest.fixture
def made(pf: HostDevice, sriov_by_vfio: None) -> Iterator[tuple[HostDevice, ...]]:
    """Two virtual functions that vfio-pci has made, and so has itself."""
    with plan_claim(pf).apply():
        functions = set_vfs(pf, 2).devices
        assert [function.driver for function in functions] == ["vfio-pci"] * 2
        yield functions


@pytest.fixture
def token() -> uuid.UUID:
    return uuid.uuid4()


@pytest.fixture
def physical(made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID) -> Iterator[Device]:
    """The physical function, bound by a user who has set the token."""
    with IOMMUFD() as iommufd, iommufd.bind(pf, token=token) as device:
        yield device


def refused(iommufd: IOMMUFD, device: HostDevice, token: uuid.UUID | None) -> Cause:
    """The cause of a bind that is refused for its token."""
    with pytest.raises(AccessDeniedError) as caught:
        iommufd.bind(device, token=token)
    (cause,) = caught.value.causes
    return cause


def test_refusal_names_the_physical_function_and_who_has_it(
    physical: Device, made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    function, other = made[0], uuid.uuid4()
    with IOMMUFD() as iommufd:
        for given, word in ((None, "missing"), (other, "wrong")):
            cause = refused(iommufd, function, given)
            assert cause.summary == f"the VF token is {word}: its physical function {pf} is on vfio-pci"
            assert f"holds {physical.host.vfio_cdev} by fd" in cause.evidence
            assert "the one that the user of the physical function has set" in cause.fix
        physical.close()  # its token stays
        for given in (None, other):
            cause = refused(iommufd, function, given)
            assert cause.evidence == f"nobody is seen to hold {pf}"
        iommufd.bind(function, token=token).close()
        assert cause.fix.startswith(f"bind {pf} first with a token")
        with iommufd.bind(pf, token=other), iommufd.bind(function, token=other):
            pass


def test_physical_function_is_refused_for_the_users_of_virtual_ones(
    physical: Device, made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    with IOMMUFD() as iommufd:
        used = iommufd.bind(made[1], token=token)
        physical.close()
        for given, word in ((None, "missing"), (uuid.uuid4(), "wrong")):
            cause = refused(iommufd, pf, given)
            assert cause.summary == f"the VF token is {word}: virtual functions of the device are in use"
            assert f"holds {used.host.vfio_cdev} by fd" in cause.evidence
        iommufd.bind(pf, token=token).close()
        used.close()
        iommufd.bind(pf).close()


def test_token_set_after_the_bind(
    physical: Device, made: tuple[HostDevice, ...], alone: HostDevice, token: uuid.UUID
) -> None:
    later = uuid.uuid4()
    with IOMMUFD() as iommufd, iommufd.bind(made[0], token=token) as function:
        physical.set_vf_token(str(later))
        refused(iommufd, made[1], token)
        iommufd.bind(made[1], token=later).close()
        with pytest.raises(UnsupportedError, match=f"{made[0]} is no physical function.* of {physical.name}"):
            function.set_vf_token(later)
        none = pytest.raises(UnsupportedError, match=rf"{alone} is no physical function \(it has no SR-IOV\)")
        with plan_claim(alone).apply(), iommufd.bind(alone) as other, none:
            other.set_vf_token(later)
    with pytest.raises(TypeError, match="not NoneType"):
        physical.set_vf_token(None)  # type: ignore[arg-type]


def test_run_wants_the_token_before_anything_is_claimed(
    physical: Device, made: tuple[HostDevice, ...], alone: HostDevice, state: Callable[[], State]
) -> None:
    before = state()
    function = made[0]
    missing = f"pyiommufd run: {function}: its physical function {physical.name} is on vfio-pci: its user has set a VF"
    for way in ([], ["--dry-run"], ["--print"]):
        done = run_cli("run", *way, alone.name, function.name, "--", "true")
        assert done.returncode == 125
        assert done.stderr == f"{missing} token; name it by --vf-token\n"
    done = run_cli("run", alone.name, function.name, "--vf-token", str(uuid.uuid4()), "--", "true")
    assert done.returncode == 125
    assert done.stderr == f"pyiommufd run: {function}: the VF token is not the one that {physical.name}'s user set\n"
    assert state() == before


def test_physical_function_and_its_own_virtual_one_are_handed_over_together(
    made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    """The bind of the first sets the token for the second; nobody had set one."""
    check_token([pf, made[0]], token)
    with IOMMUFD() as iommufd:
        refused(iommufd, made[0], token)  # the check has set none
        with iommufd.bind(pf, token=token), iommufd.bind(made[0], token=token):
            check_token([made[1]], token)
        with pytest.raises(HandoverError, match=f"sets? it too late: name {pf} before it"):
            check_token([made[0], pf], uuid.uuid4())


def test_token_that_nobody_knows_is_set_by_a_command(
    made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    function = made[0]
    for way in (["run", "--print", function.name], ["caps", function.name]):
        done = run_cli(*way)
        assert f"nobody is seen to hold {pf if way[0] == 'caps' else 'that'}" in done.stderr
        assert f"pyiommufd caps --vf-token UUID {pf}" in done.stderr
    for device in (pf, function):
        done = run_cli("caps", "--vf-token", str(token), device.name)
        assert done.returncode == 0, done.stderr
        assert "PCI_VF_TOKEN (set)" in done.stdout or device == function
    assert "name it by --vf-token" not in run_cli("run", "--print", "--vf-token", str(token), function.name).stderr
    check_token([function], token)


def test_program_binds_with_the_token(
    physical: Device, made: tuple[HostDevice, ...], alone: HostDevice, token: uuid.UUID, tmp_path: Path
) -> None:
    """One that takes none beside it gets none."""
    program = tmp_path / "program"
    program.write_text(BINDS)
    given = ["--vf-token", str(token), made[0].name, alone.name, "--", sys.executable, str(program), "{vf-token}"]
    shown = run_cli("run", "--dry-run", *given)
    assert f"PYIOMMUFD_VF_TOKEN={token} {sys.executable} {program} {token}\n" in shown.stdout, shown.stderr
    done = run_cli("run", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{made[0].name} {token} {token}", f"{alone.name} None {token}"]


@pytest.mark.long
def test_physical_function_wants_it_too_while_others_are_in_use(
    made: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    with IOMMUFD() as theirs:
        with IOMMUFD() as iommufd:
            iommufd.bind(pf, token=token)
            theirs.bind(made[0], token=token)
        done = run_cli("run", pf.name, "--", "true")
        assert done.returncode == 125
        assert f"{pf}: it has virtual functions in use, and they share a VF token" in done.stderr
        done = run_cli("run", pf.name, "--vf-token", str(uuid.uuid4()), "--", "true")
        assert f"{pf}: the VF token is not the one that users of its virtual functions gave" in done.stderr
        done = run_cli("run", pf.name, "--vf-token", str(token), "--", "true")
        assert "claimed already" in done.stderr  # by this process, and the token is right
        assert "token" not in done.stderr


def test_virtual_function_of_a_host_driver_takes_none(
    functions: tuple[HostDevice, ...], pf: HostDevice, token: uuid.UUID
) -> None:
    function = functions[1]
    with plan_claim(function).apply(), IOMMUFD() as iommufd:
        with pytest.raises(IoctlError) as caught:
            iommufd.bind(function, token=token)
        assert caught.value.errno == errno.EINVAL
        (cause,) = caught.value.causes
        assert cause.summary == "the device takes no VF token"
        assert cause.evidence == f"{function} is a virtual function of {pf}, which is on {pf.driver}"
        assert cause.fix == "bind without token="
        iommufd.bind(function).close()


def test_device_that_takes_none(alone: HostDevice, token: uuid.UUID) -> None:
    done = run_cli("run", alone.name, "--vf-token", str(token), "--", "true")
    assert done.returncode == 125
    assert f"of {alone} the kernel would refuse it; leave --vf-token out" in done.stderr
