"""Save a device's state, or load it into another device of its kind, through a pipe or a file.

    python examples/migrate.py DEVICE save > state
    python examples/migrate.py DEVICE load < state
    python examples/migrate.py DEVICE save | ssh HOST python examples/migrate.py DEVICE load

DEVICE is one that knows migration, on its vfio driver: claimed before, or a mediated device. A save stops it; after a
load it runs. What it does DMA to is not saved.
"""

from __future__ import annotations

import argparse
import os
import sys

from pyiommufd import IOMMUFD, IOMMUFDError, MigrationFlag, MigrationProgress, MigrationState, find_device


def say(progress: MigrationProgress) -> None:
    print(f"{progress.state.name}: {progress.copied} bytes", file=sys.stderr)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", metavar="DEVICE")
    parser.add_argument("what", metavar="save|load", choices=["save", "load"])
    given = parser.parse_args()
    if (sys.stdout if given.what == "save" else sys.stdin) is None:
        sys.exit(f"std{'out' if given.what == 'save' else 'in'} is closed: the data go through it")
    host = find_device(given.device)
    with IOMMUFD() as iommufd:
        migration = iommufd.bind(host).migration
        if given.what == "save":
            precopy = MigrationFlag.PRE_COPY in migration.flags
            migration.save(sys.stdout.buffer, precopy=precopy, progress=say)
        else:
            migration.load(sys.stdin.buffer, progress=say)
            migration.set_state(MigrationState.RUNNING)


def main() -> int:
    try:
        run()
    except KeyboardInterrupt as error:
        print("\n".join(["interrupted", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 130
    except IOMMUFDError as error:
        print(error.for_command(), file=sys.stderr)
        return 1
    except OSError as error:  # of the other side; where the device is then stands in the notes
        print("\n".join([str(error), *getattr(error, "__notes__", ())]), file=sys.stderr)
        # What could not be written is not tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
