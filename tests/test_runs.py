"""Whole runs of the real scripts: what they write, that they survive being killed, and that 1 and 2
processes compute the same.

Every run starts from a policy that 60 steps of SFT have taught the format, so that groups have spread and
the updates are not empty.

    python -m pytest tests/test_runs.py        # 2 CPU cores, about 4 minutes
"""

import json
import math
import shutil
import signal

import pytest
import torch
from helpers import GRPO, SCENES, SFT, SOURCES, Script, records, run
from published import write

import data
import qwen

pytestmark = pytest.mark.slow
STEPS, P, G = 6, 4, 4
KEYS = {
    "step",
    "seconds",
    "seconds_data",
    "seconds_rollout",
    "seconds_reward",
    "seconds_reference",
    "seconds_old",
    "seconds_update",
    "seconds_sync",
    "reward",
    "reward_accuracy",
    "reward_format",
    "reward_std",
    "length",
    "finished",
    "flat_groups",
    "skipped_rows",
    "loss",
    "lr",
    "grad_norm",
    "clip_fraction",
    "entropy",
    "kl",
    "mismatch",
    "importance",
    "epoch",
    "completions_per_s",
    "tokens_per_s",
    "memory_gib",
}
EVAL_KEYS = {"eval_accuracy", "eval_format", "eval_length", "eval_n"}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def untrained(tiny_folder, tmp):
    """The tiny model with a generation_config.json as published ones are: transformers reads it and
    refuses to write it.
    """
    folder = tmp / "base"
    shutil.copytree(tiny_folder(), folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.01, "top_k": 1}')
    return folder


@pytest.fixture(scope="module")
def sft(untrained, tmp):
    """out_dir of the cold start."""
    run(
        [
            *SFT,
            f"--model={untrained}",
            f"--out_dir={tmp}/sft",
            "--steps=60",
            "--batch_size=16",
            "--learning_rate=2e-3",
            "--warmup_steps=10",
            "--data_source=scenes:clevr?rows=960&seed=1&layout=grid&objects=1-2",
            f"--eval_source={SOURCES}",
            "--eval_interval=40",
        ],
        tmp / "sft.log",
    )
    return tmp / "sft"


@pytest.fixture(scope="module")
def start(sft):
    return str(sft / "step-000060")


@pytest.fixture(scope="module")
def whole(start, tmp):
    """out_dir of an uninterrupted GRPO run with vLLM, one process, ZeRO-0."""
    run(command(start, tmp / "whole"), tmp / "whole.log")
    return tmp / "whole"


def command(start, out_dir):
    return [
        *GRPO,
        f"--model={start}",
        f"--out_dir={out_dir}",
        f"--steps={STEPS}",
        "--save_interval=2",
        "--keep=2",
        "--rollout=vllm",
        "--thumbnails=1",
        f"--eval_source={SOURCES}",
        "--eval_rows=8",
        "--eval_interval=3",
    ]


def shown(out_dir):
    """{(step, row id): [texts]} of rollouts.jsonl; a step must not show a row twice."""
    entries = records(out_dir, "rollouts.jsonl")
    result = {(e["step"], e["id"]): [c["text"] for c in e["completions"]] for e in entries}
    assert len(result) == len(entries)
    return result


def steps_of(out_dir):
    return [r["step"] for r in records(out_dir) if "loss" in r or r["step"]]


def all_finite(record):
    return all(math.isfinite(v) for v in record.values())


# -----------------------------------------------------------------------------
# SFT
# -----------------------------------------------------------------------------


def test_sft_learns(sft):
    log = records(sft)
    losses = [r["loss"] for r in log]
    assert [r["step"] for r in log] == list(range(1, 61)) and all(map(all_finite, log))
    assert 6 < losses[0] < 8  # a uniform guess among about 1,000 tokens costs log(1000) = 6.9
    assert sum(losses[35:40]) / 5 < 1.5 and sum(losses[-5:]) / 5 < 0.7
    assert json.loads((sft / "config.json").read_text())["steps"] == 60
    assert [(r["step"], r["eval_n"]) for r in log if "eval_format" in r] == [(40, 8), (60, 8)] and log[-1][
        "eval_format"
    ] > 0.5


def test_gradient_norm_is_logged_without_zero(sft):
    assert all(r["grad_norm"] > 0 for r in records(sft))


def test_sft_loss_is_on_the_target_alone_and_resumes(tiny_folder, tmp):
    """The first loss of a run over four rows, computed by transformers alone; and a stopped run ends with
    the losses of the whole one.
    """
    folder, source = tiny_folder(), "scenes:clevr?rows=4&seed=6&layout=grid&objects=1-4"
    base = [*SFT, f"--model={folder}", f"--data_source={source}", "--save_interval=3"]
    run([*base, f"--out_dir={tmp}/sft_whole", "--steps=6"], tmp / "sft_whole.log")
    run([*base, f"--out_dir={tmp}/sft_part", "--steps=3"], tmp / "sft_part.log")
    assert "resume: step 3" in run([*base, f"--out_dir={tmp}/sft_part", "--steps=6"], tmp / "sft_part2.log")
    whole, part = records(tmp / "sft_whole"), records(tmp / "sft_part")
    assert [r["step"] for r in part] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in part] == pytest.approx([r["loss"] for r in whole], rel=1e-3)
    assert len({round(r["loss"], 4) for r in whole}) == 6

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
        AutoProcessor.from_pretrained(folder),
    )
    rows, on_target, on_all, n_target, n_all = data.load_rows(source), 0.0, 0.0, 0, 0
    for i in range(4):
        row = rows[i]
        text = f"{row['problem']}  Output the thinking process in <think> </think> "
        text += "and final answer (number) in <answer> </answer> tags."
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        target = f"<think> {row['thinking']} </think> <answer> {row['solution']} </answer><|im_end|>"
        inputs = processor(text=[prompt + target], images=row["images"], return_tensors="pt")
        with torch.no_grad():
            logp = model(**inputs).logits[0, :-1].log_softmax(-1)
        nll = -logp.gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
        length = len(processor(text=[prompt], images=row["images"])["input_ids"][0])
        on_target, n_target = on_target + nll[length - 1 :].sum().item(), n_target + len(nll) - length + 1
        on_all, n_all = on_all + nll.sum().item(), n_all + len(nll)
    assert whole[0]["tokens_per_row"] == n_target / 4
    assert whole[0]["loss"] == pytest.approx(on_target / n_target, rel=1e-4)
    assert abs(on_all / n_all - on_target / n_target) > 1e-2, "a loss over all tokens would be another number"


# -----------------------------------------------------------------------------
# GRPO: what a run writes
# -----------------------------------------------------------------------------


def test_metrics(whole):
    log = records(whole)
    assert [r["step"] for r in log] == [0, 1, 2, 3, 4, 5, 6]
    assert set(log[0]) == {"step"} | EVAL_KEYS
    for r in log[1:]:
        assert not KEYS - set(r)
        assert (set(r) >= EVAL_KEYS) == (r["step"] in (3, 6))
        assert all_finite(r)
        assert r["mismatch"] < 1e-5 and r["importance"] == pytest.approx(
            1, abs=1e-4
        )  # float32: vLLM and the trainer agree
        assert r["kl"] >= 0 and r["clip_fraction"] == 0 and 0 < r["length"] <= 24 and r["skipped_rows"] == 0
        assert r["reward"] == pytest.approx(r["reward_accuracy"] + r["reward_format"], abs=1e-6)
    assert log[1]["kl"] < 1e-6 and log[-1]["kl"] > 1e-6, "the policy starts at the reference and leaves it"
    assert any(r["flat_groups"] < 1 for r in log[1:]) and log[-1]["reward_std"] >= 0
    assert log[-1]["epoch"] == pytest.approx(STEPS * P / 200)


def test_rollouts(whole):
    entries, log = records(whole, "rollouts.jsonl"), {r["step"]: r for r in records(whole)}
    assert len(entries) == STEPS * P and len(shown(whole)) == STEPS * P
    for step in range(1, STEPS + 1):
        group = [e for e in entries if e["step"] == step]
        completions = [c for e in group for c in e["completions"]]
        assert len(group) == P and len(completions) == P * G
        assert [len(e["images"]) for e in group] == [1, 0, 0, 0]  # thumbnails=1
        assert sum(c["reward"] for c in completions) / (P * G) == pytest.approx(log[step]["reward"], abs=1e-6)
        assert sum(c["tokens"] for c in completions) / (P * G) == pytest.approx(log[step]["length"])
        assert sum(c["finished"] for c in completions) / (P * G) == pytest.approx(log[step]["finished"])
        for e in group:
            assert (
                e["problem"]
                and e["solution"]
                and sum(c["advantage"] for c in e["completions"]) == pytest.approx(0, abs=1e-3)
            )
            assert all(c["reward"] == sum(c["parts"].values()) for c in e["completions"])
    config, header = (json.loads((whole / name).read_text()) for name in ("config.json", "run.json"))
    assert config["group_size"] == G and config["adam_betas"] == [0.9, 0.999]
    assert {"command", "commit", "versions", "device", "started"} <= set(header) and "torch" in header[
        "versions"
    ]


def test_checkpoints(whole, start, untrained):
    """The two newest are kept, they load with transformers alone, the weights have moved from the start, and
    the other files are those of the base model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert sorted(p.name for p in whole.glob("step-*")) == ["step-000004", "step-000006"]
    assert sorted(p.name for p in (whole / "resume").iterdir()) == ["step-000004", "step-000006"]
    before, after = (
        AutoModelForImageTextToText.from_pretrained(p).state_dict() for p in (start, whole / "step-000006")
    )
    assert before.keys() == after.keys() and all(x.isfinite().all() for x in after.values())
    moved = [k for k in after if not torch.equal(before[k], after[k])]
    assert len(moved) > 0.9 * len(after), "all parts were trained, the vision tower included"
    assert len(AutoProcessor.from_pretrained(whole / "step-000006").tokenizer) == len(
        qwen.load_processor(start).tokenizer
    )
    # everything but the weights is byte for byte that of the base model, two trainings ago
    names = {path.name for path in untrained.iterdir()}
    assert {path.name for path in (whole / "step-000006").iterdir()} == names | {"manifest.json"}
    for name in names - {"model.safetensors"}:
        assert (whole / "step-000006" / name).read_bytes() == (untrained / name).read_bytes()


def test_eval(whole, tmp):
    """Both backends of eval.py read the checkpoint, and their numbers follow from the verdicts in the JSON;
    greedy outputs are the same.
    """
    from rewards import score

    texts = {}
    for backend in ("hf", "vllm"):
        out = run(
            [
                "eval.py",
                f"--model={whole}/step-000006",
                "--dtype=float32",
                f"--backend={backend}",
                f"--data_source={SOURCES}",
                "--limit=8",
                "--batch_rows=5",
                "--max_prompt_length=128",
                "--max_completion_length=24",
                f"--out_dir={tmp}/eval_{backend}",
            ],
            tmp / "eval.log",
        )
        got = json.loads((tmp / f"eval_{backend}" / "eval.json").read_text())
        outputs = [r["outputs"][0] for r in got["results"]]
        assert got["n"] == len(outputs) == 8 and got["skipped"] == 0
        for key in ("accuracy", "format", "lenient", "length", "finished"):
            value = "tokens" if key == "length" else key
            assert got[key] == pytest.approx(sum(o[value] for o in outputs) / 8)
        for r in got["results"]:
            assert score(r["outputs"][0]["text"], r)["accuracy"] == r["outputs"][0]["accuracy"]
        assert got["interval"][0] <= got["accuracy"] <= got["interval"][1] and f"{got['accuracy']:.1%}" in out
        assert (
            got["accuracy"] == records(whole)[-1]["eval_accuracy"]
        )  # the trainer's own evaluation after its last step
        texts[backend] = [o["text"] for o in outputs]
    assert texts["hf"] == texts["vllm"]


def test_transformers_rollouts_and_every_other_objective(start, tmp):
    """rollout=hf, and the knobs that the default leaves off, two updates per rollout among them: there the
    clip acts.
    """
    run(
        [
            *GRPO,
            f"--model={start}",
            f"--out_dir={tmp}/knobs",
            "--steps=3",
            "--rollout=hf",
            "--updates_per_rollout=2",
            "--beta=0.0",
            "--adv_norm=batch",
            "--loss_norm=token",
            "--ratio_level=sequence",
            "--mask_truncated=True",
            "--drop_flat_groups=True",
            "--clip_low=0.01",
            "--clip_high=0.01",
            "--learning_rate=3e-3",
            "--freeze_vision=True",
            "--grad_checkpointing=True",
        ],
        tmp / "knobs.log",
    )
    log = records(tmp / "knobs")
    assert [r["step"] for r in log] == [1, 2, 3] and all(map(all_finite, log))
    updated = [r for r in log if "loss" in r]
    assert updated and all(r["kl"] == 0 and r["mismatch"] < 1e-5 for r in updated)
    assert any(r["clip_fraction"] > 0 for r in updated)
    before, after = (
        qwen.load_model(str(p), "float32", say=lambda line: None)
        for p in (start, tmp / "knobs" / "step-000003")
    )
    frozen = {k: torch.equal(v, dict(after.named_parameters())[k]) for k, v in before.named_parameters()}
    assert all(same for k, same in frozen.items() if ".visual." in k) and not all(frozen.values())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_other_families(tiny_folder, tmp, family):
    """vLLM and the trainer agree on them too, at the start and after an update. Weight decay alone moves
    these random weights.
    """
    run(
        [
            *GRPO,
            f"--model={tiny_folder(family)}",
            f"--out_dir={tmp}/{family}",
            "--steps=2",
            "--weight_decay=2.0",
            "--learning_rate=0.1",
            "--grad_clip=1e-9",
        ],
        tmp / f"{family}.log",
    )
    log = records(tmp / family)
    assert [r["step"] for r in log] == [1, 2] and all(r["mismatch"] < 1e-5 for r in log)
    assert log[1]["kl"] > 1e-4, "the update should have changed the policy"


# -----------------------------------------------------------------------------
# stopping
# -----------------------------------------------------------------------------


def test_killed_run_resumes(whole, start, tmp):
    """SIGKILL after step 3, the same command again: the rows, the steps and (nearly) the losses of the run
    that was not killed.
    """
    out_dir = tmp / "killed"
    script = Script(command(start, out_dir), tmp / "killed.log")
    script.wait_for_step(out_dir, 3)
    script.kill()
    assert max(steps_of(out_dir)) < STEPS, "the run was over before it could be killed"
    text = run(command(start, out_dir), tmp / "killed2.log")
    assert "resume: step 2" in text or "resume: step 4" in text
    one, two = records(whole), records(out_dir)
    assert [r["step"] for r in two] == [r["step"] for r in one]  # no step twice, none missing
    assert shown(out_dir).keys() == shown(whole).keys()
    assert shown(out_dir) == shown(whole)
    for a, b in zip(one[1:], two[1:], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3, abs=1e-5)
        assert b["reward"] == a["reward"] and b["epoch"] == a["epoch"]
    assert (out_dir / "step-000006").is_dir() and not list(out_dir.rglob("*.tmp"))


STOPS = [(signal.SIGTERM, SFT), (signal.SIGINT, [*GRPO, "--rollout=hf"])]


@pytest.mark.parametrize(("number", "base"), STOPS, ids=["SIGTERM-sft", "SIGINT-grpo"])
def test_signal_saves_and_resumes(start, tmp, number, base):
    out_dir = tmp / f"signal{number}"
    base = [*base, f"--model={start}", f"--out_dir={out_dir}"]
    script = Script([*base, "--steps=100000"], tmp / "signal.log")
    script.wait_for_step(out_dir, 2)
    script.process.send_signal(number)
    assert script.wait(60) == 0, script.text[-3000:]
    last = steps_of(out_dir)[-1]
    assert f"stopped by a signal at step {last}" in script.text and last < 100000
    assert (out_dir / f"step-{last:06d}" / "config.json").is_file()
    text = run([*base, f"--steps={last + 2}"], tmp / "signal2.log")
    assert f"resume: step {last}" in text and steps_of(out_dir) == list(range(1, last + 3))


# -----------------------------------------------------------------------------
# several processes
# -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(start, tmp):
    """out_dirs of three steps on two processes, by ZeRO stage: the command of `whole`, whose first three
    steps they should repeat.
    """
    for stage in (2, 3):
        run(
            [*command(start, tmp / f"zero{stage}"), "--steps=3", f"--zero_stage={stage}"],
            tmp / f"zero{stage}.log",
            ranks=2,
            timeout=240,
        )
    return {stage: tmp / f"zero{stage}" for stage in (2, 3)}


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_repeat_one(whole, sharded, stage):
    """Same rows, same seeds, so the same completions and the same losses, whatever ZeRO shards; also after
    updates and syncs.
    """
    one, two = records(whole)[:4], records(sharded[stage])
    assert [r["step"] for r in two] == [0, 1, 2, 3]
    want = {k: v for k, v in shown(whole).items() if k[0] <= 3}
    assert shown(sharded[stage]) == want
    assert two[0] == pytest.approx(one[0])
    for a, b in zip(one[1:], two[1:], strict=True):
        for key in (
            "reward",
            "reward_std",
            "length",
            "flat_groups",
            "finished",
            "entropy",
            "kl",
            "loss",
            "clip_fraction",
            "lr",
            "epoch",
        ):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=2e-6), key
        assert b["mismatch"] < 1e-5
    assert two[3]["eval_accuracy"] == pytest.approx(one[3]["eval_accuracy"]) and two[3]["eval_n"] == 8


def test_zero_stages_agree_on_the_gradient(sharded):
    norms = [[r["grad_norm"] for r in records(sharded[stage])[1:]] for stage in (2, 3)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and min(norms[0]) > 0


def test_text_only_rows_among_images_do_not_hang(start, tmp):
    """ZeRO-3 gathers weights in every forward pass: a process without images must not leave one with images
    waiting.
    """
    rows = data.load_rows(SCENES)
    with open(tmp / "mixed.jsonl", "w") as file:
        for i in range(16):
            row = rows[i]
            row["images"][0].save(tmp / f"{i}.png")
            images = [] if i % 2 else [f"{i}.png"]
            file.write(
                json.dumps(
                    {
                        "id": f"mixed{i}",
                        "problem": row["problem"],
                        "solution": row["solution"],
                        "images": images,
                    }
                )
                + "\n"
            )
    run(
        [
            *GRPO,
            f"--model={start}",
            f"--out_dir={tmp}/mixed",
            "--steps=4",
            f"--data_source={tmp}/mixed.jsonl",
            "--micro_tokens=200",
            "--zero_stage=3",
        ],
        tmp / "mixed.log",
        ranks=2,
        timeout=180,
    )
    log = records(tmp / "mixed")
    assert (
        [r["step"] for r in log] == [1, 2, 3, 4]
        and all(map(all_finite, log))
        and all(r["mismatch"] < 1e-5 for r in log)
    )
    # some step must have given one process text alone and the other an image, or this has shown nothing
    ids = [e["id"] for e in records(tmp / "mixed", "rollouts.jsonl")]
    text_only = [
        [int(i[5:]) % 2 for i in ids[n : n + 2]] for n in range(0, 16, 2)
    ]  # two rows of each process and step
    assert any(all(one) != all(other) for one, other in zip(text_only[::2], text_only[1::2], strict=True))


# -----------------------------------------------------------------------------
# LoRA
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks, stage", [(1, 0), (2, 3)])
def test_lora(start, tmp, ranks, stage):
    """vLLM gets the merged weights, the reference is the policy without adapters, the checkpoint is an
    ordinary one.
    """
    out_dir = tmp / f"lora{stage}"
    run(
        [
            *GRPO,
            f"--model={start}",
            f"--out_dir={out_dir}",
            "--steps=3",
            "--rollout=vllm",
            "--lora_rank=4",
            "--beta=0.1",
            "--learning_rate=1e-2",
            f"--zero_stage={stage}",
        ],
        tmp / f"lora{stage}.log",
        ranks=ranks,
    )
    logged = records(out_dir)
    assert (
        logged[0]["kl"] < 1e-9 < 1e-5 < logged[-1]["kl"]
    )  # B starts at 0, so at first policy and reference are one
    assert all(r["mismatch"] < 1e-5 for r in logged)  # vLLM samples from what the trainer trains
    before, after = (
        dict(qwen.load_model(str(path), "float32", say=lambda line: None).named_parameters())
        for path in (start, out_dir / "step-000003")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (
        before.keys() == after.keys()
        and changed
        and all("language_model" in n and "_proj" in n for n in changed)
    )


def test_lora_sft_resumes(start, tmp):
    flags = [
        *SFT,
        f"--model={start}",
        "--lora_rank=4",
        "--target=answer",
        "--learning_rate=1e-2",
        "--save_interval=2",
    ]
    run([*flags, f"--out_dir={tmp}/lora_sft", "--steps=4"], tmp / "lora_sft.log")
    run([*flags, f"--out_dir={tmp}/lora_cut", "--steps=2"], tmp / "lora_cut.log")
    run([*flags, f"--out_dir={tmp}/lora_cut", "--steps=4"], tmp / "lora_cut.log")
    assert [r["loss"] for r in records(tmp / "lora_cut")] == pytest.approx(
        [r["loss"] for r in records(tmp / "lora_sft")], abs=1e-6
    )


# -----------------------------------------------------------------------------
# the published training sets
# -----------------------------------------------------------------------------

SETS = ("clevr", "clevr_complex", "clevr_r1", "geoqa", "openv_visual", "openv_text")


def test_grpo_on_a_mixture_of_all_published_sets(start, tmp):
    """Counts, formulas, boxes and text-only rows in one batch, scored in processes, with rewards that
    compare a group.
    """
    source = ",".join(f"{write(name, tmp / 'sets')}:1" for name in SETS)
    out_dir, weights = tmp / "mixture", "{'accuracy': 1.0, 'format': 0.5, 'length': 0.1, 'repetition': 0.1}"
    run(
        [
            *GRPO,
            f"--model={start}",
            f"--out_dir={out_dir}",
            f"--data_source={source}",
            f"--reward_weights={weights}",
            "--steps=4",
            "--prompts_per_step=6",
            "--rollout=hf",
            "--max_prompt_length=1024",
            "--reward_workers=2",
            "--thumbnails=6",
        ],
        tmp / "mixture.log",
        env={"DEBUG_MODE": "true", "LOG_PATH": f"{tmp}/completions.txt"},
    )
    entries = records(out_dir, "rollouts.jsonl")
    for step in range(
        1, 5
    ):  # a block of the schedule is as long as a step here, so every step has a row of every set
        assert {e["id"].split(":")[0].split("/")[0] for e in entries if e["step"] == step} == set(SETS)
    parts = [c["parts"] for e in entries for c in e["completions"]]
    assert all(set(p) == {"accuracy", "format", "length", "repetition"} for p in parts)
    assert all(math.isfinite(c["reward"]) for e in entries for c in e["completions"])
    assert all(all_finite(r) for r in records(out_dir))
    assert {len(e["images"]) for e in entries} == {0, 1}
    assert (tmp / "completions.txt").read_text().count("content: ") == 4 * 6 * 4


def test_sft_on_published_reasoning(start, tmp):
    out_dir = tmp / "sft_published"
    run(
        [
            *SFT,
            f"--model={start}",
            f"--out_dir={out_dir}",
            f"--data_source={write('clevr_r1', tmp / 'sets')}",
            "--steps=2",
            "--max_prompt_length=256",
        ],
        tmp / "sft_published.log",
    )
    assert len([r for r in records(out_dir) if "loss" in r]) == 2
