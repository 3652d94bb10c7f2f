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


@pytest.mark.parametrize("stage, lost", [(0, 0.45), (1, 0.45), (2, 0.0), (3, 0.0)])
def test_gradients_of_many_micro_batches(stage, lost):
    """600 equal ones: from 1/2 on, bfloat16 holds steps of 1/256, and 1/600 is less than half of one."""
    common.setup(0)
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 64, bias=False).bfloat16()
    engine = common.start_deepspeed(
        net, common.deepspeed_config(stage, "bfloat16", 1e9), 0.0, 0.0, (0.9, 0.999)
    )
    ones = torch.ones(1, 64, dtype=torch.bfloat16)
    for i in range(600):
        engine.set_gradient_accumulation_boundary(i == 599)
        engine.backward(engine(ones).float().sum() / 600)
    # 64 x 64 derivatives of 1 each
    assert common.optimizer_step(engine, 0.0, "bfloat16") / 64 == pytest.approx(1 - lost, abs=0.06)
