"""bench.py: the shapes it builds are Qwen's, and a short run of our side ends in its JSON line. The peer is not run here.

python -m pytest tests/test_bench.py            # 2 CPU cores, about half a minute
"""

import json

import pytest
import torch
from helpers import refuses, run

from experiments import bench

# total parameters on the pages of the published checkpoints
PUBLISHED = {"qwen2_vl_2b": 2_208_985_600, "qwen2_5_vl_3b": 3_754_622_976, "qwen2_5_vl_7b": 8_292_166_656}


@pytest.mark.parametrize("shape", bench.SHAPES)
def test_shapes_have_the_published_number_of_parameters(shape):
    with torch.device("meta"):
        assert sum(p.numel() for p in bench.shape_model(shape).parameters()) == PUBLISHED[shape]


@pytest.mark.slow
def test_our_side_ends_in_a_json_line(tmp_path):
    flags = [
        "--hidden=64",
        "--layers=2",
        "--prompts=2",
        "--group=2",
        "--tokens=8",
        "--steps=3",
        "--warmup=1",
        "--rounds=1",
        "--peer=none",
    ]
    text = run(["-m", "experiments.bench", *flags, f"--out_dir={tmp_path}"], tmp_path / "log")
    result = json.loads(text.splitlines()[-1])
    assert set(result) == {"ours", "machine", "matmul_gflops"} and 0 < result["ours"]["step_cpu_s"] < 10
    # by hand: 2 prompts read once, 2 x 2 completions of 8 tokens; rollout, reference and update
    prompt = int(text.split("2 prompts of ")[1].split()[0])
    assert f"tokens through the language model{3 * (2 * prompt + 2 * 2 * 8):>13}" in text
    assert 0 < sum(result["ours"][f"{p}_s"] for p in bench.PHASES) <= 1.05 * result["ours"]["step_s"]


@pytest.mark.slow
def test_bad_sweep(tmp_path):
    command = [
        "-m",
        "experiments.bench",
        "--sweep=colour",
        "--values=1,2",
        "--peer=none",
        f"--out_dir={tmp_path}",
    ]
    refuses(command, tmp_path / "log", "sweep: 'colour' is none of", "group")
