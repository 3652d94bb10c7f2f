"""The limit of a step against figures worked out by hand from Qwen's shapes and NVIDIA's data sheet."""

import pytest

from experiments import limit

BENCH = {"prompts": 16, "group": 8, "tokens": 128, "image": 480, "image_height": 320, "text_tokens": 113}
BENCH |= {"beta": 0.04, "grad_checkpointing": True}


def test_a_step_of_qwen2_vl_2b_on_an_h100():
    """A token step reads 1.310 + 0.233 billion bfloat16 weights, at 3.35 TB/s 128 times in 0.118 s, and keys
    and values: 128 sequences of 364 tokens on average, 28.7 kB each. A pass takes 82 TFLOP.
    """
    shape = limit.read_shape("Qwen/Qwen2-VL-2B-Instruct")
    work = limit.work_of(BENCH)
    assert work.prompt_tokens == 187 + 113 and work.patches == 4 * 187
    found = limit.limits(shape, work, *limit.GPUS["h100"], 0.5)
    keys = 128 * 128 * 364 * 28.7e3 / 3.35e12
    assert found["decode"] == pytest.approx(128 * 2 * 1.543e9 / 3.35e12 + keys, rel=0.01)
    wanted = {"prefill": 0.061, "reference": 0.165, "update": 0.661, "optimizer, sync": 0.023}
    for phase, seconds in wanted.items():
        assert found[phase] == pytest.approx(seconds, rel=0.06), phase
    # without recomputation three passes instead of four; without KL no reference; every prompt eight times
    kept = limit.limits(shape, work._replace(recomputes=False, beta=0.0), *limit.GPUS["h100"], 0.5)
    assert kept["update"] == pytest.approx(3 / 4 * found["update"]) and kept["reference"] == 0
    assert limit.pass_operations(shape, work, 8) == pytest.approx(292e12, rel=0.05)


def test_the_table_shows_a_measured_step_beside_the_limit():
    shape = limit.read_shape("Qwen/Qwen2-VL-2B-Instruct")
    lines = limit.text(shape, limit.work_of(BENCH), "h100", 0.5, seconds=2.12).splitlines()
    assert lines[-1] == "measured: 2.12 s a step, 2.0 times the limit"
    assert limit.gpu_named("NVIDIA H100 80GB HBM3") == "h100" and limit.gpu_named("Tesla T4") == ""
