"""``python -m pyiommufd``: the command line."""

from pyiommufd.cli.__main__ import main

if __name__ == "__main__":
    main()
