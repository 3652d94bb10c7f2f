"""vLLM on processes of its own: the completions are those of the colocated engine, its weights those of the
trainers after every step, and when a process dies or Ctrl-C comes, all of them end and nothing is lost.

    python -m pytest tests/test_samplers.py        # 2 CPU cores, about 90 seconds
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import GRPO, ROOT, Script, records, run

import checkpoint
import data
import memory
import qwen
import samplers
from configurator import find_block

DEFAULTS = find_block(str(ROOT / "train_grpo.py"))[1]
STEPS = 3
COMMAND = [
    *GRPO,
    "--rollout=vllm",
    "--zero_stage=2",
    "--reward_weights={'letters:share': 1.0}",
    "--reward_workers=0",
    "--learning_rate=3e-3",
    "--thumbnails=0",
    # one held-out row: the second trainer has none
    "--eval_source=scenes:clevr?rows=1&seed=3&layout=grid&objects=1-2",
    "--eval_interval=2",
    f"--steps={STEPS}",
]
HERE = {"PYTHONPATH": str(Path(__file__).parent)}  # where letters.py is


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samplers")
    qwen.build_tiny(str(folder / "tiny"), data.tiny_corpus(), hidden=128, layers=1)  # 4 attention heads
    return folder


def command(folder, name: str, *flags) -> list[str]:
    return [*COMMAND, f"--model={folder / 'tiny'}", f"--out_dir={folder / name}", *flags]


def train(folder, name: str, *flags, ranks: int = 3) -> Path:
    """out_dir of a run to its end."""
    run(command(folder, name, *flags), folder / f"{name}.log", ranks=ranks, env=HERE)
    return folder / name


def completions(out_dir: Path) -> dict:
    """{(step, row id): [(text, tokens)]} of a run."""
    found = {}
    for entry in records(out_dir, "rollouts.jsonl"):
        found[entry["step"], entry["id"]] = [(one["text"], one["tokens"]) for one in entry["completions"]]
    return found


def check_weights(out_dir: Path) -> None:
    """Each of the first steps was sampled from the trainers' weights, and these were others than before."""
    log = [record for record in records(out_dir) if 0 < record["step"] <= STEPS]
    assert [record["step"] for record in log] == list(range(1, STEPS + 1))
    assert all(record["mismatch"] < 1e-5 for record in log)
    assert all(record["kl"] > 1e-2 for record in log[1:]), "stale weights would go unnoticed"


# -----------------------------------------------------------------------------
# the same as colocated
# -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colocated(folder):
    """out_dir of a run in which both trainers sample, with one engine that is spread over them."""
    return train(folder, "colocated", "--vllm_tensor_parallel=2", ranks=2)


def same_as(colocated: Path, out_dir: Path) -> None:
    check_weights(colocated)
    check_weights(out_dir)
    want, found = completions(colocated), completions(out_dir)
    assert {key: found[key] for key in found if key[0] <= STEPS} == want and len(want) == STEPS * 4
    for a, b in zip(records(colocated), records(out_dir), strict=False):
        for key in a.keys() & b.keys() & {"step", "reward", "loss", "grad_norm", "eval_n", "eval_length"}:
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6), key


@pytest.mark.slow
def test_two_trainers_and_a_sampler(folder, colocated):
    """Also in the evaluations, in which one trainer has nothing to ask."""
    out_dir = train(folder, "zero2", "--vllm_gpus=1")
    same_as(colocated, out_dir)
    assert [record.get("eval_n") for record in records(out_dir)] == [1, None, 1, 1]


@pytest.mark.slow
def test_an_engine_over_two_samplers(folder):
    check_weights(train(folder, "spread", "--vllm_gpus=2", "--vllm_tensor_parallel=2", "--eval_interval=0"))


# -----------------------------------------------------------------------------
# the end
# -----------------------------------------------------------------------------


def workers(script: Script) -> dict[int, int]:
    """{rank: process id} of torchrun's processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == script.process.pid:
                names = dict(
                    pair.split("=", 1) for pair in (path / "environ").read_text().split("\0") if pair
                )
                found[int(names["RANK"])] = int(path.name)
    return found


def end_by(script: Script, out_dir: Path, rank: int | None, number: int) -> int:
    """Send the signal to a process, to torchrun if rank is None, some steps from here. Returns the exit code.

    All processes are gone half a minute later.
    """
    last = max([record["step"] for record in records(out_dir)], default=0)
    script.wait_for_step(out_dir, last + STEPS + 1)
    processes = workers(script)
    assert len(processes) > 1
    os.kill(script.process.pid if rank is None else processes[rank], number)
    before = time.time()
    code = script.wait(60)
    assert time.time() - before < 30
    assert not [pid for pid in processes.values() if Path(f"/proc/{pid}").exists()]
    return code


ENDLESS = ["--vllm_gpus=1", "--steps=100000", "--save_interval=2", "--keep=1"]


def check_sentence(script: Script) -> None:
    """Of the processes that were not killed one says why it ends, and none shows a traceback."""
    assert script.text.count("another process of this run has ended, and with it this one") == 1
    assert f'{ROOT / "train_grpo.py"}", line' not in script.text, script.text[-4000:]


@pytest.mark.slow
def test_zero_3_a_killed_sampler_a_resume_and_ctrl_c(folder, colocated):
    """The sampler of a run under ZeRO-3 is killed; the same command goes on; Ctrl-C ends that, and saves."""
    out_dir, start = folder / "zero3", command(folder, "zero3", *ENDLESS, "--zero_stage=3")
    script = Script(start, folder / "zero3.log", ranks=3, env=HERE)
    assert end_by(script, out_dir, 2, signal.SIGKILL) == 1
    check_sentence(script)
    same_as(colocated, out_dir)
    saved = checkpoint.step_of(checkpoint.complete(out_dir / "resume")[-1])

    script = Script(start, folder / "resumed.log", ranks=3, env=HERE)
    end_by(script, out_dir, None, signal.SIGINT)
    assert f"resume: step {saved}" in script.text
    log = records(out_dir)
    last = log[-1]["step"]
    assert f"stopped by a signal at step {last}" in script.text, script.text[-4000:]
    assert (out_dir / f"step-{last:06d}").is_dir()
    assert [record["step"] for record in log] == list(range(last + 1))
    assert all(record["mismatch"] < 1e-5 for record in log[1:])


@pytest.mark.slow
def test_lora_and_a_killed_trainer(folder):
    """The sampler gets the merged weights, and ends when its trainer does."""
    out_dir = folder / "lora"
    flags = [*ENDLESS, "--lora_rank=4", "--learning_rate=1e-2"]
    script = Script(command(folder, "lora", *flags), folder / "lora.log", ranks=2, env=HERE)
    assert end_by(script, out_dir, 0, signal.SIGKILL) == 1
    check_sentence(script)
    check_weights(out_dir)


# -----------------------------------------------------------------------------
# refusals, and the plan
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "knobs", "sentence"),
    [
        (0, {"vllm_gpus": 1}, "torchrun, which has not started this one; run torchrun"),
        (2, {"vllm_gpus": 2}, "of 2 process.es. 2 would sample and none train; start more"),
        (4, {"vllm_gpus": 1, "rollout": "hf"}, "with rollout='hf' the trainers sample"),
        (4, {"vllm_tensor_parallel": 2, "rollout": "hf"}, "with rollout='hf' the trainers sample"),
        (4, {"vllm_gpus": -1}, "vllm_gpus: -1 is below 0"),
        (4, {"vllm_tensor_parallel": 0}, "vllm_tensor_parallel: 0 is not above 0"),
        (
            4,
            {"vllm_gpus": 1, "vllm_tensor_parallel": 2},
            "takes 2 processes, which do not divide 1 .vllm_gpus",
        ),
        (3, {"vllm_tensor_parallel": 2}, "takes 2 processes, which do not divide 3 .processes"),
        (4, {"vllm_gpus": 3}, "3 engines for 1 trainer"),
        (6, {"vllm_tensor_parallel": 3}, "3 does not divide the 16 attention heads of Qwen/Qwen2.5-VL-3B"),
    ],
)
def test_layouts_that_cannot_be(monkeypatch, world, knobs, sentence):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if world:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(world))
    model = {"model": "Qwen/Qwen2.5-VL-3B-Instruct"}
    with pytest.raises(SystemExit, match=sentence) as refused:
        samplers.check(DEFAULTS | model | knobs)
    assert "\n" not in str(refused.value)


def test_layouts_that_can_be(monkeypatch):
    config = DEFAULTS | {"model": "Qwen/Qwen2.5-VL-3B-Instruct"}
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    samplers.check(config)
    monkeypatch.setenv("WORLD_SIZE", "8")
    for knobs in ((0, 1), (0, 8), (1, 1), (4, 2), (4, 1)):
        monkeypatch.setenv("RANK", "6")
        vllm_gpus, tensor_parallel = knobs
        samplers.check(config | {"vllm_gpus": vllm_gpus, "vllm_tensor_parallel": tensor_parallel})
        sampling = []
        for rank in range(8):
            monkeypatch.setenv("RANK", str(rank))
            if samplers.samples_here(vllm_gpus):
                sampling.append(rank)
        assert sampling == list(range(8 - vllm_gpus, 8))


def test_plan_of_trainers_without_an_engine():
    """Sharded over 7, and nothing of vLLM; where the engine would not start, the plan says so."""
    config = DEFAULTS | {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "prompts_per_step": 28}
    apart = memory.Run(config | {"vllm_gpus": 1}, 8, 85e9)
    beside = memory.Run(config, 7, 85e9)
    assert apart.w == 7 and memory.adam_bytes(apart) == memory.adam_bytes(beside)
    moments = memory.moments_bytes(apart)
    assert set(moments) == {"start", "backward pass", "optimizer step"}
    less = memory.moments_bytes(beside)["backward pass"] - moments["backward pass"]
    assert less == memory.ENGINE_BYTES
    assert memory.verdict(apart).startswith("fits 8 x 85 GB")
    small = memory.Run(config | {"vllm_gpus": 1, "vllm_gpu_memory": 0.05}, 8, 85e9)
    assert memory.first_failure(small)[0].startswith("start of vLLM")
    assert memory.remedy(small) == {"vllm_gpu_memory": 0.9}
    with pytest.raises(SystemExit, match="of 1 GPUs 1 would sample and none train"):
        memory.Run(config | {"vllm_gpus": 1}, 1, 85e9)
