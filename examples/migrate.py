"""Save a device's state, or load it into another device of its kind, through a pipe or a file.

    python examples/migrate.py save DEVICE > state
    python examples/migrate.py load DEVICE < state
    python examples/migrate.py save DEVICE | ssh HOST python examples/migrate.py load DEVICE

DEVICE is one that knows migration, on its vfio driver: claimed before, or a mediated device. A save stops it; after a
load it runs. What it does DMA to is not saved.
"""

from __future__ import annotations

import argparse
import sys

from pyiommufd import IOMMUFD, IOMMUFDError, MigrationFlag, MigrationProgress, MigrationState


def say(progress: MigrationProgress) -> None:
    print(f"{progress.state.name}: {progress.copied} bytes", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["save", "load"])
    parser.add_argument("device", metavar="DEVICE")
    given = parser.parse_args()
    with IOMMUFD() as iommufd:
        migration = iommufd.bind(given.device).migration
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
