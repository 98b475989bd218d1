"""Hooks the cffi builder in and tags the wheel abi3; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# A free-threaded CPython before 3.15 has no limited API: its wheel serves that version alone.
ABI3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(cffi_modules=["build_cffi.py:builder"], options=ABI3)
