"""The most telling cases of experiments/crash.py: runs that are killed at the worst moments, twice over.

python -m pytest tests/test_crash.py       # 2 CPU cores, under a minute
"""

import multiprocessing
import os
import shutil

import pytest

from experiments import crash

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, tiny_folder):
    """campaign(case, what) -> its note; Violation if the run lost something. In a process of its own: it
    forks, and torch here has threads.
    """
    base = tmp_path_factory.mktemp("crash")
    shutil.copytree(tiny_folder(), base / "model")
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    cores.put(min(os.sched_getaffinity(0)))
    with context.Pool(1, crash.ready, (cores, str(base))) as pool:

        def run(case, what, folder=None):
            folder = folder or base / f"{case.__name__} {len(list(base.iterdir()))}"
            folder.mkdir(parents=True)
            return pool.apply(case, (folder, "sft", what))

        run(crash.reference, "", base / "reference" / "sft")
        run(crash.stopped, "before save 3", base / "stopped" / "before save 3")
        yield run


CHAINS = [
    # the state is there, its export is not; then the logs are being rewritten; then the last export
    [
        ("event", "mkdir run/step-000004"),
        ("event", "rename run/metrics.jsonl.tmp"),
        ("event", "rename run/step-000006"),
    ],
    # in the middle of a state's file; the state is whole, but not named; half of an old state is removed
    [
        ("cut", "mkdir run/resume/step-000004.tmp/state", 1_000_000),
        ("event", "rename run/resume/step-000004.tmp"),
        ("event", "rmdir run/resume/step-000002.old.tmp/state"),
    ],
]


@pytest.mark.parametrize("kills", CHAINS, ids=["export-logs-export", "state-state-prune"])
def test_killed_run_comes_to_the_same_end(campaign, kills):
    """Weights, states and logs to the last bit; nothing missing, nothing left over."""
    assert campaign(crash.killed, kills) == "3 kills"


def test_flipped_bit_in_the_newest_state(campaign):
    """The run says so, goes on from the state before, and comes to the same end."""
    file = "resume/step-000004/state/mp_rank_00_model_states.pt"
    assert campaign(crash.corrupt, f"{file} flipped") == "goes on, all exact"


def test_no_state_is_whole(campaign):
    assert "no state" in campaign(crash.corrupt, "resume/*/loop.json half")


def test_second_run_in_a_folder(campaign):
    assert campaign(crash.twice, "again") == "refused"
