"""A project elsewhere, which has this package from its wheel: a DMA test by `pytest --guest`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.plugin_project import Project

pytestmark = pytest.mark.boots

ROOT = Path(__file__).resolve().parents[2]


def test_dma_test_of_a_project_elsewhere(tmp_path: Path) -> None:
    source, folder, venv = tmp_path / "source", tmp_path / "project", tmp_path / "venv"
    parts = ["pyiommufd", "build_cffi.py", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"]
    for part in parts:
        path = ROOT / part
        target = source / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(path, target)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(venv / "bin/python"), "-m", "pip", "install", "-q", f"{wheel}[testing]"]
    subprocess.run(install, check=True, capture_output=True)

    folder.mkdir()
    project = Project(folder, python=str(venv / "bin/python"))
    project.write(
        test_dma__py="""\
        import pyiommufd
        from pyiommufd import DMABuffer, IOMMUFD, list_groups, plan_claim
        from pyiommufd.testing.edu import DEVICE_ID, EduDriver

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
