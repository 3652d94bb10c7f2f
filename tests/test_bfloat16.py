"""Training in bfloat16, as on GPUs, under every ZeRO stage: beside float32, and resumed.

python -m pytest tests/test_bfloat16.py        # 2 CPU cores, about 60 seconds
"""

import pytest
import torch
from helpers import GRPO, records, run
from safetensors.torch import load_file

import common

pytestmark = pytest.mark.slow
STAGES = {
    "0": ["--zero_stage=0"],
    "2": ["--zero_stage=2"],
    "offload": ["--zero_stage=1", "--offload_optimizer=True"],
}


@pytest.mark.parametrize("flags", STAGES.values(), ids=lambda flags: "+".join(flag[2:] for flag in flags))
def test_a_run_in_bfloat16_learns_saves_and_goes_on(tiny_folder, tmp_path, flags):
    command = [*GRPO, f"--model={tiny_folder()}", "--rollout=hf", "--dtype=bfloat16", "--beta=0.04"]
    command += [
        "--reward_weights={'experiments.bench:letters': 1.0}",
        "--reward_workers=0",
        "--learning_rate=3e-3",
    ]
    command += ["--micro_tokens=200", "--save_interval=2", *flags]  # many micro-batches
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run([*command, "--steps=3", f"--out_dir={whole}"], tmp_path / "whole.log")
    run([*command, "--steps=2", f"--out_dir={cut}"], tmp_path / "cut.log")
    run([*command, "--steps=3", f"--out_dir={cut}"], tmp_path / "resumed.log")
    wanted, found = records(whole), records(cut)
    for name in ("loss", "grad_norm", "reward", "kl"):
        assert [step[name] for step in found] == [step[name] for step in wanted], name
    assert all(0 < step["grad_norm"] < 100 for step in wanted) and wanted[-1]["kl"] > 0
    a = load_file(next((whole / "step-000003").glob("*.safetensors")))
    b = load_file(next((cut / "step-000003").glob("*.safetensors")))
    assert {tensor.dtype for tensor in a.values()} == {torch.bfloat16}
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage, most", [(0, 0.1), (1, 0.005), (2, 0.001)])
def test_gradients_of_many_micro_batches(stage, most):
    """64 of them, their sum's norm against float32's."""
    norms = {}
    common.setup(0)
    for dtype, of_stage in (("float32", 0), ("bfloat16", stage)):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 1)]
        net = torch.nn.Sequential(*layers).bfloat16().to(getattr(torch, dtype))
        engine = common.start_deepspeed(
            net, common.deepspeed_config(of_stage, dtype, 1e9), 0.0, 0.0, (0.9, 0.999)
        )
        inputs = torch.randn(64, 8, 64).bfloat16()
        for i, part in enumerate(inputs):
            engine.set_gradient_accumulation_boundary(i == 63)
            engine.backward(engine(part.to(getattr(torch, dtype))).float().square().sum() / 512)
        norms[dtype] = common.optimizer_step(engine, 0.0, dtype)
    assert abs(norms["bfloat16"] / norms["float32"] - 1) < most
