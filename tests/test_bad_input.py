"""What goes wrong ends in one sentence that says what to do, exit code 1 and no traceback; bad rows are
skipped and counted.

Most of these use train_sft.py, which starts faster; train_grpo.py reads knobs, rows and checkpoints with
the same functions.

    python -m pytest tests/test_bad_input.py        # 2 CPU cores, about 2.5 minutes
"""

import json
import resource
import shutil
import signal
import time

import pytest
import torch
from helpers import GRPO, SFT, Script, records, refuses, run

import data

pytestmark = pytest.mark.slow
SENTENCE = "scenes:clevr?rows=8&layout=grid&objects=1-2"


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("qwen2_5_vl")


@pytest.fixture
def sft(folder, tmp_path):
    return [*SFT, f"--model={folder}", f"--out_dir={tmp_path}/run", "--steps=2"]


@pytest.fixture
def grpo(folder, tmp_path):
    return [*GRPO, f"--model={folder}", f"--out_dir={tmp_path}/run", "--steps=2", "--rollout=hf"]


def write_rows(folder, n, **change):
    """rows.jsonl with n good rows (images as files); change = {"row3": {...}} overrides parts of a row."""
    rows = data.load_rows(SENTENCE)
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(n):
            row = rows[i % 8]
            row["images"][0].save(folder / f"{i}.png")
            record = {"id": f"row{i}", "image": f"{i}.png"} | {
                k: row[k] for k in ("problem", "solution", "thinking")
            }
            file.write(json.dumps(record | change.get(f"row{i}", {})) + "\n")
    return f"--data_source={folder}/rows.jsonl"


# -----------------------------------------------------------------------------
# knobs
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ("--stepz=3", ("unknown knob 'stepz'", "did you mean 'steps'?", "--help")),
        ("--steps=many", ("'steps'", "type int", "many")),
        ("--lr_schedule=exponential", ("lr_schedule", "exponential", "constant, linear, cosine")),
        ("--dtype=float8", ("dtype", "float8", "bfloat16")),
        ("--attn=flash", ("attn", "flash", "sdpa")),
        ("--template=poem", ("template:", "poem", "think")),
        ("--trackers=mlflow", ("trackers", "mlflow", "wandb")),
    ],
)
def test_bad_knob_sft(sft, tmp_path, knob, words):
    refuses([*sft, knob], tmp_path / "log", *words)


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ("--group_size=1", ("group_size: 1", "at least 2")),
        ("--adv_norm=best", ("adv_norm", "best", "group, batch, none")),
        ("--zero_stage=3", ("rollout: 'hf'", "vllm", "--zero_stage=2")),
        ("--offload_optimizer=True", ("offload_optimizer", "zero_stage=0", "--zero_stage=1")),
    ],
)
def test_bad_knob_grpo(grpo, tmp_path, knob, words):
    refuses([*grpo, knob], tmp_path / "log", *words)
    assert not (tmp_path / "run").exists(), "a refused run should leave nothing behind"


@pytest.mark.parametrize("script", ["sft", "grpo"])
def test_batch_that_does_not_divide(request, tmp_path, script):
    name = {"sft": "batch_size", "grpo": "prompts_per_step"}[script]
    text = run([*request.getfixturevalue(script), f"--{name}=5"], tmp_path / "log", code=1, ranks=2)
    sentence = [line for line in text.splitlines() if f"{name}: 5" in line]
    assert len(sentence) == 1 and sentence[0] in text.splitlines()[-2]  # the last line is torchrun's ruler
    remedy = f"start 1, 5 of them, or set --{name}=4 or 6"
    assert f"do not divide among 2 processes; {remedy}" in sentence[0]


def test_out_dir_of_another_run(sft, tmp_path):
    run(sft, tmp_path / "log")
    refuses(
        [*sft, "--batch_size=2"], tmp_path / "log", "out_dir", "batch_size=4", "now it is 2", "--resume=False"
    )
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2], (
        "the refused run should have touched nothing"
    )
    run([*sft, "--batch_size=2", "--resume=False", "--steps=1"], tmp_path / "log")
    assert [r["step"] for r in records(tmp_path / "run")] == [1]


def test_vllm_that_cannot_be_imported(grpo, tmp_path):
    stub = tmp_path / "stub" / "vllm"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(
        "raise ImportError('libcudart.so.13: cannot open shared object file')\n"
    )
    words = ("rollout='vllm'", "libcudart.so.13", "--rollout=hf")
    refuses([*grpo, "--rollout=vllm"], tmp_path / "log", *words, env={"PYTHONPATH": str(stub.parent)})


# -----------------------------------------------------------------------------
# models and rows
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["out/missing", "{tmp}/missing", "/missing"]
)  # the last has one slash, as a hub id
def test_missing_model(sft, tmp_path, path):
    path = path.format(tmp=tmp_path)
    refuses([*sft, f"--model={path}"], tmp_path / "log", "model", f"there is no '{path}'")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{tmp}/missing.jsonl", ("data", "does not exist", "missing.jsonl")),
        ("scenes:clevr?rowz=8", ("data", "no scene source", "example")),
        ("{tmp}/notes.txt", ("data", ".jsonl", "notes.txt")),
        ("{tmp}/half.jsonl", ("data", "not valid JSON", "half.jsonl")),
        ("{tmp}/columns.jsonl", ("data", "no column for the solution", "label", "--columns=solution=NAME")),
        ("{tmp}/web.jsonl", ("data", "the address https://a.b/c.png", "download the pictures first")),
        ("{tmp}/index.jsonl", ("data", "from 0 or from 1", "--columns=solution=answer+0")),
    ],
)
def test_bad_source(sft, tmp_path, source, words):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "half.jsonl").write_text('{"problem": "How many?", "solution": "3"}\n{"problem": "How')
    (tmp_path / "columns.jsonl").write_text('{"problem": "How many?", "label": "3"}\n')
    (tmp_path / "web.jsonl").write_text(
        '{"problem": "How many?", "solution": "3", "image": "https://a.b/c.png"}\n'
    )
    (tmp_path / "index.jsonl").write_text(
        '{"problem": "Which?", "answer": 1, "options": ["red", "blue", "green"]}\n'
    )
    refuses([*sft, f"--data_source={source.format(tmp=tmp_path)}"], tmp_path / "log", *words)


@pytest.mark.parametrize("script", ["sft", "grpo"])
def test_bad_rows_are_skipped_and_counted(request, tmp_path, script):
    """Among twelve rows a broken image, a missing one, no answer and a prompt that is too long: the run
    goes on without them.
    """
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    bad = {"row1": {"image": "broken.png"}, "row4": {"image": "nowhere.png"}, "row6": {"solution": ""}}
    bad["row9"] = {"problem": "How many? " * 200}
    source = write_rows(tmp_path, 12, **bad)
    knobs = (
        ["--steps=2", "--batch_size=4"] if script == "sft" else ["--steps=2"]
    )  # 2 steps of 4 are the 8 good rows: one epoch
    text = run([*request.getfixturevalue(script), source, *knobs], tmp_path / "log")
    log = records(tmp_path / "run")
    assert [r["step"] for r in log] == [1, 2]
    # the last of them may stand behind the eighth good row, and then it has not been looked at
    assert 1 <= log[-1]["skipped_rows"] <= 4 and log[-1]["skipped_rows"] == text.count("data: skipped")
    for reason, row in (
        ("broken image", "row1"),
        ("nowhere.png", "row4"),
        ("no answer", "row6"),
        ("max_prompt_length=128", "row9"),
    ):
        assert sum(reason in line and row in line for line in text.splitlines()) <= 1
    if script == "grpo":
        assert not {e["id"] for e in records(tmp_path / "run", "rollouts.jsonl")} & set(bad)
    # a resumed run goes on counting
    part = [*request.getfixturevalue(script), source, *knobs, f"--out_dir={tmp_path}/part"]
    for steps in (1, 2):
        run([*part, f"--steps={steps}"], tmp_path / "log")
    counted = [r["skipped_rows"] for r in records(tmp_path / "part")]
    assert counted == [r["skipped_rows"] for r in log] and counted[0] > 0


def test_all_rows_bad(sft, tmp_path):
    source = write_rows(tmp_path, 3, **{f"row{i}": {"image": "nowhere.png"} for i in range(3)})
    refuses([*sft, source], tmp_path / "log", "data", "cannot be used", "nowhere.png", "image_root")


# -----------------------------------------------------------------------------
# numbers and disks
# -----------------------------------------------------------------------------


def poison(folder, target):
    """A copy of a checkpoint with a NaN in the last norm's weight."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    name = next(
        k for k in weights if k.endswith("language_model.norm.weight") or k.endswith("model.norm.weight")
    )
    weights[name][0] = torch.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return f"--model={target}"


@pytest.mark.parametrize("script", ["sft", "grpo"])
def test_non_finite_loss(request, folder, tmp_path, script):
    """The rows are named, and no checkpoint of the spoilt policy is written."""
    words = ("loss: nan at step 1", "learning_rate", "clevr/0/")
    refuses(
        [*request.getfixturevalue(script), poison(folder, tmp_path / "poisoned")], tmp_path / "log", *words
    )
    assert not list((tmp_path / "run").glob("step-*")) and not (tmp_path / "run" / "resume").exists()
    assert records(tmp_path / "run") == []


def test_diverging_run_keeps_its_last_good_checkpoint(sft, tmp_path):
    """Weights blown up by the first update: the second step is refused, and a save_interval of 1 has not
    saved the third.
    """
    knobs = ["--learning_rate=1e30", "--grad_clip=1e30", "--save_interval=1", "--steps=3"]
    refuses([*sft, *knobs], tmp_path / "log", "loss: nan at step 2", "learning_rate")
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == ["step-000001"]


def test_full_disk(sft, tmp_path):
    """A checkpoint that does not fit: the remedy is named, the last complete one survives, and with space
    the run goes on from it.
    """
    from transformers import AutoModelForImageTextToText

    out_dir = tmp_path / "run"
    run([*sft, "--save_interval=2"], tmp_path / "log")
    good = (out_dir / "step-000002" / "model.safetensors").read_bytes()
    limit = len(good) // 2

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = ("save: writing", "step-000004", "free some space", "goes on from step-000002")
    refuses([*sft, "--save_interval=2", "--steps=6"], tmp_path / "log", *words, preexec_fn=small_disk)
    assert [p.name for p in out_dir.glob("step-*") if p.suffix != ".tmp"] == ["step-000002"]
    assert (out_dir / "step-000002" / "model.safetensors").read_bytes() == good
    AutoModelForImageTextToText.from_pretrained(out_dir / "step-000002")
    assert "resume: step 2" in run([*sft, "--save_interval=2", "--steps=6"], tmp_path / "log")
    assert [r["step"] for r in records(out_dir)] == [1, 2, 3, 4, 5, 6]
    assert not list(out_dir.rglob("*.tmp")), "what the failed save left is removed"


# -----------------------------------------------------------------------------
# what data and results files name is not run
# -----------------------------------------------------------------------------


def trap(folder):
    """A module that leaves a file behind when it is imported, where Python would find it."""
    (folder / "trap.py").write_text(
        f"open({str(folder / 'RAN')!r}, 'w')\n\ndef score(completion, row):\n    return 1.0\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_a_row_cannot_name_a_function(grpo, tmp_path):
    source = write_rows(
        tmp_path, 12, row1={"reward_func": "trap:score"}, row2={"reward_func": ["accuracy", "builtins:eval"]}
    )
    text = run([*grpo, source, "--steps=3"], tmp_path / "log", env=trap(tmp_path))
    assert not (tmp_path / "RAN").exists()
    skipped = [line for line in text.splitlines() if "data: skipped" in line]
    assert {line.split(": ")[2].split()[1] for line in skipped} == {"row1", "row2"}
    assert all("--reward_weights can" in line for line in skipped)


@pytest.mark.parametrize("mode", ["--regrade={0}", "--compare={0},{0}"])
def test_a_results_file_cannot_name_a_function(tmp_path, mode):
    output = {"text": f"__import__('pathlib').Path({str(tmp_path / 'RAN')!r}).write_text('x')"}
    good = {
        "index": 0,
        "id": "good",
        "problem": "How many?",
        "solution": "3",
        "task": "count",
        "outputs": [{"text": "<answer>3</answer>"}],
    }
    bad = [
        good | {"id": name, "index": 1, "reward_func": name, "outputs": [output]}
        for name in ("builtins:eval", "trap:score")
    ]
    (tmp_path / "results.json").write_text(json.dumps({"name": "shared", "results": [good, *bad]}))
    text = run(["eval.py", mode.format(tmp_path / "results.json")], tmp_path / "log", env=trap(tmp_path))
    assert not (tmp_path / "RAN").exists()
    assert "reward_func 'builtins:eval' is none of" in text and "reward_func 'trap:score' is none of" in text
    (tmp_path / "results.json").write_text(json.dumps({"name": "shared", "results": bad}))
    refuses(
        ["eval.py", f"--regrade={tmp_path / 'results.json'}"],
        tmp_path / "log",
        "none of the 2 records",
        env=trap(tmp_path),
    )


# -----------------------------------------------------------------------------
# the start of a run
# -----------------------------------------------------------------------------


def test_nothing_is_compiled_and_no_stale_lock_is_waited_for(sft, tmp_path):
    """torch's builds of extensions wait for a file called `lock`; a run that was killed in mid-build has
    left one here.
    """
    folder = tmp_path / "extensions" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    text = run(sft, tmp_path / "log", ranks=2, env={"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")})
    assert text.count(": drawn scenes; the first: 'How many items") == 1  # one process says it for both
    assert [p.name for p in (tmp_path / "extensions").rglob("*") if p.is_file()] == ["lock"]


@pytest.mark.parametrize("seconds", [1, 4])
def test_a_signal_during_the_start_ends_it_at_once(sft, tmp_path, seconds):
    script = Script([*sft, "--steps=100000"], tmp_path / "log")
    time.sleep(seconds)
    script.process.send_signal(signal.SIGTERM)
    assert script.wait(timeout=3) == -signal.SIGTERM
    assert not records(tmp_path / "run")
