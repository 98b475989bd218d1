"""Runs the tests: what `tests/run` and continuous integration call, in the environment that they have made.

    python -m tests.runner.suite [--all | --soak [NAME] | --conformance [NAME]] [--seed N] [PATH…] [PYTEST OPTIONS]

Without an option: what is of use while working. --all: every test function, with a sample of each sweep that --seed
chooses, or the commit. --soak: every point of every sweep, or of those runs whose name has NAME in it; what has passed
on this commit is not run again. --conformance: the kernel's own C programs, and our twins of their cases. Paths below
tests/ choose tests, each on the machine that it is for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pyiommufd.testing.provision.kernels import cache_folder
from tests import sweeps
from tests.conformance.run import run_conformance
from tests.runner import plan
from tests.runner.history import History
from tests.runner.plan import Everything, Work
from tests.runner.runs import AT_A_TIME, ROOT, Run, compile_everything
from tests.runner.soak import Soak
from tests.runner.summary import summary


def main() -> int:
    """Run what the arguments choose; 0 if all of it passed."""
    start = time.monotonic()
    raw = argparse.RawTextHelpFormatter
    # Abbreviations are pytest's, such as --co.
    parser = argparse.ArgumentParser(prog="tests/run", description=__doc__, formatter_class=raw, allow_abbrev=False)
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--all", action="store_true", dest="everything")
    tier.add_argument("--soak", nargs="?", const="", metavar="NAME")
    tier.add_argument("--conformance", action="store_true")
    parser.add_argument("--seed", help="of the sample that is taken of each sweep [the commit]")
    arguments, rest = parser.parse_known_args()
    paths = [argument for argument in rest if argument.startswith("tests/")]
    options = [argument for argument in rest if argument not in paths]
    if arguments.soak is not None and rest:
        parser.error(f"--soak runs whole files, and keeps that they have passed: it takes no {rest[0]}")
    if arguments.everything and paths:
        parser.error(f"--all runs every test there is: leave one of --all and {paths[0]} out")
    commit = _commit()
    seed = arguments.seed or commit[:12]
    os.environ.pop(sweeps.SAMPLE, None)
    if arguments.soak is None and not arguments.conformance:
        os.environ[sweeps.SAMPLE] = seed
        print(f"sample by the seed {seed}: with --seed {seed} the same is taken again", flush=True)
    compile_everything()
    if arguments.conformance:
        runs = run_conformance(rest)
    else:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            try:
                if arguments.soak is not None:
                    works = Everything(pool, whole=True).works()
                    soak = Soak(cache_folder() / "soak" / f"{commit}.json")
                    runs = soak.run(works, pool, arguments.soak)
                elif paths:
                    runs = carry_out(plan.chosen(paths, options), pool)
                elif arguments.everything:
                    runs = carry_out(Everything(pool, options).works(), pool)
                else:
                    runs = carry_out(plan.quick(options), pool)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)  # what waits for its turn is not to get it
                raise
    unsteady = [each for run in runs for each in run.unsteady]
    said = History(cache_folder() / "unsteady").add(commit, seed, unsteady) if arguments.everything or unsteady else ()
    return summary(runs, start, said)


def carry_out(works: Iterable[Work], pool: ThreadPoolExecutor) -> list[Run]:
    """Do all of it, as many at a time as the pool takes; in the order given."""
    futures = [pool.submit(work.run) for work in works]
    return [run for future in futures for run in future.result()]


def _commit() -> str:
    """The commit that is tested."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


if __name__ == "__main__":
    sys.exit(main())
