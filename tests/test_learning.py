"""A policy learns: in 25 steps an untrained tiny model raises a reward, keeps near its start, or imitates.

The reward, the share of one letter, is one that any policy can raise at once. With the sign of the loss
turned it falls to almost nothing; with the sign of the KL term turned the policy flees from its start.

    python -m pytest tests/test_learning.py        # 2 CPU cores, about half a minute
"""

import json
import statistics
from pathlib import Path

import pytest
from helpers import SCENES, TINY, records, run

import data
import qwen

pytestmark = pytest.mark.slow
STEPS = 25
FIRST, LAST = slice(0, 3), slice(-3, None)
COMMON = [*TINY, f"--data_source={SCENES}", f"--steps={STEPS}", "--warmup_steps=0"]
GRPO = [
    "train_grpo.py",
    *COMMON,
    "--rollout=hf",
    "--prompts_per_step=8",
    "--group_size=8",
    "--max_completion_length=8",
    "--temperature=1.0",
    "--reward_weights={'letters:share': 1.0}",
    "--reward_workers=0",
    "--thumbnails=0",
    "--template=direct",
]
SFT = ["train_sft.py", *COMMON, "--batch_size=8", "--max_completion_length=64"]
RUNS = {
    "free": [*GRPO, "--beta=1e-6"],  # so small that it only measures
    "held": [*GRPO, "--beta=1.0"],
    "twice": [*GRPO, "--beta=0.0", "--updates_per_rollout=2", "--ratio_level=sequence"],
    "sft": SFT,
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """metrics.jsonl of every run; one process does them all."""
    folder = tmp_path_factory.mktemp("learning")
    qwen.build_tiny(str(folder / "tiny"), data.tiny_corpus(), hidden=64, layers=2)
    jobs = []
    for name, command in RUNS.items():
        jobs.append({"command": [*command, f"--model={folder}/tiny", f"--out_dir={folder}/{name}"]})
    (folder / "runs.json").write_text(json.dumps(jobs))
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    run(["tests/recorder.py", f"{folder}/runs.json"], folder / "log", env=environment)
    return {name: records(folder / name) for name in RUNS}


def mean(log: list[dict], key: str, steps: slice) -> float:
    return statistics.mean(line[key] for line in log[steps])


@pytest.mark.parametrize("name", ["free", "twice"])
def test_reward_rises(logs, name):
    before, after = mean(logs[name], "reward", FIRST), mean(logs[name], "reward", LAST)
    print(f"{name}: {before:.3f} -> {after:.3f}")
    assert after > 2 * before


def test_a_large_beta_keeps_the_policy_near_its_start(logs):
    free, held = (mean(logs[name], "kl", LAST) for name in ("free", "held"))
    print(f"kl {free:.3f} free, {held:.3f} held")
    assert free > 0.5
    assert 0 < held < 0.2 * free
    assert mean(logs["held"], "reward", LAST) < mean(logs["free"], "reward", LAST)


def test_sft_loss_falls(logs):
    before, after = mean(logs["sft"], "loss", FIRST), mean(logs["sft"], "loss", LAST)
    print(f"loss {before:.2f} -> {after:.2f}")
    assert 0 < after < 0.6 * before  # a mean of -log p is never below 0
