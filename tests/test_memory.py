"""The memory plan: parameters against the real classes, activations against autograd's graph, what an engine
holds against the real DeepSpeed engine, all within 10 %; and what it says.

    python -m pytest tests/test_memory.py        # 2 CPU cores, about a minute

This file is also the script whose processes hold those engines: test_plan.py MODEL FILE, where FILE has a
list of knobs.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import common
import memory
import qwen
from configurator import find_block, run_file
from experiments import bench

ROOT = Path(memory.__file__).parent
GRPO = find_block(str(ROOT / "train_grpo.py"))[1]
SFT = find_block(str(ROOT / "train_sft.py"))[1]
SHAPES = dict(zip(bench.SHAPES, memory.PUBLISHED, strict=True))
RUNS = [
    {"zero_stage": 0},
    {"zero_stage": 0, "dtype": "float32"},
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 2, "freeze_vision": True},
    {"zero_stage": 2, "lora_rank": 4},
    {"zero_stage": 2, "offload_optimizer": True},
    {"zero_stage": 3},
    {"zero_stage": 3, "offload_optimizer": True},
]


def near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 0.1 * expected


def config_of(name: str, **knobs) -> dict:
    """Of a file in configs/."""
    defaults = SFT if name.startswith("sft") else GRPO
    return defaults | run_file(str(ROOT / "configs" / f"{name}.py")) | knobs


# -----------------------------------------------------------------------------
# shapes
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_of_the_published_shapes(shape):
    with torch.device("meta"):
        net = bench.shape_model(shape)
    s = memory.PUBLISHED[SHAPES[shape]]
    assert memory.shape_of(net.config) == s
    check_parameters(net, s, rank=16)


@pytest.mark.parametrize("family", memory.FAMILIES)
def test_parameters_of_a_checkpoint(tiny_folder, tmp_path, family):
    folder = tiny_folder(family)
    (tmp_path / "config.json").write_bytes(Path(folder, "config.json").read_bytes())
    s = memory.read_shape(str(tmp_path))  # nothing but the config.json
    check_parameters(qwen.load_model(folder, "float32", say=lambda line: None), s, rank=3)


def check_parameters(net, s: memory.Shape, rank: int) -> None:
    def count(module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert memory.tower_parameters(s) == count(net.model.visual)
    assert memory.head_parameters(s) == net.lm_head.weight.numel()
    assert memory.language_parameters(s) == count(net) - count(net.model.visual)
    with torch.device("meta"):
        qwen.add_lora(net.to("meta"), rank, 1.0)
    trained = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    assert memory.lora_parameters(s, rank) == trained


def test_the_older_form_of_a_config(tmp_path):
    """As the published files are: the language model's entries at the top."""
    text = dict(zip(bench.TEXT_KEYS, bench.SHAPES["qwen2_vl_2b"][1], strict=True))
    tower = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "patch_size": 14}
    config = text | {"model_type": "qwen2_vl", "vision_config": tower}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert memory.read_shape(str(tmp_path)) == memory.PUBLISHED["Qwen/Qwen2-VL-2B-Instruct"]


# -----------------------------------------------------------------------------
# a pass
# -----------------------------------------------------------------------------


class Attention(torch.autograd.Function):
    """What FlashAttention keeps for its backward pass, but for one number of each head and token."""

    @staticmethod
    def forward(context, q, k, v):
        out = torch.zeros_like(q)
        context.save_for_backward(q, k, v, out)
        return out


def kept_bytes(net, forward) -> int:
    """Of the tensors that autograd keeps for the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    assert len(result)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", memory.FAMILIES)
def test_activations(tmp_path_factory, monkeypatch, family, dtype):
    import data

    folder = str(tmp_path_factory.mktemp("model"))
    qwen.build_tiny(folder, data.tiny_corpus(), family, hidden=128, layers=4, vision_layers=4)
    monkeypatch.setattr(qwen, "varlen", lambda q, k, v, *rest, **more: Attention.apply(q, k, v))
    net = qwen.load_model(folder, dtype, say=lambda line: None)
    net.config._attn_implementation = "segments_flash_varlen"  # as on a GPU
    tower = net.config.vision_config
    values = 3 * tower.temporal_patch_size * tower.patch_size**2
    prompt = {
        "input_ids": [30] * 4 + [net.config.image_token_id] * 64 + [30] * 32,
        "pixel_values": torch.zeros(256, values, dtype=net.dtype),
        "image_grid_thw": torch.tensor([[1, 16, 16]]),
    }
    completions = [(50 * i, [40] * 50) for i in range(8)]
    batch = qwen.collate([(prompt, completions, 500)], net)
    policy = qwen.Policy(net, [], 1.0).train()
    kept = kept_bytes(net, lambda: policy(batch)[0])

    knobs = {"model": folder, "dtype": dtype, "prompts_per_step": 1, "micro_tokens": 500}
    knobs |= {"max_prompt_length": 100, "max_completion_length": 50, "grad_checkpointing": False}
    r = memory.Run(GRPO | knobs | {"max_pixels": 256 * tower.patch_size**2}, 1, 1e9)
    p = memory.largest_pass(r)
    assert p == (500, 500 + 8 * 100, 400, 256)
    # a layer's worth of gradients on their way is no part of what is kept
    assert near(kept, memory.activation_bytes(r, p) - memory.layer_bytes(r, p))


def test_checkpointing_keeps_the_inputs_of_layers():
    r = memory.Run(config_of("clevr_1gpu"), 1, 85e9)
    p = memory.Pass(tokens=1000, keys=1000, responses=500, patches=0)
    # 28 layers x 1,536 x 2 bytes, and two of the 104 kB that a layer keeps
    assert near(memory.activation_bytes(r, p), 1000 * (28 * 1536 * 2 + 2 * 104e3))


def test_hand_computed_sizes():
    """clevr.py on 8 x 80 GB: 2.209 billion weights; 28 layers x 2 x 2 heads x 128 numbers x 2 bytes."""
    r = memory.Run(config_of("clevr", vllm_gpu_memory=0.4, vllm_sleep=True), 8, 85e9)
    held = memory.held_bytes(r)
    wanted = {"weights": 4.418, "reference": 4.418, "float32 master": 1.104, "Adam": 2.209, "gradients": 0}
    assert all(held[name] == pytest.approx(1e9 * size, rel=1e-3) for name, size in wanted.items())
    assert memory.key_value_bytes(r, 1) == 28 * 1024
    assert memory.rollout_tokens(r) == 2 * (1024 + 8 * 256)
    assert memory.logit_bytes(r, memory.largest_pass(r)) == 18 * 151936 * 512
    moments = memory.moments_bytes(r)
    assert moments["start"] == sum(held.values()) - held["Adam"] + 34e9
    assert moments["first wake-up of vLLM"] == sum(held.values()) + 34e9


# -----------------------------------------------------------------------------
# the real engine
# -----------------------------------------------------------------------------


def size(tensors) -> int:
    """Bytes of these tensors; those that share memory count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def masters(optimizer) -> list:
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return [weight for group in getattr(optimizer, "fp32_groups", []) for weight in group]


def gradients(engine, host: bool) -> list:
    """host: those that offload_optimizer has in host memory count, too."""
    optimizer = engine.optimizer
    found = []
    for weight in engine.module.parameters():
        found += [weight.grad, getattr(weight, "grad_accum", None)]
    for of_group in getattr(optimizer, "averaged_gradients", {}).values():
        found += of_group or []
    found += getattr(optimizer, "fp32_groups_gradients_flat", [])
    if host:
        found += [weight.grad for weight in masters(optimizer)]
        found.append(getattr(optimizer, "grad_partitions_flat_buffer", None))
    return [gradient for gradient in found if gradient is not None and gradient.numel()]


def measure(model: str, knobs: dict) -> dict:
    """Bytes of what the engine of such a run holds: before, in and after an optimizer step."""
    config = GRPO | {"model": model} | knobs
    net = qwen.load_model(model, config["dtype"], say=lambda line: None)
    if config["freeze_vision"]:
        net.model.visual.requires_grad_(False)
    if config["lora_rank"]:
        qwen.add_lora(net, config["lora_rank"], 1.0)
    prompt = {"input_ids": [30] * 20, "pixel_values": None, "image_grid_thw": None}
    batch = qwen.collate([(prompt, [(0, [40] * 20)], 40)], net)
    offload = config["offload_optimizer"]
    settings = common.deepspeed_config(config["zero_stage"], config["dtype"], 1.0, offload)
    policy = qwen.Policy(net, []).train()
    engine = common.start_deepspeed(policy, settings, 1e-6, 0.0, (0.9, 0.999))
    found = {"backward": 0}
    for last in (False, True):  # two micro-batches
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(engine(batch)[0].sum())
        found["backward"] = max(found["backward"], size(gradients(engine, host=not offload)))

    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    step = adam.step

    def measured_step(*arguments, **more):
        found["step"] = size(gradients(engine, host=True))
        return step(*arguments, **more)

    adam.step = measured_step
    common.optimizer_step(engine, 1e-6, config["dtype"])
    weights = [getattr(weight, "ds_tensor", weight) for weight in net.parameters()]
    states = [state[name] for state in adam.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return found | {"weights": size(weights), "master": size(masters(engine.optimizer)), "Adam": size(states)}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_engine_holds_what_the_plan_says(tmp_path, ranks):
    from helpers import run

    import data

    model = str(tmp_path / "model")
    qwen.build_tiny(model, data.tiny_corpus(), hidden=128, layers=3)
    (tmp_path / "runs.json").write_text(json.dumps(RUNS))
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run(
        ["tests/test_memory.py", model, str(tmp_path / "runs.json")],
        tmp_path / "log",
        ranks=ranks,
        env=environment,
    )
    for knobs, found in zip(RUNS, json.loads((tmp_path / "found.json").read_text()), strict=True):
        r = memory.Run(GRPO | {"model": model} | knobs, ranks, 85e9)
        on_gpu = memory.Run(r.config | {"offload_optimizer": False}, ranks, 85e9)
        assert near(found["weights"], memory.weights_bytes(r)), knobs
        # with offload the same, in host memory
        assert near(found["master"], memory.master_bytes(on_gpu)), knobs
        assert near(found["Adam"], memory.adam_bytes(on_gpu)), knobs
        held, backward, step = memory.gradient_bytes(r)
        assert near(found["backward"], held + backward), knobs
        if not r.offload:
            assert near(found["step"], held + step), knobs
        whole = [found["weights"], found["master"], found["Adam"], found["backward"]]
        wanted = [memory.weights_bytes(r), memory.master_bytes(on_gpu), memory.adam_bytes(on_gpu)]
        wanted.append(held + backward)
        assert near(sum(whole), sum(wanted)), knobs


# -----------------------------------------------------------------------------
# what it says
# -----------------------------------------------------------------------------


def test_disk_is_what_check_room_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 0}))
    for knobs in ({}, {"lora_rank": 16}, {"freeze_vision": True, "keep": 1}, {"steps": 50}):
        config = config_of("clevr", out_dir=str(tmp_path), **knobs)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            net = bench.shape_model("qwen2_vl_2b")
            net.model.visual.requires_grad_(not config["freeze_vision"])
            if config["lora_rank"]:
                qwen.add_lora(net, config["lora_rank"], 1.0)
        torch.set_default_dtype(torch.float32)
        with pytest.raises(SystemExit, match="the run will write") as stopped:
            checkpoint.check_room(net.bfloat16(), config, 0)
        gb = memory.disk_bytes(memory.Run(config, 8, 85e9)) / 1e9
        assert f"the run will write {gb:.2f} GB" in str(stopped.value)


def test_forms_of_the_knob():
    assert memory.parse("8x80", 1, 0) == (8, 85)
    assert memory.parse("1x24", 8, 85) == (1, 25)
    assert memory.parse("4x40", 8, 85) == (4, 42)
    assert memory.parse(True, 4, 42.3) == memory.parse("True", 4, 42.3) == (4, 42.3)
    assert memory.parse("True", 1, 0) == (1, 85)
    for wrong in ("8", "x80", "8x", "0x80", "8x80GB", "eightx80"):
        with pytest.raises(SystemExit, match="none of True, off, or GPUs x GB"):
            memory.parse(wrong, 1, 0)


EIGHT = ("clevr", "geoqa", "openv_visual", "sft_clevr")


@pytest.mark.parametrize("name", [*EIGHT, "clevr_1gpu", "own"])
def test_our_configs_fit_what_their_heads_say(name):
    world, gb = memory.parse("8x80" if name in EIGHT else "1x80", 1, 0)
    config = config_of(name)
    memory.check(config, world, int(gb * 1e9))
    lines = memory.text(config, world, gb).splitlines()
    assert lines[0].startswith(f"plan: {config['model']}, ") and lines[-1].startswith(f"fits {world} x ")
    assert all(line[52:60].strip().replace(".", "").isdigit() for line in lines[1:-1])


def test_a_run_that_cannot_fit_is_stopped_with_the_cheapest_change():
    config = config_of("clevr_1gpu", zero_stage=0)
    memory.check(config, 1, 0)  # a CPU
    memory.check(config | {"plan": "off"}, 1, int(25e9))  # a user who knows better
    with pytest.raises(
        SystemExit, match="^memory: the start takes .* of 25; the cheapest change: --"
    ) as stopped:
        memory.check(config, 1, int(25e9))
    assert "\n" not in str(stopped.value)
    # what it names, makes it fit
    knobs = memory.remedy(memory.Run(config, 1, 25e9))
    assert knobs["offload_optimizer"] and knobs["zero_stage"] == 2 and "lora_rank" not in knobs
    memory.check(config | knobs, 1, int(25e9))
    assert memory.verdict(memory.Run(config | knobs, 1, 25e9)).startswith("fits 1 x 25 GB")


LORA = {"lora_rank": 16, "vllm_gpu_memory": 0.4}


@pytest.mark.parametrize(
    "cards, knobs, moment, change",
    [
        ((8, 20), LORA, "", {}),
        ((8, 20), LORA | {"vllm_gpu_memory": 0.6}, "start", {"vllm_gpu_memory": 0.45}),
        ((8, 20), LORA | {"vllm_gpu_memory": 0.05}, "start of vLLM within", {"vllm_gpu_memory": 0.3}),
        ((8, 20), LORA | {"grad_checkpointing": False}, "backward pass", {"grad_checkpointing": True}),
        ((8, 20), LORA | {"vllm_sleep": False}, "backward pass", {"vllm_sleep": True}),
        # Adam comes after vLLM has started
        ((1, 85), {"vllm_gpu_memory": 0.6}, "first wake-up of vLLM", {"vllm_gpu_memory": 0.45}),
        (
            (8, 18),
            {"vllm_gpu_memory": 0.35, "beta": 0.0},
            "first wake-up of vLLM",
            {"offload_optimizer": True},
        ),
    ],
)
def test_moments_and_changes(cards, knobs, moment, change):
    """A 2B, with LoRA or without, and one knob that is wrong."""
    config = config_of("clevr", **{"vllm_sleep": True, "grad_checkpointing": True} | knobs)
    r = memory.Run(config, cards[0], 1e9 * cards[1])
    print(memory.moments_bytes(r), memory.remedy(r), memory.verdict(r))
    assert memory.first_failure(r)[0].startswith(moment) and bool(memory.first_failure(r)[0]) == bool(moment)
    if moment:
        assert memory.remedy(r) == change


def test_the_knob(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not memory.show(config_of("clevr", plan=""))
    assert memory.show(config_of("clevr", plan="8x80"))
    assert memory.text(config_of("clevr"), 8, 85) == capsys.readouterr().out.strip()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert memory.show(config_of("sft_clevr", plan="True"))
    assert "fits 4 x 85 GB" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="zero_stage: 4 is none of"):
        memory.show(config_of("clevr", plan="True", zero_stage=4))


def test_nothing_helps():
    r = memory.Run(config_of("clevr_1gpu", model="Qwen/Qwen2.5-VL-7B-Instruct"), 1, 16e9)
    assert "no knob helps" in memory.verdict(r)


def test_table():
    lines = memory.table().splitlines()
    assert len(lines) == 2 + 9 and all(line.count("|") == 5 for line in lines)
    for page in ("README.md", "docs/memory.md"):
        assert memory.table() in (ROOT / page).read_text(encoding="utf-8")


if __name__ == "__main__":
    rank, _, _ = common.setup(0)
    results = [measure(sys.argv[1], knobs) for knobs in json.loads(Path(sys.argv[2]).read_text())]
    if rank == 0:
        Path(sys.argv[2]).with_name("found.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # these engines have threads that do not all come down


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_header_of_a_config_has_its_plan(path):
    """# Plan (--plan=8x80): at most 55 of 85 GB a GPU, host memory 29 GB, disk 71 GB."""
    text = path.read_text()
    said = re.search(
        r"# Plan \(--plan=(\w+)\): at most (\d+) of (\d+) GB a GPU, host memory (\d+) GB, disk (\d+) GB\.",
        text,
    )
    is_for_gpus = "Hardware:" in text and " GB" in text.partition("Hardware:")[2][:20]
    assert bool(said) or not (is_for_gpus and "group_size" in text)
    if said:
        config = config_of(path.stem)
        world, gb = memory.parse(said[1], 1, 0)
        r = memory.Run(config, world, gb * 1e9)
        found = [max(memory.moments_bytes(r).values()), gb * 1e9, memory.host_bytes(r), memory.disk_bytes(r)]
        assert [round(size / 1e9) for size in found] == [int(gigabytes) for gigabytes in said.groups()[1:]]
        assert memory.verdict(r).startswith("fits")
