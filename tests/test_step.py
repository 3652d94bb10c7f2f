"""The algorithm: the real loops' steps against the papers' formulas over plain transformers.

Runs of a few steps on two processes are recorded (recorder.py): the prompts and completions that the loop got
from its sampler, the weights before every optimizer step, the gradient that DeepSpeed made of the backward
passes. From prompts, completions and weights this file computes the gradient again, in another way: one row
per completion, no packing, transformers' eager attention, a loop over the tokens. Nothing of the project's
mathematics is imported.

The sampler's log-probs are shifted on purpose, so that importance weights matter. Clips are narrow, so that
they act in both directions. Micro-batches are small, so that groups are cut in pieces.

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
import plain
import pytest
import torch
from helpers import records, run
from PIL import Image
from plain import recording
from transformers import AutoTokenizer

import data
import qwen

pytestmark = pytest.mark.slow
RANKS = 2
PROMPTS = 4  # of a step, over both processes
GROUP = 4  # completions of a prompt
LENGTH = 10  # most tokens of a completion
ROWS = 8
TOLERANCE = 1e-5  # of the difference of two gradients, relative to their size

# -----------------------------------------------------------------------------
# the runs
# -----------------------------------------------------------------------------

BOTH = {
    "dtype": "float32",
    "zero_stage": 0,
    "grad_checkpointing": False,
    "learning_rate": 1e-4,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "steps": 2,
    "micro_tokens": 100,  # some groups have more
    "max_prompt_length": 200,
    "template": "direct",
    "eval_rows": 6,
}
GRPO = BOTH | {
    "rollout": "hf",
    "prompts_per_step": PROMPTS,
    "group_size": GROUP,
    "max_completion_length": LENGTH,
    "temperature": 1.0,
    "reward_weights": {"letters:share": 1.0, "letters:digits": -0.5},
    "reward_workers": 0,
    "thumbnails": 0,
    "show_interval": 0,
}
SFT = BOTH | {"batch_size": 6, "target": "answer", "max_completion_length": 40, "micro_tokens": 160}

# what differs from GRPO; together the runs take every value of every knob of the objective
RUNS = {
    "grpo": {"model": "tiny", "beta": 0.5, "steps": 4},
    "dapo": {"model": "ends", "loss_norm": "token", "beta": 0.0, "updates_per_rollout": 2},
    "dr_grpo": {"model": "ends", "loss_norm": "constant", "adv_norm": "none", "updates_per_rollout": 2},
    "gspo": {"model": "ends", "ratio_level": "sequence", "adv_norm": "batch", "updates_per_rollout": 3},
    "gspo_token": {
        "model": "ends",
        "ratio_level": "sequence",
        "loss_norm": "token",
        "updates_per_rollout": 2,
    },
    "dr_gspo": {"model": "qwen3_vl", "ratio_level": "sequence", "loss_norm": "constant"},
    "batch": {"model": "qwen2_vl", "beta": 0.2, "adv_norm": "batch", "zero_stage": 1},
    "frozen": {"model": "tiny", "beta": 0.1, "freeze_vision": True, "updates_per_rollout": 2},
    "lora": {"model": "ends", "beta": 0.3, "lora_rank": 4, "lora_alpha": 12.0, "updates_per_rollout": 2},
    "idle": {"model": "tiny", "beta": 0.3, "prompts_per_step": 2, "steps": 4, "seed": 2},
    "nothing": {"model": "tiny", "reward_weights": {"letters:share": 0.0}, "steps": 1},
}
RUNS["grpo"] |= {"lr_schedule": "linear", "warmup_steps": 2, "eval_interval": 2}
RUNS["dapo"] |= {"clip_low": 0.02, "clip_high": 0.03, "drop_flat_groups": True, "mask_truncated": True}
RUNS["dr_grpo"] |= {"clip_low": 0.03, "clip_high": 0.02, "temperature": 0.7, "beta": 0.04}
RUNS["dr_grpo"] |= {"lr_schedule": "cosine", "grad_clip": 0.01, "max_completion_length": 40}
RUNS["gspo"] |= {"clip_low": 0.05, "clip_high": 0.06, "beta": 0.1}
RUNS["gspo_token"] |= {"clip_low": 0.02, "clip_high": 0.03, "beta": 1.0, "mask_truncated": True}
RUNS["gspo_token"] |= {"temperature": 1.2, "importance_cap": 0.0, "micro_tokens": 0}
RUNS["dr_gspo"] |= {"clip_low": 0.05, "clip_high": 0.06, "beta": 0.3, "updates_per_rollout": 2}
RUNS["dr_gspo"] |= {"drop_flat_groups": True, "zero_stage": 2}
RUNS["batch"] |= {"grad_checkpointing": True}
RUNS["frozen"] |= {"clip_low": 0.02, "clip_high": 0.03, "weight_decay": 0.1, "importance_cap": 1.2}
RUNS["lora"] |= {"clip_low": 0.02, "clip_high": 0.03, "learning_rate": 2e-3}
RUNS["idle"] |= {"drop_flat_groups": True}  # each process has one group, at times a flat one
RUNS["nothing"] |= {"drop_flat_groups": True}  # all groups are flat
SFT_RUNS = {
    "sft": {"model": "tiny", "steps": 3, "lr_schedule": "cosine", "warmup_steps": 1, "eval_interval": 3},
    "sft_sharded": {"model": "ends", "zero_stage": 3, "target": "cot"},
}
SFT_RUNS["sft"] |= {"zero_stage": 2}
LEARNING = [name for name in RUNS | SFT_RUNS if name != "nothing"]


def write_rows(path: Path) -> None:
    """Rows without an image, with one and with two; for two rows of eight all completions earn the same."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(ROWS):
        images = []
        for k in range(i % 3):
            width, height = 28 * rng.integers(2, 5, 2)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            images.append(f"{i}-{k}.png")
            Image.fromarray(pixels).save(path.parent / images[-1])
        row = {"id": f"flat{i}" if i % 4 == 1 else f"row{i}", "images": images, "solution": str(i)}
        row["problem"] = "How many red cubes are there?" + " Look again." * (i % 3)
        row["thinking"] = f"I see {i}."
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def write_models(folder: Path) -> None:
    """Tiny models of three families, and `ends`, which ends about half of its completions early."""
    corpus = data.tiny_corpus()
    families = {"tiny": "qwen2_5_vl", "ends": "qwen2_5_vl", "qwen2_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl"}
    for name, family in families.items():
        qwen.build_tiny(str(folder / name), corpus, family, hidden=64, layers=2)
    model = plain.load_model(folder / "ends")
    # an end token whose embedding is like the average hidden state has a high logit, about 6, everywhere
    with torch.no_grad():
        average = model.model(input_ids=torch.arange(10, 400)[None]).last_hidden_state[0].mean(0)
    embeddings = model.get_input_embeddings().weight.data
    embeddings[plain.end_tokens(folder / "ends")] = 6 * average / average.square().sum()
    model.save_pretrained(folder / "ends")


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Where all runs have been done, one after another in two processes: those that are asked for."""
    folder = tmp_path_factory.mktemp("step")
    tests = [item for item in request.session.items if item.module is request.module]
    if all(hasattr(test, "callspec") for test in tests):  # a test without parameter picks its runs itself
        wanted = {test.callspec.params["name"] for test in tests}
    else:
        wanted = set(RUNS | SFT_RUNS)
    write_models(folder)
    write_rows(folder / "rows.jsonl")
    jobs = []
    for name, changes in (RUNS | SFT_RUNS).items():
        if name not in wanted:
            continue
        trainer, base = ("train_grpo.py", GRPO) if name in RUNS else ("train_sft.py", SFT)
        knobs = base | changes | {"out_dir": folder / name, "data_source": folder / "rows.jsonl"}
        knobs["model"] = folder / changes["model"]
        if "eval_interval" in knobs:
            knobs["eval_source"] = knobs["data_source"]
        flags = [f"--{knob}={value}" for knob, value in knobs.items()]
        jobs.append({"folder": f"{folder}/{name}/records", "command": [trainer, *flags], "shift": 0.6})
    (folder / "runs.json").write_text(json.dumps(jobs))
    command = ["tests/recorder.py", f"{folder}/runs.json"]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}  # for the reward parts
    run(command, folder / "log", ranks=RANKS, env=environment, timeout=300)
    yield folder
    for path in folder.rglob("*.pt"):  # 200 MB; the logs stay
        path.unlink()


# -----------------------------------------------------------------------------
# GRPO from the papers
# -----------------------------------------------------------------------------


def samples_of(run, number: int) -> list[SimpleNamespace]:
    """All completions of a step, over all processes, with rewards and advantages."""
    tokenizer = AutoTokenizer.from_pretrained(run.start)
    groups = []
    for record in run.rollouts[number]:  # of one process
        for p, prompt in enumerate(record["prompts"]):
            groups.append([])
            for i, (ids, logps, finished) in enumerate(record["completions"][p]):
                sample = SimpleNamespace(prompt=prompt, ids=ids, finished=finished)
                sample.sampled_logps = logps  # the sampler's own
                sample.rollout_logps = record["given_logps"][p][i]  # what the loop was told
                sample.text = tokenizer.decode(ids, skip_special_tokens=True)
                sample.reward = 0.0
                for part, weight in run.knobs["reward_weights"].items():
                    function = getattr(letters, part.removeprefix("letters:"))
                    sample.reward += weight * function(sample.text, prompt["row"])
                groups[-1].append(sample)
    samples = [sample for group in groups for sample in group]
    std_of_all = statistics.stdev(sample.reward for sample in samples)  # divisor n - 1
    for group in groups:
        rewards = [sample.reward for sample in group]
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        # DeepSeekMath sec. 4.1.2; over the whole batch; Dr. GRPO does not divide
        divisor = {"group": std + 1e-4, "batch": std_of_all + 1e-4, "none": 1.0}[run.knobs["adv_norm"]]
        for sample in group:
            sample.advantage = (sample.reward - mean) / divisor
            sample.group_std = std
            sample.flat = min(rewards) == max(rewards)
            sample.used = True
            if run.knobs["drop_flat_groups"] and sample.flat:
                sample.used = False
            if run.knobs["mask_truncated"] and not sample.finished:
                sample.used = False
    return samples


def clipped_objective(ratio, advantage: float, knobs: dict) -> tuple:
    """min(ratio A, clip(ratio) A), DeepSeekMath eq. 3, and what the clip does. Two bounds: DAPO eq. 8."""
    low, high = 1 - knobs["clip_low"], 1 + knobs["clip_high"]
    if low <= ratio <= high:
        return ratio * advantage, "inside"
    if abs(advantage) < 1e-6:
        return ratio * advantage, "no advantage"  # the reward is its group's mean: rounding decides the sign
    if advantage > 0 and ratio > high:
        return torch.tensor(high * advantage), "clipped above"
    if advantage < 0 and ratio < low:
        return torch.tensor(low * advantage), "clipped below"
    return ratio * advantage, "pulled back"  # outside, but the gradient points inside


def token_objectives(sample, logps, knobs: dict, seen: dict) -> list:
    """The objective of each token of a completion, from logps (L, V); fills what the log tells of them."""
    logp = plain.chosen(logps, sample.ids)
    old = logp.detach() if knobs["updates_per_rollout"] == 1 else sample.old
    cap = knobs["importance_cap"] or math.inf
    objectives = []
    for t in range(len(sample.ids)):
        if knobs["ratio_level"] == "sequence":  # GSPO eq. 7
            ratio = ((logp - old).sum() / len(sample.ids)).exp()
        else:
            ratio = (logp[t] - old[t]).exp()
        gain, clip = clipped_objective(ratio, sample.advantage, knobs)
        importance = min(math.exp(old[t] - sample.rollout_logps[t]), cap)  # truncated importance sampling
        if knobs["importance_cap"]:
            gain = importance * gain
        kl = torch.tensor(0.0)
        if knobs["beta"] > 0:  # DeepSeekMath eq. 4
            ratio_to_reference = (sample.reference[t] - logp[t]).exp()
            kl = ratio_to_reference - ratio_to_reference.log() - 1
        objectives.append(gain - knobs["beta"] * kl)

        probabilities = logps[t].detach().exp()
        probabilities = probabilities[probabilities > 0]
        seen["entropy"].append(-(probabilities * probabilities.log()).sum().item())
        seen["kl"].append(kl.item())
        seen["clip"].append(clip)
        seen["mismatch"].append(abs(old[t].item() - sample.rollout_logps[t]))
        seen["importance"].append(importance)
    return objectives


def backward(model, samples: list, knobs: dict, banned, seen: dict) -> float:
    """Loss of a whole step; its gradient adds up in the model, one completion after the other."""
    used = [sample for sample in samples if sample.used]
    n_tokens = sum(len(sample.ids) for sample in used)
    total = 0.0
    for sample in used:
        logps = plain.distributions(model, sample.prompt, sample.ids, knobs["temperature"], banned)
        objective = sum(token_objectives(sample, logps, knobs, seen))
        if knobs["loss_norm"] == "sequence":  # DeepSeekMath eq. 3
            loss = -objective / len(sample.ids) / len(used)
        elif knobs["loss_norm"] == "token":  # DAPO eq. 8
            loss = -objective / n_tokens
        else:  # Dr. GRPO
            loss = -objective / knobs["max_completion_length"] / len(used)
        if loss.requires_grad:  # else the clip has stopped every token
            loss.backward()
        total += loss.item()
    return total


def fix_logps(run, samples: list, weights: dict) -> None:
    """Log-probs of the reference and of the policy that has sampled."""
    models = {
        "reference": plain.load_model(run.start),
        "old": plain.with_weights(run.start, weights, run.knobs),
    }
    banned = plain.banned_tokens(run.start)
    for name, model in models.items():
        for sample in samples:
            with torch.no_grad():
                logps = plain.distributions(
                    model, sample.prompt, sample.ids, run.knobs["temperature"], banned
                )
            setattr(sample, name, plain.chosen(logps, sample.ids))


@cache
def expected_steps(folder: Path, name: str) -> list[SimpleNamespace]:
    """Every step of a run that has updates: their losses and gradients, numbers for the log."""
    run = recording(folder / name)
    banned = plain.banned_tokens(run.start)
    steps, done = [], 0
    for number in range(len(run.rollouts)):
        samples = samples_of(run, number)
        if not any(sample.used for sample in samples):
            continue
        fix_logps(run, samples, run.updates[done][0]["weights"])
        seen = {key: [] for key in ("entropy", "kl", "clip", "mismatch", "importance")}
        step = SimpleNamespace(samples=samples, losses=[], gradients=[], seen=seen)
        for _ in range(run.knobs["updates_per_rollout"]):
            weights = run.updates[done][0]["weights"]
            model = plain.with_weights(run.start, weights, run.knobs)
            step.losses.append(backward(model, samples, run.knobs, banned, seen))
            step.gradients.append(gradients_of(model, weights, run.knobs))
            done += 1
        steps.append(step)
    return steps


def gradients_of(model, weights: dict, knobs: dict) -> dict:
    """Gradients by name as they are recorded; those of LoRA's factors follow from the merged weight's."""
    result = {}
    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        factors = plain.lora_factors(name, weights)
        if factors is not None:  # W + scale * B A
            a, b = factors
            scale = knobs["lora_alpha"] / knobs["lora_rank"]
            layer = name.removesuffix(".weight")
            result[f"{layer}.lora_A.default.weight"] = scale * b.T @ gradient
            result[f"{layer}.lora_B.default.weight"] = scale * gradient @ a.T
        frozen = knobs["lora_rank"] or (knobs["freeze_vision"] and ".visual." in name)
        if not frozen:
            result[name] = gradient
    return result


def norm(gradients: dict) -> float:
    return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))


def assert_same_gradient(got: dict, want: dict, size: float) -> None:
    """All of it, and so each weight's part, to TOLERANCE * size."""
    assert got.keys() == want.keys()
    difference = {name: got[name] - want[name] for name in want}
    worst = max(difference, key=lambda name: difference[name].norm())
    assert norm(difference) < TOLERANCE * size, f"most of it in {worst}"


# -----------------------------------------------------------------------------
# a step of GRPO
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_gradient_is_the_papers(folder, name):
    """Every optimizer step gets the gradient of the whole step's loss, on every process."""
    run, steps = recording(folder / name), expected_steps(folder, name)
    per_step = run.knobs["updates_per_rollout"]
    assert len(run.updates) == len(steps) * per_step
    for number, ranks in enumerate(run.updates):
        want = steps[number // per_step].gradients
        # the clip takes most of the later gradients; what is left has the rounding errors of the whole
        size = max(norm(gradient) for gradient in want)
        for record in ranks:
            assert_same_gradient(record["gradient"], want[number % per_step], size)


@pytest.mark.parametrize("name", RUNS)
def test_log_is_of_the_same_step(folder, name):
    """Means over the tokens in the update, of all processes, and over the updates where there are several."""
    run, steps = recording(folder / name), expected_steps(folder, name)
    lines = [line for line in run.log if "loss" in line]
    for line, step in zip(lines, steps, strict=True):
        assert line["loss"] == pytest.approx(statistics.mean(step.losses), rel=1e-4, abs=1e-6)
        assert line["grad_norm"] == pytest.approx(norm(step.gradients[-1]), rel=1e-4)  # before clipping
        clipped = [clip.startswith("clipped") for clip in step.seen["clip"]]
        undecided = statistics.mean(clip == "no advantage" for clip in step.seen["clip"])
        least = statistics.mean(clipped)
        assert least - 1e-6 < line["clip_fraction"] < least + undecided + 1e-6
        for key in ("kl", "entropy", "mismatch", "importance"):
            assert line[key] == pytest.approx(statistics.mean(step.seen[key]), rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("name", RUNS)
def test_rewards_and_advantages(folder, name):
    """Of every step, also of one without an update: means in the log, each completion in rollouts.jsonl."""
    run = recording(folder / name)
    entries = records(folder / name, "rollouts.jsonl")
    assert len(run.log) == run.knobs["steps"]
    for number, line in enumerate(run.log):
        samples = samples_of(run, number)
        of_step = [entry for entry in entries if entry["step"] == number + 1]
        assert [entry["id"] for entry in of_step] == [s.prompt["row"]["id"] for s in samples[::GROUP]]
        shown = [completion for entry in of_step for completion in entry["completions"]]
        for completion, sample in zip(shown, samples, strict=True):
            assert completion["text"] == sample.text
            assert completion["reward"] == pytest.approx(sample.reward, abs=1e-6)
            assert completion["advantage"] == pytest.approx(sample.advantage, abs=1e-3)
            assert completion["tokens"] == len(sample.ids)
            assert completion["finished"] == sample.finished
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
        clips = {"inside"}
        if run.knobs["updates_per_rollout"] > 1:
            clips |= {"clipped above", "clipped below"}
        assert set(step.seen["clip"]) - {"pulled back", "no advantage"} == clips
        importance = step.seen["importance"]
        assert min(importance) < 0.8
        if run.knobs["importance_cap"]:
            assert 0 < importance.count(run.knobs["importance_cap"]) < len(importance)
    if run.knobs["updates_per_rollout"] > 1 and run.knobs["ratio_level"] == "token":
        assert any("pulled back" in step.seen["clip"] for step in steps)
    if run.knobs["drop_flat_groups"]:
        assert any(sample.flat for sample in samples)
    if run.knobs["mask_truncated"]:
        assert {sample.finished for sample in samples} == {True, False}
    if run.knobs["beta"]:  # the policy has left the reference
        assert max(steps[-1].seen["kl"]) > 1e-4
    if run.knobs["loss_norm"] == "constant" and run.start.name == "ends":
        # so that the most tokens that there may be are not the most that there are
        assert max(len(sample.ids) for sample in samples) < run.knobs["max_completion_length"]
    if run.knobs["micro_tokens"]:  # some group does not fit, and is cut in pieces
        longest = max(len(sample.prompt["input_ids"]) for sample in samples)
        assert longest + GROUP * LENGTH > run.knobs["micro_tokens"]


def test_a_process_may_have_nothing_to_learn_from(folder):
    """That happens in the run `idle`; the tests above hold for it, too."""
    used = []
    for step in expected_steps(folder, "idle"):
        for rank in range(RANKS):
            group = step.samples[rank * GROUP : rank * GROUP + GROUP]
            used.append(any(sample.used for sample in group))
    assert set(used) == {True, False}


def test_a_step_without_spread_is_no_update(folder):
    run = recording(folder / "nothing")
    assert run.log[0]["flat_groups"] == 1 and "loss" not in run.log[0]
    assert run.updates == []
    start = dict(plain.load_model(run.start).named_parameters())
    for name, weight in plain.load_model(run.end).named_parameters():
        assert torch.equal(weight, start[name])


# -----------------------------------------------------------------------------
# a step of SFT
# -----------------------------------------------------------------------------


def target_ids(run, row: dict) -> list[int]:
    """What the policy is to say, the end token included."""
    text = f"<answer> {row['solution']} </answer>"
    if run.knobs["target"] == "cot":
        text = f"<think> {row['thinking']} </think> {text}"
    tokenizer = AutoTokenizer.from_pretrained(run.start)
    return tokenizer(text + "<|im_end|>", add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", SFT_RUNS)
def test_sft_step_is_the_mean_over_all_target_tokens(folder, name):
    """- log p(token), over the targets of all processes, no token banned: loss, gradient and log."""
    run = recording(folder / name)
    for take, ranks, line in zip(run.takes, run.updates, run.log, strict=True):
        model = plain.with_weights(run.start, ranks[0]["weights"], run.knobs)
        prompts = [prompt for record in take for prompt in record["prompts"]]
        targets = [target_ids(run, prompt["row"]) for prompt in prompts]
        n_tokens = sum(len(ids) for ids in targets)
        total = 0.0
        for prompt, ids in zip(prompts, targets, strict=True):
            logp = plain.chosen(plain.distributions(model, prompt, ids), ids)
            loss = -logp.sum() / n_tokens
            loss.backward()
            total += loss.item()
        want = gradients_of(model, ranks[0]["weights"], run.knobs)
        for record in ranks:
            assert_same_gradient(record["gradient"], want, norm(want))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm(want), rel=1e-4)
        assert line["tokens_per_row"] == n_tokens / len(prompts)


# -----------------------------------------------------------------------------
# what reaches the optimizer and the checkpoint
# -----------------------------------------------------------------------------

SCHEDULES = {  # shares of the peak, worked out by hand; all other runs are constant
    "grpo": [0.5, 1, 1, 0.5],  # warm-up over 2 of 4 steps, then linear to 0
    "dr_grpo": [1, 0.5],  # cosine over 2 steps
    "sft": [1, 1, 0.5],  # warm-up of 1 step, cosine over the other 2
}


@pytest.mark.parametrize("name", LEARNING)
def test_learning_rate_of_every_step(folder, name):
    """In the log and in the optimizer, on both processes, in every update of a step."""
    run = recording(folder / name)
    shares = SCHEDULES.get(name, [1] * run.knobs["steps"])
    rates = [share * run.knobs["learning_rate"] for share in shares]
    assert [line["lr"] for line in run.log] == pytest.approx(rates)
    per_step = run.knobs.get("updates_per_rollout", 1)
    assert len(run.updates) == per_step * len(rates)
    for number, ranks in enumerate(run.updates):
        assert [record["lr"] for record in ranks] == pytest.approx([rates[number // per_step]] * RANKS)


@cache
def adamw(folder: Path, name: str) -> list[dict]:
    """The weights after every step from the recorded gradients: clipped to the norm grad_clip, in float64."""
    run = recording(folder / name)
    beta1, beta2 = run.knobs["adam_betas"]
    first, second = {}, {}  # moments
    result = []
    for t, ranks in enumerate(run.updates, start=1):
        record = ranks[0]
        clip = min(1.0, run.knobs["grad_clip"] / norm(record["gradient"]))
        after = {key: weight.double() for key, weight in record["weights"].items()}
        for key, gradient in record["gradient"].items():
            gradient = clip * gradient.double()
            first[key] = beta1 * first.get(key, 0) + (1 - beta1) * gradient
            second[key] = beta2 * second.get(key, 0) + (1 - beta2) * gradient.square()
            direction = (first[key] / (1 - beta1**t)) / ((second[key] / (1 - beta2**t)).sqrt() + 1e-8)
            after[key] -= record["lr"] * (direction + run.knobs["weight_decay"] * after[key])
        result.append(after)
    return result


@pytest.mark.parametrize("name", LEARNING)
def test_weights_move_by_adamw_at_that_rate(folder, name):
    """Each step starts from the weights that the one before it left; the last ones are exported."""
    run = recording(folder / name)
    steps = adamw(folder, name)
    exported = {key: weight.detach() for key, weight in plain.load_model(run.end).named_parameters()}
    left = [ranks[0]["weights"] for ranks in run.updates[1:]] + [exported]
    for want, got, ranks in zip(steps, left, run.updates, strict=True):
        for key in want.keys() & got.keys():  # LoRA's factors are not exported, see below
            difference = (got[key] - want[key]).abs().max().item()
            assert difference < 0.01 * ranks[0]["lr"] + 1e-6 * got[key].abs().max().item(), key


def test_lora_is_exported_merged(folder):
    """The checkpoint is W + alpha / rank * B A of the last factors; everything else is as it was."""
    run = recording(folder / "lora")
    last = adamw(folder, "lora")[-1]
    exported = dict(plain.load_model(run.end).named_parameters())
    adapted = 0
    for name, weight in plain.load_model(run.start).named_parameters():
        if plain.lora_factors(name, last) is None:
            assert torch.equal(exported[name], weight), name
            continue
        adapted += 1
        want = plain.merged(name, last, run.knobs)
        assert (exported[name] - want).abs().max() < 1e-5, name
        assert (exported[name] - weight).abs().max() > 1e-3, name
    assert adapted == 2 * 7  # layers, linear maps in each


# -----------------------------------------------------------------------------
# what reaches the sampler
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS | SFT_RUNS)
def test_rows_come_once_an_epoch(folder, name):
    """None twice, on whatever process, before all have come; the next epoch has another order."""
    run = recording(folder / name)
    rows = [[], []]  # of each process
    for take in run.takes:
        for rank, record in enumerate(take):
            rows[rank] += [prompt["row"]["id"] for prompt in record["prompts"]]
    share = ROWS // RANKS  # of a process, in an epoch
    for start in range(0, len(rows[0]), share):
        epoch = [row for of_rank in rows for row in of_rank[start : start + share]]
        assert len(set(epoch)) == len(epoch)
    if len(rows[0]) >= 2 * share:
        assert rows[0][:share] != rows[0][share : 2 * share]


def test_another_seed_is_another_run(folder):
    """`grpo` and `idle` differ in it: the order of the rows, the seeds of the completions."""
    rows, seeds = [], []
    for name in ("grpo", "idle"):
        of_rank = [ranks[0] for ranks in recording(folder / name).rollouts]
        in_order = [prompt["row"]["id"] for record in of_rank for prompt in record["prompts"]]
        rows.append(in_order[: ROWS // RANKS])
        seeds.append(of_rank[0]["settings"]["seeds"][0])
    assert rows[0] != rows[1] and seeds[0] != seeds[1]


@pytest.mark.parametrize("name", RUNS)
def test_every_completion_is_drawn_afresh(folder, name):
    """The step's prompts, with seeds that no other step, process or prompt of the run has."""
    run = recording(folder / name)
    seeds, texts = [], []
    for ranks, take in zip(run.rollouts, run.takes, strict=True):
        for record, taken in zip(ranks, take, strict=True):
            settings = record["settings"]
            assert settings["n"] == run.knobs["group_size"]
            assert settings["max_tokens"] == run.knobs["max_completion_length"]
            assert settings["temperature"] == run.knobs["temperature"]
            for seed in settings["seeds"]:
                seeds += [seed + i for i in range(GROUP)]  # the sampler draws completion i with seed + i
            texts += [tuple(ids) for group in record["completions"] for ids, _, _ in group]
            asked = [prompt["row"]["id"] for prompt in record["prompts"]]
            assert asked == [prompt["row"]["id"] for prompt in taken["prompts"]]
    assert len(seeds) == run.knobs["steps"] * run.knobs["prompts_per_step"] * GROUP
    assert len(set(seeds)) == len(seeds)
    if run.start.name != "ends":  # there short completions do repeat
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", RUNS)
def test_samples_come_from_the_current_policy(folder, name):
    """The sampler's own log-probs, before the shift, are those of the weights that are updated next."""
    for step in expected_steps(folder, name):
        for sample in step.samples:
            assert (sample.old - torch.tensor(sample.sampled_logps)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_evaluation_is_greedy_with_the_weights_of_its_step(folder, name):
    """The first eval_rows rows, each on one process; each token is the most probable one that is allowed."""
    run = recording(folder / name)
    banned, ends = plain.banned_tokens(run.start), plain.end_tokens(run.start)
    rows = [json.loads(line)["id"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    lines = [line for line in records(folder / name) if "eval_n" in line]
    assert [line["step"] for line in lines] == {"grpo": [0, 2, 4], "sft": [3]}[name]
    for line, ranks in zip(lines, run.evaluations, strict=True):
        model = plain.load_model(run.end)
        if line["step"] < run.knobs["steps"]:
            model = plain.with_weights(run.start, run.updates[line["step"]][0]["weights"], run.knobs)
        asked, lengths = [], []
        for record in ranks:
            assert record["settings"]["n"] == 1
            for prompt, group in zip(record["prompts"], record["completions"], strict=True):
                ids, _, finished = group[0]
                with torch.no_grad():
                    logps = plain.distributions(model, prompt, ids, banned=banned)
                assert (logps.max(-1).values - plain.chosen(logps, ids)).max() < 1e-4
                assert finished == (ids[-1] in ends)
                assert finished or len(ids) == run.knobs["max_completion_length"]
                asked.append(prompt["row"]["id"])
                lengths.append(len(ids))
        assert sorted(asked) == sorted(rows[: run.knobs["eval_rows"]])
        assert line["eval_n"] == run.knobs["eval_rows"]
        assert line["eval_length"] == pytest.approx(statistics.mean(lengths))
