"""Save a device's state, or load it into another device of its kind, through a pipe or a file.

    python examples/migrate.py DEVICE save > state
    python examples/migrate.py DEVICE load < state
    python examples/migrate.py DEVICE save | ssh HOST python examples/migrate.py DEVICE load

DEVICE is one that knows migration, on its vfio driver: claimed before, or a mediated device. A save stops it; after a
load it runs. What it does DMA to is not saved.
"""

from __future__ import annotations

import argparse
import sys

from pyiommufd import IOMMUFD, IOMMUFDError, MigrationFlag, MigrationProgress, MigrationState, find_device


def say(progress: MigrationProgress) -> None:
    print(f"{progress.state.name}: {progress.copied} bytes", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE")
    parser.add_argument("what", metavar="save|load", choices=["save", "load"])
    given = parser.parse_args()
    host = find_device(given.device)
    with IOMMUFD() as iommufd:
        migration = iommufd.bind(host).migration
        if given.what == "save":
            precopy = MigrationFlag.PRE_COPY in migration.flags
            migration.save(sys.stdout.buffer, precopy=precopy, progress=say)
            sys.stdout.buffer.flush()
        else:
            migration.load(sys.stdin.buffer, progress=say)
            migration.set_state(MigrationState.RUNNING)


if __name__ == "__main__":
    try:
        main()
    except (IOMMUFDError, OSError) as error:
        sys.exit(str(error))
