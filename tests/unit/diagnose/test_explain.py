"""The table of refusals: whole, and found by what people type."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from pyiommufd import HostDevice, find_device
from pyiommufd.diagnose import explain as module
from pyiommufd.diagnose.explain import explain, find_errno, find_request, general_causes, look, requests, table
from pyiommufd.diagnose.objects import destroy_error
from pyiommufd.errors import ioctl_error
from pyiommufd.host import rows
from pyiommufd.host.holders import Holder
from tests.fake_sysfs import FakeSysfs

# Every row of what is known of the kernel's answers: the request, and its errnos.
KNOWN = """
VFIO_DEVICE_BIND_IOMMUFD EPERM EINVAL EBUSY EACCES ENODEV EAGAIN EBADF EBADFD
VFIO_DEVICE_ATTACH_IOMMUFD_PT ENOENT EINVAL EADDRINUSE ENOMEM EFAULT EOPNOTSUPP EBUSY
IOMMU_IOAS_MAP EEXIST EINVAL ENOSPC EOVERFLOW EFAULT ENOMEM
IOMMU_IOAS_MAP_FILE EBADF EINVAL EOPNOTSUPP ENODEV
IOMMU_IOAS_UNMAP ENOENT EOVERFLOW EBUSY EDEADLK
IOMMU_DESTROY EBUSY
IOMMU_IOAS_COPY ENOENT EPERM EEXIST ENOSPC
IOMMU_IOAS_IOVA_RANGES EMSGSIZE
IOMMU_IOAS_ALLOW_IOVAS EADDRINUSE EINVAL
IOMMU_OPTION EPERM EBUSY EINVAL
IOMMU_IOAS_CHANGE_PROCESS EINVAL ENOMEM
IOMMU_VFIO_IOAS ENODEV
IOMMU_HWPT_ALLOC EINVAL EOPNOTSUPP EADDRINUSE ENOMEM EFAULT
IOMMU_HWPT_SET_DIRTY_TRACKING EOPNOTSUPP
IOMMU_HWPT_GET_DIRTY_BITMAP EINVAL
IOMMU_HWPT_INVALIDATE EINVAL
IOMMU_VDEVICE_ALLOC EEXIST
IOMMU_VEVENTQ_ALLOC EEXIST
IOMMU_HW_QUEUE_ALLOC EFAULT
IOMMU_GET_HW_INFO EOPNOTSUPP
IOMMU_IOAS_NOIOMMU_GET_PA EPERM EOPNOTSUPP ENOENT
VFIO_DEVICE_RESET EINVAL
VFIO_DEVICE_PCI_HOT_RESET EINVAL ENODEV EBUSY
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO ENOSPC EAGAIN
VFIO_DEVICE_SET_IRQS EINVAL
VFIO_DEVICE_FEATURE ENOTTY EINVAL
sysfs|bind ENODEV EINVAL EBUSY
open ENODEV EPERM
"""
ROWS = [(line.split()[0].replace("|", " "), name) for line in KNOWN.strip().splitlines() for name in line.split()[1:]]


@pytest.mark.parametrize(("request_name", "name"), ROWS)
def test_every_known_answer_has_a_cause(request_name: str, name: str) -> None:
    code = getattr(errno, name)
    assert (request_name, code) in table()
    causes = explain(request_name, code)
    assert causes
    for cause in causes:
        assert cause.summary
        assert cause.fix
    # And exceptions carry them, where whoever raises knows no better.
    assert ioctl_error(request_name, code).causes == causes == general_causes(request_name, code)


def test_a_mapping_may_lie_outside_what_is_allowed() -> None:
    (cause,) = explain("allow_iovas", errno.EADDRINUSE)
    assert "reserved" in cause.summary


_OF_FILES = {"open", "sysfs bind", "sysfs unbind", "mdev create", "mdev remove"}


def test_no_row_names_a_request_that_the_kernel_does_not_have() -> None:
    header = Path(module.__file__).parent.parent / "uapi"
    text = (header / "iommufd.h").read_text() + (header / "vfio.h").read_text()
    for request in requests():
        assert request in _OF_FILES or request in text, request
    assert len(requests()) == len(set(requests()))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_BIND_IOMMUFD"),
        ("bind", "VFIO_DEVICE_BIND_IOMMUFD"),
        ("Bind_IOMMUFD", "VFIO_DEVICE_BIND_IOMMUFD"),
        ("attach", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"),
        ("map", "IOMMU_IOAS_MAP"),
        ("ioas_map", "IOMMU_IOAS_MAP"),
        ("map-file", "IOMMU_IOAS_MAP_FILE"),
        ("unmap", "IOMMU_IOAS_UNMAP"),
        ("hwpt_alloc", "IOMMU_HWPT_ALLOC"),
        ("hot_reset", "VFIO_DEVICE_PCI_HOT_RESET"),
        ("reset", "VFIO_DEVICE_RESET"),
        ("sysfs bind", "sysfs bind"),
        ("sysfs-bind", "sysfs bind"),
        ("open", "open"),
    ],
)
def test_requests_by_what_people_type(text: str, name: str) -> None:
    assert find_request(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dirty", "IOMMU_HWPT_GET_DIRTY_BITMAP"),
        ("hwpt", "IOMMU_HWPT_ALLOC"),
        ("alloc", "IOMMU_HWPT_ALLOC"),
        ("ioas", "IOMMU_VFIO_IOAS"),
        ("info", "VFIO_DEVICE_GET_INFO"),
        ("vfio", "VFIO_DEVICE_RESET"),
    ],
)
def test_ambiguous_requests_are_listed(text: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"ambiguous.*{name}"):
        find_request(text)


@pytest.mark.parametrize("text", ["", "no_such", "O"])
def test_unknown_requests_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is no request"):
        find_request(text)


@pytest.mark.parametrize(("text", "code"), [("EINVAL", 22), ("einval", 22), ("22", 22), ("-22", 22), ("EBADFD", 77)])
def test_errnos(text: str, code: int) -> None:
    assert find_errno(text) == code


@pytest.mark.parametrize("text", ["", "EWHAT", "0", "errorcode", "x"])
def test_no_errno(text: str) -> None:
    with pytest.raises(ValueError, match="not an errno"):
        find_errno(text)


def test_answers_that_any_request_can_get() -> None:
    assert "newer kernel" in explain("IOMMU_VIOMMU_ALLOC", errno.ENOTTY)[0].fix
    assert general_causes("IOMMU_VIOMMU_ALLOC", errno.ENOTTY)
    assert general_causes("mmap", errno.ENOTTY) == ()
    assert explain("bind", errno.EXDEV) == ()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Holder]:
    """Who holds what, for the test to say."""
    found: list[Holder] = []
    monkeypatch.setattr(rows, "holders", lambda *devices: tuple(found))
    return found


def test_what_shows_comes_first_and_what_is_not_so_is_left_out(fake: FakeSysfs, held: list[Holder]) -> None:
    fake.file("class/misc/iommu/dev", "10:127")
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0)
    device = find_device("00:01.0")
    causes = explain("bind", errno.EINVAL, device)
    # Nobody has it open, and firmware wants nothing; what cannot be seen from outside stays.
    assert [cause.evidence for cause in causes] == [""] * len(causes)
    assert not any("another fd" in cause.summary or "firmware" in cause.summary for cause in causes)
    ruled_out = [cause.summary for cause in look("bind", errno.EINVAL, device).ruled_out]
    assert [word in text for text, word in zip(ruled_out, ("another fd", "firmware"), strict=True)] == [True, True]
    held.append(Holder(7, "qemu", "/dev/vfio/devices/vfio0", "fd 3"))
    first, *others = explain("bind", errno.EINVAL, device)
    assert "another process" in first.summary
    assert "pid 7" in first.evidence
    assert causes == tuple(others)


def test_evidence_of_each_kind(fake: FakeSysfs, held: list[Holder]) -> None:
    fake.file("class/misc/iommu/dev", "10:127")
    folder = fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0, sriov_numvfs="2", driver_override="x")
    fake.pci("0000:00:02.0", group=1, driver="vfio-pci", cdev=1, reset_method="flr")
    fake.pci("0000:00:03.0", class_code=0x060400)
    first, second, bridge = map(find_device, ("00:01.0", "00:02.0", "00:03.0"))

    def seen(request: str, code: int, device: HostDevice) -> list[str]:
        return [cause.evidence for cause in explain(request, code, device) if cause.evidence]

    assert "reset_method" in seen("reset", errno.EINVAL, first)[0]
    assert seen("reset", errno.EINVAL, second) == []
    assert seen("sysfs bind", errno.EBUSY, first) == ["sriov_numvfs is 2"]
    assert seen("sysfs bind", errno.EBUSY, second) == []
    assert seen("sysfs bind", errno.ENODEV, first) == ["driver_override is x"]
    assert "secondary_bus_number" in seen("sysfs bind", errno.EINVAL, bridge)[0]
    assert "it has no iommu_group" in seen("sysfs bind", errno.EINVAL, bridge)
    assert "0xfee00000..0xfeefffff (msi)" in seen("attach", errno.EADDRINUSE, first)[0]
    assert seen("attach", errno.EINVAL, first) == []
    held.append(Holder(7, "qemu", "/dev/vfio/devices/vfio1", "fd 3"))
    assert "pid 7" in seen("attach", errno.EINVAL, first)[0]
    assert "pid 7" in seen("sysfs bind", errno.EBUSY, second)[0]
    assert "pid 7" in seen("bind", errno.EPERM, first)[0]
    assert folder.name == "0000:00:01.0"
    assert explain("open", errno.ENOENT, bridge)[1].evidence == "it is on no driver"


@pytest.mark.parametrize(("request_name", "name"), ROWS)
def test_no_answer_is_lost_by_naming_a_device(fake: FakeSysfs, request_name: str, name: str) -> None:
    """Each stands among what shows, what may be and what is ruled out; a machine without an IOMMU says that first."""
    code = getattr(errno, name)
    fake.pci("0000:00:03.0", driver="e1000e")
    seen = look(request_name, code, find_device("00:03.0"))
    lacks = 0 if request_name.startswith("sysfs") else 2
    summaries = [cause.summary for cause in seen.found]
    assert [text[:8] for text in summaries[:lacks]] == ["no IOMMU", "this ker"][:lacks]
    assert len(seen.found[lacks:]) + len(seen.possible) + len(seen.ruled_out) >= len(table()[request_name, code])
    # Interrupts are not isolated here, which is no reason: there is nothing that could isolate them.
    assert "interrupts" not in "".join(summaries)


@pytest.mark.parametrize(
    ("iommu", "controller", "said"),
    [("dmar0", "IR-PCI-MSIX", "ruled out"), ("ivhd0", "IR-PCI-MSIX", "possible"), ("dmar0", "PCI-MSIX", "found")],
)
def test_interrupts_that_are_isolated(
    fake: FakeSysfs, held: list[Holder], iommu: str, controller: str, said: str
) -> None:
    fake.file("class/misc/iommu/dev", "10:127")
    fake.file("module/iommufd/parameters/allow_unsafe_interrupts", "N")
    (fake.proc / "interrupts").write_text(f" 24:  0  {controller}-0000:00:01.0  0-edge  x\n")
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0, iommu=iommu)
    seen = look("bind", errno.EPERM, find_device("00:01.0"))
    where = {"found": seen.found, "possible": seen.possible, "ruled out": seen.ruled_out}
    assert [name for name, causes in where.items() if any("interrupts" in one.summary for one in causes)] == [said]


def test_what_this_user_does_not_see_is_not_ruled_out(fake: FakeSysfs, held: list[Holder]) -> None:
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0)
    (fake.proc / "self/status").write_text("CapEff:\t0000000000000000\n")
    seen = look("bind", errno.EPERM, find_device("00:01.0"))
    assert "the group is owned by another iommufd" in [cause.summary for cause in seen.possible]


def test_node_that_is_there(fake: FakeSysfs, held: list[Holder]) -> None:
    fake.file("class/misc/iommu/dev", "10:127")
    fake.pci("0000:00:01.0", group=1, driver="vfio-pci", cdev=0)
    device = dataclasses.replace(find_device("00:01.0"), vfio_cdev="/dev/null")
    assert look("open", errno.ENOENT, device).found == ()
    assert len(look("open", errno.ENOENT, device).ruled_out) == 2
    assert look("open", errno.EACCES, device).possible == explain("open", errno.EACCES)
    missing = dataclasses.replace(device, vfio_cdev="/dev/vfio/devices/no-such")
    assert "is missing" in look("open", errno.ENOENT, missing).found[0].summary


def test_only_a_queue_is_said_to_have_an_fd() -> None:
    (used,) = destroy_error(errno.EBUSY, "<IOAS 3>", queue=False).causes
    assert "other objects use it" in used.summary
    assert len(destroy_error(errno.EBUSY, "<FaultQueue 4>", queue=True).causes) == 2
    assert "fd" in destroy_error(errno.EBUSY, "<FaultQueue 4>", queue=True).causes[1].summary
    assert explain("IOMMU_DESTROY", errno.ENOENT) == destroy_error(errno.ENOENT, "<IOAS 3>", queue=False).causes
