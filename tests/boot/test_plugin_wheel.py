"""A project elsewhere, which has this package from its wheel: a DMA test by `pytest --guest`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.packages import build_wheel, make_environment
from tests.boot.plugin_project import Project

pytestmark = pytest.mark.boots


def test_dma_test_of_a_project_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    python = make_environment(tmp_path / "venv", f"{build_wheel(tmp_path)}[testing]")
    folder.mkdir()
    project = Project(folder, python=python)
    project.write(
        test_dma__py="""\
        import pyiommufd
        from pyiommufd import DMABuffer, IOMMUFD, list_groups, plan_claim
        from pyiommufd.testing.drivers.edu import DEVICE_ID, EduDriver

        def test_dma():
            assert "site-packages" in pyiommufd.__file__
            groups = [group.devices for group in list_groups()]
            host = next(devices[0] for devices in groups if [d.device_id for d in devices] == [DEVICE_ID])
            with plan_claim(host).apply(), IOMMUFD() as iommufd:
                device, ioas = iommufd.bind(host), iommufd.alloc_ioas()
                device.attach(ioas)
                device.bus_master = True
                buffer = DMABuffer(8192)
                buffer[:5] = b"hello"
                with ioas.map(buffer, iova=0x100000), EduDriver(device) as edu:
                    edu.copy_in(0x100000, 5)
                    edu.copy_out(0x101000, 5)
                    assert buffer[4096:4101] == b"hello"
        """
    )
    result = project.pytest("--guest", "-v", "-W", "error")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
