"""What the loop hands to vLLM: the weights of every step, merged where there is LoRA, and empty caches.

Runs of the real trainer with a real engine are recorded. There are two rows, so that every step has the same
two prompts and every cache would be hit.

    python -m pytest tests/test_engines.py        # 2 CPU cores, about 45 seconds
"""

import json
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from helpers import TINY, run
from PIL import Image
from plain import recording

import data
import qwen

pytestmark = pytest.mark.slow
STEPS = 4
STALE = 2  # this sync of the first run leaves the prefix cache as it is
GRPO = [
    "train_grpo.py",
    *TINY,
    "--rollout=vllm",
    f"--steps={STEPS}",
    "--prompts_per_step=2",
    "--group_size=3",
    "--max_completion_length=8",
    "--temperature=0.8",
    "--reward_weights={'letters:share': 1.0}",
    "--reward_workers=0",
    "--template=direct",
    "--max_prompt_length=300",
    f"--min_pixels={192 * 28 * 28}",  # 192 visual tokens: vLLM caches blocks of 128
    "--learning_rate=3e-3",
    "--beta=0.0",
    "--eval_interval=1",
]
RUNS = {"whole": [], "lora": ["--lora_rank=4", "--lora_alpha=12.0", "--steps=2", "--learning_rate=1e-2"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    qwen.build_tiny(str(folder / "tiny"), data.tiny_corpus(), hidden=64, layers=2)
    source = folder / "rows.jsonl"
    lines = []
    for i in range(2):
        picture = np.random.default_rng(i).integers(0, 256, (112, 84, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        row = {"id": f"row{i}", "problem": "How many?", "solution": "3", "images": [f"{i}.png"]}
        lines.append(json.dumps(row) + "\n")
    source.write_text("".join(lines))
    jobs = []
    for name, changes in RUNS.items():
        flags = [f"--model={folder}/tiny", f"--out_dir={folder}/{name}", f"--data_source={source}"]
        command = [*GRPO, *flags, f"--eval_source={source}", *changes]
        jobs.append({"folder": f"{folder}/{name}/records", "command": command})
    jobs[0]["stale"] = STALE
    (folder / "runs.json").write_text(json.dumps(jobs))
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    run(["tests/recorder.py", f"{folder}/runs.json"], folder / "log", env=environment)
    yield folder
    for path in folder.rglob("*.pt"):  # 150 MB; the logs stay
        path.unlink()


def weights_before(run, optimizer_steps: int) -> dict:
    """The policy after so many optimizer steps, from the trainer's side, by checkpoint names; LoRA merged."""
    if optimizer_steps == len(run.updates):
        return dict(plain.load_model(run.end).named_parameters())
    recorded = run.updates[optimizer_steps][0]["weights"]
    names = dict(plain.load_model(run.start).named_parameters())
    return {name: plain.merged(name, recorded, run.knobs) for name in names}


@pytest.mark.parametrize("name", RUNS)
def test_every_sync_brings_the_weights_of_its_step(folder, name):
    """All of them, tied ones under each of their names, and others than the sync before."""
    run = recording(folder / name)
    assert len(run.syncs) == len(run.updates) == run.knobs["steps"]
    before = weights_before(run, 0)
    for number, (sync,) in enumerate(run.syncs, start=1):
        want, got = weights_before(run, number), sync["weights"]
        assert got.keys() == want.keys() | {"lm_head.weight"}
        assert torch.equal(got["lm_head.weight"], got["model.language_model.embed_tokens.weight"])
        for key, weight in want.items():
            assert (got[key] - weight).abs().max() < 1e-6, key
        moved = [key for key in want if not torch.equal(got[key], before[key])]
        assert len(moved) == {"whole": len(want), "lora": 2 * 7}[name]  # layers, linear maps in each
        before = got


def distance(run, record: dict) -> float:
    """How far vLLM's log-probs are from those of the trainer's weights, at the worst token.

    vLLM's greedy choices count by how much less likely they are than the most probable token.
    """
    model = plain.with_weights(run.start, weights_before(run, record["steps"]), run.knobs)
    banned = plain.banned_tokens(run.start)
    temperature = record["settings"]["temperature"]
    worst = 0.0
    for prompt, group in zip(record["prompts"], record["completions"], strict=True):
        for ids, logps, _ in group:
            with torch.no_grad():
                of_all = plain.distributions(model, prompt, ids, temperature or 1.0, banned)
            other = torch.tensor(logps) if temperature else of_all.max(-1).values
            difference = plain.chosen(of_all, ids) - other
            worst = max(worst, difference.abs().max().item())
    return worst


@pytest.mark.parametrize("name", RUNS)
def test_vllm_samples_from_the_trainers_weights(folder, name):
    """In every rollout and every evaluation; but not after the sync that left the prefix cache as it was."""
    run = recording(folder / name)
    assert len(run.rollouts) == run.knobs["steps"] and len(run.evaluations) == run.knobs["steps"] + 1
    for (record,) in run.rollouts + run.evaluations:
        assert record["syncs"] == record["steps"], "each optimizer step is followed by a sync"
        if name == "whole" and record["syncs"] == STALE:
            assert distance(run, record) > 1e-2, "a mixture of two policies"
        else:
            assert distance(run, record) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_every_sync_empties_every_cache(folder, name):
    """Each of the three holds something when the new weights have been loaded, and nothing after its reset.

    What becomes of a run in which one reset is missing:
      prefix    log-probs of a mixture of two policies, see above
      encoder   the engine waits for ever for an image: its scheduler takes it for encoded, but the outputs
                went when the weights came
      mm        nothing with this vLLM, as processed pixels do not depend on the weights
    """
    run = recording(folder / name)
    for number, (sync,) in enumerate(run.syncs, start=1):
        loading, *resets = sync["events"]
        assert loading["call"] == "collective_rpc" and loading["arguments"] == ("reload_weights",)
        assert all(entries > 0 for entries in loading["after"].values())
        emptied = set()
        for reset in resets:
            cache = reset["call"].removeprefix("reset_").removesuffix("_cache")
            assert reset["before"][cache] > 0 and reset["after"][cache] == 0
            emptied.add(cache)
        left_out = {"prefix"} if name == "whole" and number == STALE else set()
        assert emptied == {"prefix", "mm", "encoder"} - left_out
