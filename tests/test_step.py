"""The algorithm: what the real loops compute in a step, held against the papers' formulas over plain transformers.

Runs of two and more steps on two processes are recorded (recorder.py): the prompts and completions that the loop got
from its sampler, the weights before every optimizer step, the gradient that DeepSpeed made of the backward passes.
From prompts, completions and weights this file computes the same gradient again, in a different way: one row per
completion, no packing, eager attention of transformers, a loop over the tokens. Nothing of the project's mathematics
is imported.

The samplers' log-probs are shifted on purpose, so that importance weights matter; clips are so narrow and learning
rates so high that the clip is active; micro-batches are so small that groups are cut in pieces.

    python -m pytest tests/test_step.py        # 2 CPU cores, about a minute
"""

import json
import math
import statistics
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import letters
import numpy as np
import pytest
import torch
from helpers import records, run
from PIL import Image
from plain import banned_tokens, chosen, distributions, lora_factors, merged, plain_model, recording, with_weights
from transformers import AutoTokenizer

import data
import qwen

pytestmark = pytest.mark.slow
RANKS, PROMPTS, GROUP, LENGTH = 2, 4, 4, 10  # prompts of a step, completions of a prompt, most tokens of one
ROWS = 8
TOLERANCE = 1e-5  # of a gradient's difference, relative to its size

# -----------------------------------------------------------------------------
# the runs
# -----------------------------------------------------------------------------

COMMON = {
    "dtype": "float32",
    "zero_stage": 0,
    "grad_checkpointing": False,
    "learning_rate": 1e-4,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "steps": 2,
    "micro_tokens": 100,  # a group has more
    "max_prompt_length": 200,
    "template": "direct",
    "max_completion_length": LENGTH,
    "eval_rows": 6,
}
GRPO = COMMON | {
    "rollout": "hf",
    "prompts_per_step": PROMPTS,
    "group_size": GROUP,
    "temperature": 1.0,
    "reward_weights": {"letters:share": 1.0, "letters:digits": -0.5},
    "reward_workers": 0,
    "thumbnails": 0,
    "show_interval": 0,
}
SFT = COMMON | {"batch_size": 6, "target": "answer", "max_completion_length": 40}
NARROW = {"updates_per_rollout": 2, "clip_low": 0.02, "clip_high": 0.03}

# name: (model, what differs from GRPO); together they take every value of every knob of the objective
RUNS = {
    "grpo": ("tiny", {"beta": 0.5, "steps": 4, "lr_schedule": "linear", "warmup_steps": 2, "eval_interval": 2}),
    "dapo": ("ends", NARROW | {"beta": 0.0, "loss_norm": "token", "drop_flat_groups": True, "mask_truncated": True}),
    "dr_grpo": (
        "ends",
        NARROW
        | {"beta": 0.04, "loss_norm": "constant", "adv_norm": "none", "temperature": 0.7}
        | {"lr_schedule": "cosine", "grad_clip": 0.01},
    ),
    "gspo": ("ends", NARROW | {"beta": 0.1, "ratio_level": "sequence", "adv_norm": "batch", "updates_per_rollout": 3, "clip_low": 0.05, "clip_high": 0.06}),
    "gspo_token": (
        "ends",
        NARROW
        | {"beta": 1.0, "ratio_level": "sequence", "loss_norm": "token", "mask_truncated": True}
        | {"importance_cap": 0.0, "temperature": 1.2, "micro_tokens": 0},
    ),
    "dr_gspo": (
        "qwen3_vl",
        NARROW
        | {"beta": 0.3, "ratio_level": "sequence", "loss_norm": "constant", "drop_flat_groups": True}
        | {"zero_stage": 2, "clip_low": 0.05, "clip_high": 0.06},
    ),
    "batch": ("qwen2_vl", {"beta": 0.2, "adv_norm": "batch", "grad_checkpointing": True, "zero_stage": 1}),
    "frozen": ("tiny", NARROW | {"beta": 0.1, "freeze_vision": True, "weight_decay": 0.1, "importance_cap": 1.2}),
    "lora": ("ends", NARROW | {"beta": 0.3, "lora_rank": 4, "lora_alpha": 12.0, "learning_rate": 2e-3}),
    "idle": ("tiny", {"beta": 0.3, "prompts_per_step": 2, "drop_flat_groups": True, "steps": 4, "seed": 2}),
    "nothing": ("tiny", {"reward_weights": {"letters:share": 0.0}, "drop_flat_groups": True, "steps": 1}),
}
SFT_RUNS = {
    "sft": ("tiny", {"steps": 3, "lr_schedule": "cosine", "warmup_steps": 1, "eval_interval": 3}),
    "sft_sharded": ("ends", {"zero_stage": 3, "micro_tokens": 0, "target": "cot"}),
}


def command(trainer: str, knobs: dict) -> list[str]:
    return [trainer, *(f"--{name}={value}" for name, value in knobs.items())]


def write_rows(folder: Path) -> str:
    """Rows without an image, with one and with two; two of eight have the same reward for every completion."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(ROWS):
        images = []
        for k in range(i % 3):
            width, height = 28 * rng.integers(2, 5, 2)
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            images.append(f"{i}-{k}.png")
            Image.fromarray(picture).save(folder / images[-1])
        name = f"flat{i}" if i % 4 == 1 else f"row{i}"
        problem = "How many red cubes are there?" + " Look again." * (i % 3)
        row = {"id": name, "problem": problem, "solution": str(i), "images": images, "thinking": f"I see {i}."}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return str(folder / "rows.jsonl")


def write_models(folder: Path) -> None:
    """The tiny models of three families, and `ends`, which ends about half of its completions within LENGTH tokens."""
    corpus = data.tiny_corpus()
    for name, family in (("tiny", "qwen2_5_vl"), ("qwen2_vl", "qwen2_vl"), ("qwen3_vl", "qwen3_vl")):
        qwen.build_tiny(str(folder / name), corpus, family, hidden=64, layers=2)
    qwen.build_tiny(str(folder / "ends"), corpus, hidden=64, layers=2)
    model = plain_model(folder / "ends")
    # an end token whose embedding is like the average hidden state has a high logit, about 6, everywhere
    with torch.no_grad():
        average = model.model(input_ids=torch.arange(10, 400)[None]).last_hidden_state[0].mean(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "ends")
    for token in ("<|im_end|>", "<|endoftext|>"):
        embeddings = model.get_input_embeddings().weight.data
        embeddings[tokenizer.convert_tokens_to_ids(token)] = 6 * average / average.square().sum()
    model.save_pretrained(folder / "ends")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs have been done, one after another in the same two processes."""
    folder = tmp_path_factory.mktemp("step")
    write_models(folder)
    source = write_rows(folder)
    jobs = []
    for trainer, base, runs in (("train_grpo.py", GRPO, RUNS), ("train_sft.py", SFT, SFT_RUNS)):
        for name, (model, changes) in runs.items():
            knobs = base | changes | {"model": folder / model, "out_dir": folder / name, "data_source": source}
            if "eval_interval" in changes:
                knobs["eval_source"] = source
            job = {"folder": f"{folder}/{name}/records", "command": command(trainer, knobs), "shift": 0.6}
            jobs.append(job)
    (folder / "runs.json").write_text(json.dumps(jobs))
    tests = str(Path(__file__).parent)
    run(
        ["tests/recorder.py", f"{folder}/runs.json"],
        folder / "log",
        ranks=RANKS,
        env={"PYTHONPATH": tests, "NANOR1V_VERBOSE": "1"},
        timeout=300,
    )
    return folder


# -----------------------------------------------------------------------------
# GRPO from the papers
# -----------------------------------------------------------------------------


def reward(text: str, row: dict, weights: dict) -> float:
    parts = {"letters:share": letters.share, "letters:digits": letters.digits}
    return sum(weight * parts[name](text, row) for name, weight in weights.items())


def samples_of(run, number: int) -> list[SimpleNamespace]:
    """All completions of a step, over all processes, with rewards and advantages."""
    tokenizer = AutoTokenizer.from_pretrained(run.start)
    samples, groups = [], []
    for rank in run.rollouts[number]:
        for prompt, group, given in zip(rank["prompts"], rank["completions"], rank["given_logps"], strict=True):
            members = []
            for (ids, _, finished), logps in zip(group, given, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                sample = SimpleNamespace(prompt=prompt, ids=ids, text=text, finished=finished, rollout_logps=logps)
                sample.reward = reward(text, prompt["row"], run.knobs["reward_weights"])
                members.append(sample)
            groups.append(members)
            samples += members
    everyone = [sample.reward for sample in samples]
    for members in groups:
        own = [sample.reward for sample in members]
        divisor = {  # DeepSeekMath sec. 4.1.2; over the batch; Dr. GRPO leaves it out
            "group": statistics.stdev(own) + 1e-4,
            "batch": statistics.stdev(everyone) + 1e-4,
            "none": 1.0,
        }[run.knobs["adv_norm"]]
        for sample in members:
            sample.advantage = (sample.reward - statistics.mean(own)) / divisor
            sample.group_std = statistics.stdev(own)
            sample.flat = len(set(own)) == 1
            dropped = run.knobs["drop_flat_groups"] and sample.flat
            truncated = run.knobs["mask_truncated"] and not sample.finished
            sample.used = not dropped and not truncated
    return samples


def token_objective(ratio, advantage: float, importance: float, knobs: dict):
    """min(ratio A, clip(ratio) A), weighted; and which way the clip acts: +1 above, -1 below, 0 not. DeepSeekMath eq. 3, DAPO eq. 8."""
    low, high = 1 - knobs["clip_low"], 1 + knobs["clip_high"]
    value, side = ratio * advantage, 0
    if advantage > 0 and ratio > high:
        value, side = torch.tensor(high * advantage), 1
    if advantage < 0 and ratio < low:
        value, side = torch.tensor(low * advantage), -1
    return importance * value, side


def sequence_objective(sample, logps, knobs: dict) -> tuple[list, SimpleNamespace]:
    """The objective of every token of one completion, and what the log wants to know of them."""
    logp = chosen(logps, sample.ids)
    old = logp.detach() if sample.old is None else sample.old
    cap = knobs["importance_cap"] or math.inf
    seen = SimpleNamespace(kl=[], sides=[], mismatch=[], importance=[], entropy=[])
    objective = []
    for t in range(len(sample.ids)):
        if knobs["ratio_level"] == "sequence":  # GSPO eq. 7
            ratio = ((logp - old).sum() / len(sample.ids)).exp()
        else:
            ratio = (logp[t] - old[t]).exp()
        importance = min(math.exp(old[t] - sample.rollout_logps[t]), cap)  # truncated importance sampling
        weight = importance if knobs["importance_cap"] else 1.0
        value, side = token_objective(ratio, sample.advantage, weight, knobs)
        kl = torch.tensor(0.0)
        if knobs["beta"] > 0:  # DeepSeekMath eq. 4
            kl = (sample.reference[t] - logp[t]).exp() - (sample.reference[t] - logp[t]) - 1
        objective.append(value - knobs["beta"] * kl)
        seen.kl.append(kl.item())
        seen.sides.append(side)
        seen.mismatch.append(abs(old[t].item() - sample.rollout_logps[t]))
        seen.importance.append(importance)
        p = logps[t].detach().exp()
        seen.entropy.append(-(p[p > 0] * p[p > 0].log()).sum().item())
    return objective, seen


def step_loss(model, samples: list, knobs: dict, banned) -> tuple[float, list]:
    """Loss of a whole step, its gradient added up in the model, one completion after the other."""
    used = [sample for sample in samples if sample.used]
    n_tokens = sum(len(sample.ids) for sample in used)
    loss, seen = 0.0, []
    for sample in used:
        logps = distributions(model, sample.prompt, sample.ids, knobs["temperature"], banned)
        objective, numbers = sequence_objective(sample, logps, knobs)
        share = {
            "sequence": 1 / len(used) / len(sample.ids),  # DeepSeekMath eq. 3
            "token": 1 / n_tokens,  # DAPO eq. 8
            "constant": 1 / len(used) / knobs["max_completion_length"],  # Dr. GRPO
        }[knobs["loss_norm"]]
        sequence_loss = -share * sum(objective)
        if sequence_loss.requires_grad:  # not where the clip stops every token and there is no KL
            sequence_loss.backward()
        loss += sequence_loss.item()
        seen.append(numbers)
    return loss, seen


def fixed_logps(model, samples: list, knobs: dict, banned) -> list[torch.Tensor]:
    with torch.no_grad():
        result = []
        for sample in samples:
            logps = distributions(model, sample.prompt, sample.ids, knobs["temperature"], banned)
            result.append(chosen(logps, sample.ids))
    return result


@cache
def expected_steps(folder: Path, name: str) -> list[SimpleNamespace]:
    """Every step of a run from the papers: losses and gradients of its updates, numbers for the log."""
    run = recording(folder / name)
    knobs, banned = run.knobs, banned_tokens(run.start)
    reference = plain_model(run.start)
    steps, done = [], 0
    for number in range(len(run.rollouts)):
        samples = samples_of(run, number)
        if not any(sample.used for sample in samples):
            continue
        start = with_weights(run.start, run.updates[done][0]["weights"], knobs)
        ref = fixed_logps(reference, samples, knobs, banned)
        old = fixed_logps(start, samples, knobs, banned)
        for sample, reference_logps, old_logps in zip(samples, ref, old, strict=True):
            sample.reference = reference_logps
            sample.old = old_logps if knobs["updates_per_rollout"] > 1 else None
        step = SimpleNamespace(samples=samples, losses=[], gradients=[], seen=[])
        for _ in range(knobs["updates_per_rollout"]):
            weights = run.updates[done][0]["weights"]
            model = with_weights(run.start, weights, knobs)
            loss, seen = step_loss(model, samples, knobs, banned)
            step.losses.append(loss)
            step.gradients.append(gradients_of(model, weights, knobs))
            step.seen += seen
            done += 1
        steps.append(step)
    return steps


def gradients_of(model, weights: dict, knobs: dict) -> dict:
    """By name as in the record; those of LoRA's factors follow from that of the merged weight."""
    result = {}
    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        if not knobs["lora_rank"]:
            result[name] = gradient
        elif factors := lora_factors(name, weights):
            a, b = factors
            layer, scale = name.removesuffix(".weight"), knobs["lora_alpha"] / knobs["lora_rank"]
            result[f"{layer}.lora_A.default.weight"] = scale * b.T @ gradient
            result[f"{layer}.lora_B.default.weight"] = scale * gradient @ a.T
    if knobs["freeze_vision"]:
        result = {name: gradient for name, gradient in result.items() if ".visual." not in name}
    return result


def norm(gradients: dict) -> float:
    return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))


def assert_same_gradient(got: dict, want: dict) -> None:
    assert got.keys() == want.keys()
    size = norm(want)
    for name in want:
        difference = (got[name] - want[name]).norm().item()
        assert difference < TOLERANCE * size, f"{name}: {difference / size:.1e} of the gradient's size"
    difference = norm({name: got[name] - want[name] for name in want})
    assert difference < TOLERANCE * size


# -----------------------------------------------------------------------------
# GRPO
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_gradient_is_the_papers(folder, name):
    """Every optimizer step gets the gradient of the whole step's loss, on every process."""
    run = recording(folder / name)
    want = [gradient for step in expected_steps(folder, name) for gradient in step.gradients]
    assert len(run.updates) == len(want)
    for ranks, gradient in zip(run.updates, want, strict=True):
        for record in ranks:
            assert_same_gradient(record["gradient"], gradient)


@pytest.mark.parametrize("name", RUNS)
def test_log_is_of_the_same_step(folder, name):
    """Everything that is logged of a step, over all processes; means over the updates where there are several."""
    run, steps = recording(folder / name), expected_steps(folder, name)
    updated = [line for line in run.log if "loss" in line]
    assert len(updated) == len(steps)
    for line, step in zip(updated, steps, strict=True):
        assert line["loss"] == pytest.approx(statistics.mean(step.losses), rel=1e-4, abs=1e-6)
        assert line["grad_norm"] == pytest.approx(norm(step.gradients[-1]), rel=1e-4)  # before clipping
        sides = [side for seen in step.seen for side in seen.sides]
        assert line["clip_fraction"] == pytest.approx(1 - sides.count(0) / len(sides))
        for name_in_log in ("kl", "entropy", "mismatch", "importance"):
            values = [value for seen in step.seen for value in getattr(seen, name_in_log)]
            assert line[name_in_log] == pytest.approx(statistics.mean(values), rel=1e-4, abs=1e-6), name_in_log


@pytest.mark.parametrize("name", RUNS)
def test_rewards_and_advantages(folder, name):
    """Of every step, also one without an update: means in the log, and each completion in rollouts.jsonl with its own."""
    run = recording(folder / name)
    entries = records(folder / name, "rollouts.jsonl")
    for number, line in enumerate(run.log):
        samples = samples_of(run, number)
        shown = [entry for entry in entries if entry["step"] == number + 1]
        completions = [c for entry in shown for c in entry["completions"]]
        for c, sample in zip(completions, samples, strict=True):
            assert c["text"] == sample.text
            assert c["reward"] == pytest.approx(sample.reward, abs=1e-6)
            assert c["advantage"] == pytest.approx(sample.advantage, abs=1e-3)
            assert (c["tokens"], c["finished"]) == (len(sample.ids), sample.finished)
        assert [entry["id"] for entry in shown] == [s.prompt["row"]["id"] for s in samples[::GROUP]]
        means = {
            "reward": [sample.reward for sample in samples],
            "reward_std": [sample.group_std for sample in samples],
            "flat_groups": [sample.flat for sample in samples],
            "length": [len(sample.ids) for sample in samples],
            "finished": [sample.finished for sample in samples],
        }
        for key, values in means.items():
            assert line[key] == pytest.approx(statistics.mean(values), abs=1e-6), key


@pytest.mark.parametrize("name", [name for name in RUNS if name != "nothing"])
def test_the_run_shows_what_it_should(folder, name):
    """The cases that the tests above are about do occur."""
    run, steps = recording(folder / name), expected_steps(folder, name)
    samples = [sample for step in steps for sample in step.samples]
    for step in steps:
        sides = {side for numbers in step.seen for side in numbers.sides}
        assert sides == ({-1, 0, 1} if run.knobs["updates_per_rollout"] > 1 else {0})
        importance = [value for numbers in step.seen for value in numbers.importance]
        assert min(importance) < 0.8
        if run.knobs["importance_cap"]:
            assert 0 < importance.count(run.knobs["importance_cap"]) < len(importance)
    if run.knobs["drop_flat_groups"]:
        assert {sample.used for sample in samples if sample.flat} == {False}
    if run.knobs["mask_truncated"]:
        assert {sample.finished for sample in samples} == {True, False}
    if run.knobs["beta"]:  # the policy has left the reference
        assert max(kl for numbers in steps[-1].seen for kl in numbers.kl) > 1e-4
    if run.knobs["micro_tokens"]:  # some group does not fit, and is cut in pieces
        longest = max(len(sample.prompt["input_ids"]) for sample in samples)
        assert longest + GROUP * LENGTH > run.knobs["micro_tokens"]


def test_a_process_without_anything_to_learn_from(folder):
    """It happens in the run `idle`, where each process has one group, and some groups are flat."""
    used = []
    for step in expected_steps(folder, "idle"):
        for rank in range(RANKS):
            used.append(any(sample.used for sample in step.samples[rank * GROUP : (rank + 1) * GROUP]))
    assert set(used) == {True, False}


def test_a_step_without_spread_is_no_update(folder):
    run = recording(folder / "nothing")
    assert run.updates == [] and "loss" not in run.log[0]
    assert run.log[0]["flat_groups"] == 1
    assert_same_weights(plain_model(run.end), plain_model(run.start))


# -----------------------------------------------------------------------------
# SFT
# -----------------------------------------------------------------------------


def target_ids(row: dict, target: str, tokenizer) -> list[int]:
    text = f"<answer> {row['solution']} </answer>"
    if target == "cot":
        text = f"<think> {row['thinking']} </think> {text}"
    return tokenizer(text + "<|im_end|>", add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", SFT_RUNS)
def test_sft_step_is_the_mean_over_all_target_tokens(folder, name):
    """Loss, gradient and log of every step: - mean of log p(token) over the targets of all processes, no token banned."""
    run, tokenizer = recording(folder / name), AutoTokenizer.from_pretrained(folder / SFT_RUNS[name][0])
    assert len(run.updates) == run.knobs["steps"]
    for take, ranks, line in zip(run.takes, run.updates, run.log, strict=True):
        model = with_weights(run.start, ranks[0]["weights"], run.knobs)
        prompts = [prompt for record in take for prompt in record["prompts"]]
        targets = [target_ids(prompt["row"], run.knobs["target"], tokenizer) for prompt in prompts]
        n_tokens = sum(len(ids) for ids in targets)
        loss = 0.0
        for prompt, ids in zip(prompts, targets, strict=True):
            logps = chosen(distributions(model, prompt, ids, 1.0, None), ids)
            share = -logps.sum() / n_tokens
            share.backward()
            loss += share.item()
        want = gradients_of(model, {}, run.knobs)
        for record in ranks:
            assert_same_gradient(record["gradient"], want)
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm(want), rel=1e-4)
        assert line["tokens_per_row"] == n_tokens / len(prompts)


# -----------------------------------------------------------------------------
# what reaches the optimizer, the sampler, the checkpoint
# -----------------------------------------------------------------------------

LEARNING = [name for name in RUNS | SFT_RUNS if name != "nothing"]
SCHEDULES = {  # shares of the peak, worked out by hand; all other runs are constant
    "grpo": [0.5, 1, 1, 0.5],  # warm-up over 2 of 4 steps, then linear to 0
    "dr_grpo": [1, 0.5],  # cosine over 2 steps
    "sft": [1, 1, 0.5],  # warm-up of 1 step, cosine over the other 2
}


@pytest.mark.parametrize("name", LEARNING)
def test_learning_rate_of_every_step(folder, name):
    """In the log and in the optimizer, on both processes, in every update of a step."""
    run = recording(folder / name)
    want = [share * run.knobs["learning_rate"] for share in SCHEDULES.get(name, [1] * run.knobs["steps"])]
    assert [line["lr"] for line in run.log] == pytest.approx(want)
    updates = run.knobs.get("updates_per_rollout", 1)
    got = [[record["lr"] for record in ranks] for ranks in run.updates]
    assert len(got) == updates * len(want)
    for number, both in enumerate(got):
        assert both == pytest.approx([want[number // updates]] * RANKS)


@cache
def adamw(folder: Path, name: str) -> list[dict]:
    """The weights after every step from the recorded gradients: clip to the norm grad_clip, AdamW, in float64."""
    run = recording(folder / name)
    beta1, beta2 = run.knobs["adam_betas"]
    first, second, result = {}, {}, []
    for t, (record, _) in enumerate(run.updates, start=1):
        clip = min(1.0, run.knobs["grad_clip"] / norm(record["gradient"]))
        after = {key: weight.double() for key, weight in record["weights"].items()}
        for key, gradient in record["gradient"].items():
            gradient = clip * gradient.double()
            first[key] = beta1 * first.get(key, 0) + (1 - beta1) * gradient
            second[key] = beta2 * second.get(key, 0) + (1 - beta2) * gradient.square()
            step = (first[key] / (1 - beta1**t)) / ((second[key] / (1 - beta2**t)).sqrt() + 1e-8)
            after[key] -= record["lr"] * (step + run.knobs["weight_decay"] * after[key])
        result.append(after)
    return result


@pytest.mark.parametrize("name", LEARNING)
def test_weights_move_by_adamw_at_that_rate(folder, name):
    """Each step starts from the weights that the one before it left; the last ones are exported."""
    run = recording(folder / name)
    for t, after in enumerate(adamw(folder, name)):
        if t + 1 < len(run.updates):
            left = run.updates[t + 1][0]["weights"]
        else:
            left = {key: p.detach() for key, p in plain_model(run.end).named_parameters()}
        for key, weight in left.items():
            if key not in after:  # LoRA's names are not the exported ones
                continue
            difference = (weight.double() - after[key]).abs().max().item()
            assert difference < 0.01 * run.updates[t][0]["lr"] + 1e-6 * weight.abs().max().item(), key


def assert_same_weights(one, other, tolerance: float = 0.0) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert (a - b).abs().max().item() <= tolerance, name


def test_lora_is_exported_merged(folder):
    """The checkpoint is W + alpha / rank * B A of the last adapters; everything else is as it was."""
    run, last = recording(folder / "lora"), adamw(folder, "lora")[-1]
    exported, adapted = dict(plain_model(run.end).named_parameters()), 0
    for name, weight in plain_model(run.start).named_parameters():
        want = merged(name, last, run.knobs).float()
        assert (exported[name] - want).abs().max() < 1e-5, name
        if lora_factors(name, last):
            adapted += 1
            assert (want - weight).abs().max() > 1e-3, name
        else:
            assert torch.equal(exported[name], weight), name
    assert adapted == 2 * 7  # layers, linear maps in each


@pytest.mark.parametrize("name", [name for name in RUNS if name != "nothing"])
def test_seeds_are_fresh(folder, name):
    """Every completion of a run has a seed of its own; completion i of a prompt draws with the prompt's seed + i."""
    run = recording(folder / name)
    seeds = []
    for ranks in run.rollouts:
        for record in ranks:
            settings = record["settings"]
            assert settings["n"] == GROUP and settings["max_tokens"] == LENGTH
            assert settings["temperature"] == run.knobs["temperature"]
            for seed in settings["seeds"]:
                seeds += [seed + i for i in range(GROUP)]
    assert len(set(seeds)) == len(seeds) == run.knobs["steps"] * run.knobs["prompts_per_step"] * GROUP


def test_seeds_depend_on_the_run(folder):
    one, other = (recording(folder / name).rollouts[0][0]["settings"]["seeds"] for name in ("grpo", "idle"))
    assert one[0] != other[0]


@pytest.mark.parametrize("name", RUNS | SFT_RUNS)
def test_rows_come_once_an_epoch(folder, name):
    """The processes have different rows, none comes twice before all have come, and the next epoch has another order."""
    run = recording(folder / name)
    by_rank = [[], []]
    for take in run.takes:
        for rank, record in enumerate(take):
            by_rank[rank] += [prompt["row"]["id"] for prompt in record["prompts"]]
    half = ROWS // RANKS
    for start in range(0, len(by_rank[0]), half):
        epoch = [row for rows in by_rank for row in rows[start : start + half]]
        assert len(set(epoch)) == len(epoch)
    if len(by_rank[0]) >= 2 * half:
        assert [rows[:half] for rows in by_rank] != [rows[half : 2 * half] for rows in by_rank]
    # the same rows reach the sampler, in that order
    for ranks, take in zip(run.rollouts, run.takes, strict=name in RUNS):
        for record, taken in zip(ranks, take, strict=True):
            assert [p["row"]["id"] for p in record["prompts"]] == [p["row"]["id"] for p in taken["prompts"]]


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_evaluation_is_greedy_with_the_weights_of_its_step(folder, name):
    """The first eval_rows rows, each on one process; every token is the most probable one that is not banned."""
    run = recording(folder / name)
    lines = [line for line in records(folder / name) if "eval_n" in line]
    assert [line["step"] for line in lines] == {"grpo": [0, 2, 4], "sft": [3]}[name]
    assert len(lines) == len(run.evaluations)
    tokenizer, banned = AutoTokenizer.from_pretrained(run.start), banned_tokens(run.start)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for line, ranks in zip(lines, run.evaluations, strict=True):
        if line["step"] < len(run.updates):
            model = with_weights(run.start, run.updates[line["step"]][0]["weights"], run.knobs)
        else:
            model = plain_model(run.end)
        seen, lengths = [], []
        for record in ranks:
            assert record["settings"]["n"] == 1 and record["settings"]["temperature"] == 0
            for prompt, ((ids, _, finished),) in zip(record["prompts"], record["completions"], strict=True):
                with torch.no_grad():
                    logps = distributions(model, prompt, ids, 1.0, banned)
                assert (chosen(logps, ids) - logps.max(-1).values).min() > -1e-4
                assert finished == (ids[-1] in ends) and (finished or len(ids) == run.knobs["max_completion_length"])
                seen.append(prompt["row"]["id"])
                lengths.append(len(ids))
        rows = [json.loads(line)["id"] for line in (folder / "rows.jsonl").read_text().splitlines()]
        assert sorted(seen) == sorted(rows[: run.knobs["eval_rows"]])
        assert line["eval_n"] == run.knobs["eval_rows"]
        if name == "grpo":
            assert line["eval_length"] == pytest.approx(statistics.mean(lengths))
