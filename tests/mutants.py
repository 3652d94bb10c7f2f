"""Do the tests notice a wrong algorithm? Each entry is one mistake; the tests named with it must fail on it.

    python tests/mutants.py                 # all of them, in scratch copies of the project
    python tests/mutants.py sampling loss   # those whose file or text holds one of these words

Not part of the suite. A mistake is one replacement in one file (the old text stands there exactly once). It
is `killed` if the tests fail, `ALIVE` if they pass. Each test is first run on the right code: it must pass.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2  # copies at a time


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest


# fmt: off
MUTANTS = [
]
# fmt: on


def copy_project(folder: Path) -> Path:
    """The files that git knows or would add, in a folder of their own."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: str) -> bool:
    """Whether these tests pass in that copy; the first failure ends them."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *tests.split()]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):  # 1: a test failed; anything else: there was none to run
        raise SystemExit(f"mutants: {' '.join(command)} ended with {run.returncode}:\n{run.stdout[-2000:]}")
    return run.returncode == 0


def judge(mutant: Mutant) -> tuple[Mutant, str, float]:
    """(mutant, "killed", "ALIVE" or what is wrong with it, seconds)."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_project(Path(scratch))
        text = (folder / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            return mutant, f"STALE: {text.count(mutant.old)} such lines", 0.0
        (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        verdict = "ALIVE" if passes(folder, mutant.tests) else "killed"
    return mutant, verdict, time.time() - started


def main(words: list[str]) -> None:
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.file} {m.old} {m.tests}" for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_project(Path(scratch))
        for tests in sorted({mutant.tests for mutant in chosen}):
            if not passes(folder, tests):
                raise SystemExit(f"mutants: {tests} fails on the right code")
    alive = 0
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for mutant, verdict, seconds in pool.map(judge, chosen):
            alive += verdict != "killed"
            change = f"{mutant.old!r} -> {mutant.new!r}"
            print(f"{verdict:<8} {seconds:4.0f} s  {mutant.file}: {change}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    sys.exit(alive > 0)


if __name__ == "__main__":
    main(sys.argv[1:])
