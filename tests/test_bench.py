"""bench.py: its shapes are Qwen's, a short run of our side ends in its JSON line. The peer is not run here.

python -m pytest tests/test_bench.py            # 2 CPU cores, about half a minute
"""

import json

import pytest
import torch
from helpers import refuses, run

import rewards
from experiments import bench

# total parameters on the pages of the published checkpoints
PUBLISHED = {"qwen2_vl_2b": 2_208_985_600, "qwen2_5_vl_3b": 3_754_622_976, "qwen2_5_vl_7b": 8_292_166_656}


@pytest.mark.parametrize("shape", bench.SHAPES)
def test_shapes_have_the_published_number_of_parameters(shape):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in bench.shape_model(shape).parameters()) == PUBLISHED[shape]


def test_our_reward_is_found_by_its_name():
    reward = rewards.reward_function("experiments.bench:letters")
    assert reward("area", {}) == 0.75
    assert reward("", {}) == 0


@pytest.mark.slow
def test_our_side_ends_in_a_json_line(tmp_path):
    model = ["--hidden=64", "--layers=2"]
    work = ["--prompts=2", "--group=2", "--tokens=8"]
    length = ["--steps=3", "--warmup=1", "--rounds=1"]
    command = ["-m", "experiments.bench", *model, *work, *length, "--peer=none", f"--out_dir={tmp_path}"]
    text = run(command, tmp_path / "log")
    result = json.loads(text.splitlines()[-1])
    assert set(result) == {"ours", "machine", "matmul_gflops"}
    assert 0 < result["ours"]["step_cpu_s"] < 10
    # by hand: 2 prompts read once, 2 x 2 completions of 8 tokens; rollout, reference and update
    prompt = int(text.split("2 prompts of ")[1].split()[0])
    assert f"tokens through the language model{3 * (2 * prompt + 2 * 2 * 8):>13}" in text
    phases = sum(result["ours"][f"{phase}_s"] for phase in bench.PHASES)
    assert 0 < phases <= 1.05 * result["ours"]["step_s"]


@pytest.mark.slow
def test_bad_sweep(tmp_path):
    knobs = ["--sweep=colour", "--values=1,2", "--peer=none", f"--out_dir={tmp_path}"]
    refuses(["-m", "experiments.bench", *knobs], tmp_path / "log", "sweep: 'colour' is none of", "group")


@pytest.mark.slow
def test_the_checks_for_a_gpu_run_on_a_tiny_model(tmp_path):
    command = ["-m", "experiments.decide", "--device=cpu", f"--out_dir={tmp_path}"]
    text = run(command, tmp_path / "log")
    assert text.count(": good") == 5 and "BAD" not in text
