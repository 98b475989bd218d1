"""The command as from an environment that only root can write, which a developer's checkout need not be.

python -m tests.trusted claim --persist DEVICE
"""

from __future__ import annotations

from pyiommufd.cli.__main__ import main
from pyiommufd.host.persistent import environment


def trust_environment() -> None:
    """Have nothing of this process's environment looked at; `tests/conftest.py` does so for every test."""
    environment.places = lambda: iter(())


if __name__ == "__main__":
    trust_environment()
    main()
