"""How pytest is started in a guest: with the plugins alone that the tests there use.

Finding what others there are, and importing them, takes an emulated machine seconds.
"""

from __future__ import annotations

ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
OPTIONS = ("-p", "pyiommufd.testing.plugin", "-p", "no:cacheprovider")
PYTEST = ("python", "-m", "pytest", *OPTIONS)
"""The command, to be run with `ENVIRONMENT`."""
