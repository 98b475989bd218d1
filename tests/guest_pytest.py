"""How pytest is started in a guest: with our plugin and those that a caller adds, and without a look for others.

To find what others there are, and to import them, takes an emulated machine seconds.
"""

from __future__ import annotations

ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
OPTIONS = ("-p", "pyiommufd.testing.plugin", "-p", "no:cacheprovider")
PYTEST = ("python", "-m", "pytest", *OPTIONS)
"""The command, to be run with `ENVIRONMENT`."""
