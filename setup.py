"""Hooks the cffi builder in, tags the wheel abi3, has the README link to the source; else there is pyproject.toml."""

import re
import sysconfig
from pathlib import Path

from setuptools import setup

# A free-threaded CPython before 3.15 has no limited API: its wheel serves that version alone.
ABI3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

# An index of packages shows the README, and has no files beside it.
SOURCE = "https://github.com/pyiommufd/pyiommufd/blob/main"
README = re.sub(r"\]\((?!https?:|#)", f"]({SOURCE}/", Path(__file__).with_name("README.md").read_text(encoding="utf-8"))

setup(
    cffi_modules=["build_cffi.py:builder"],
    options=ABI3,
    long_description=README,
    long_description_content_type="text/markdown",
)
