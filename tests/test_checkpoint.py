"""The folder of a run: what may go on in it, what is refused, what a damaged or foreign state does.

Whole runs that are killed are in test_runs.py and test_crash.py.
"""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import checkpoint
import common

KNOBS = {
    "out_dir": "run",
    "model": "out/tiny",
    "resume": True,
    "steps": 10,
    "learning_rate": 1e-3,
    "beta": 0.04,
    "adam_betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "save_interval": 2,
    "keep": 3,
}


def save_run(folder, config, steps=(4,), script=checkpoint.SCRIPT):
    """What open_folder reads of a run that has saved these steps."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for step in steps:
        state = folder / "resume" / f"step-{step:06d}"
        state.mkdir(parents=True)
        (state / "loop.json").write_text(json.dumps({"script": script, "config": config, "step": step}))


def go_on(folder, **changed):
    """What is said when these knobs go on in the folder."""
    said = []
    checkpoint.compare_knobs(folder, KNOBS | changed, said.append)
    return said


def refused(folder, *words, **changed):
    with pytest.raises(SystemExit) as stopped:
        go_on(folder, **changed)
    assert all(word in str(stopped.value) for word in words), stopped.value


# -----------------------------------------------------------------------------
# which knobs go on
# -----------------------------------------------------------------------------


def test_the_same_knobs_go_on(tmp_path):
    assert go_on(tmp_path) == []  # an empty folder
    save_run(tmp_path / "run", KNOBS)
    assert go_on(tmp_path / "run") == []
    # the folder was moved, the model's path has a slash more
    assert go_on(tmp_path / "run", out_dir="elsewhere/", model="out/tiny/") == []


def test_a_harmless_change_is_said_and_another_refused(tmp_path):
    save_run(tmp_path / "run", KNOBS)
    (said,) = go_on(tmp_path / "run", learning_rate=5e-4, steps=20)
    assert "learning_rate 0.001 -> 0.0005" in said and "steps 10 -> 20" in said
    refused(tmp_path / "run", "beta=0.04", "now it is 0.1", "--resume=False", beta=0.1)
    # DeepSpeed takes it from the state: a change would be without effect
    refused(tmp_path / "run", "weight_decay", weight_decay=0.1)
    refused(tmp_path / "run", "adam_betas", adam_betas=(0.9, 0.95))


def test_what_was_saved_decides_not_config_json(tmp_path):
    run = tmp_path / "run"
    save_run(run, KNOBS)
    for damaged in ("", "{", "[1]", json.dumps(KNOBS | {"beta": 0.1})):
        (run / "config.json").write_text(damaged)
        assert go_on(run) == []
    (run / "config.json").unlink()
    assert go_on(run) == []
    refused(run, "beta", beta=0.1)


def test_a_run_of_another_script(tmp_path):
    save_run(tmp_path / "run", KNOBS, script="train_other.py")
    refused(tmp_path / "run", "a run of train_other.py")


def test_a_folder_without_a_state(tmp_path):
    """Its knobs are compared; a damaged config.json, or checkpoints and logs of nobody knows what, are not
    written over.
    """
    save_run(tmp_path, KNOBS, steps=())
    assert go_on(tmp_path) == []
    refused(tmp_path, "beta", beta=0.1)
    (tmp_path / "config.json").write_text("")
    refused(tmp_path, "config.json' is damaged")
    (tmp_path / "config.json").unlink()
    assert go_on(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    refused(tmp_path, "holds logs", "--resume=False")
    (tmp_path / "step-000004").mkdir()
    refused(tmp_path, "holds checkpoints", "--resume=False")


def test_out_dir_with_a_model_in_it(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2_vl"}')
    export = tmp_path / "run" / "step-000100"
    export.mkdir(parents=True)
    for out_dir, base in ((model, model), (model, tmp_path / "other"), (tmp_path / "run", export)):
        with pytest.raises(SystemExit, match="holds a model"):
            checkpoint.refuse_model(out_dir, str(base))
    checkpoint.refuse_model(tmp_path / "new", str(model))
    checkpoint.refuse_model(tmp_path, str(model))  # a folder beside the steps is never touched
    checkpoint.refuse_model(tmp_path / "org", "org/name")  # a hub id is no folder


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    held = f"import sys; sys.path.insert(0, {str(checkpoint.Path(checkpoint.__file__).parent)!r})\n"
    held += (
        f"import checkpoint; checkpoint.lock({str(tmp_path)!r}, print); print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(SystemExit, match="another run is writing"):
        checkpoint.lock(tmp_path, print)
    other.kill()
    other.wait()
    checkpoint.lock(tmp_path, print)
    assert not list(tmp_path.iterdir())  # nothing that stays


# -----------------------------------------------------------------------------
# whose folders are touched
# -----------------------------------------------------------------------------


def test_only_folders_of_this_program_are_removed(tmp_path):
    names = [
        "step-000002",
        "step-000010",
        "step-1000000",
        "step-best",
        "step-notes",
        "step-000004-copy",
        "step-4",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / "resume" / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    ours = names[:3]
    assert [path.name for path in checkpoint.complete(tmp_path)] == ours  # by number, not by letter
    checkpoint.start_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[3:], "resume", "notes.txt"])
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == sorted(names[3:])


# -----------------------------------------------------------------------------
# damage
# -----------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "step-000002"
    (folder / "state").mkdir(parents=True)
    (folder / "loop.json").write_bytes(b"abc")
    (folder / "state" / "weights.pt").write_bytes(bytes(1000))
    checkpoint.write_manifest(folder, sorted(path for path in folder.rglob("*") if path.is_file()))
    return folder


def test_manifest_is_that_of_sha256sum(written):
    prints = json.loads((written / "manifest.json").read_text())
    # NIST, FIPS 180-2, appendix B.1
    nist = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert prints["loop.json"] == {"bytes": 3, "sha256": nist}
    assert set(prints) == {"loop.json", "state/weights.pt"}
    assert checkpoint.damage(written) == ""


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["loop.json", "state/weights.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_every_damage_is_found_by_some_rank(written, name, how):
    path = written / name
    if how == "flip":
        flip_a_bit(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    found = [checkpoint.damage(written, rank, 2) for rank in range(2)]
    assert any(found)
    # a bit of the manifest itself may be that of another file's checksum, or of its name
    assert name == "manifest.json" or any(name in problem for problem in found)


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"loop.json": 3}', '{"loop.json": {"bytes": "x"}}'])
def test_a_manifest_that_names_nothing_vouches_for_nothing(written, manifest):
    (written / "manifest.json").write_text(manifest)
    assert checkpoint.damage(written) == "manifest.json is missing or cannot be read"


def test_the_state_before_is_taken_and_said(written, monkeypatch):
    monkeypatch.setattr(common, "all_gather", lambda value: [value])
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    newer = shutil.copytree(written, written.with_name("step-000004"))
    said = []
    states = checkpoint.complete(written.parent)
    assert checkpoint.newest_whole(states, 0, said.append) == newer and said == []
    flip_a_bit(newer / "state" / "weights.pt")
    assert checkpoint.newest_whole(states, 0, said.append) == written
    assert len(said) == 1 and "step-000004' is damaged (state/weights.pt" in said[0]
    flip_a_bit(written / "loop.json")
    with pytest.raises(SystemExit, match="no state in .* is whole; start over with --resume=False"):
        checkpoint.newest_whole(states, 0, said.append)
    assert checkpoint.newest_whole([], 0, said.append) is None


# -----------------------------------------------------------------------------
# a state from elsewhere
# -----------------------------------------------------------------------------


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_loading_a_state_runs_no_code(tmp_path):
    ran = tmp_path / "RAN"
    for number, content in enumerate(
        [Trap(str(ran)), {"module": {"w": torch.zeros(2)}, "x": Trap(str(ran))}]
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        with pytest.raises(SystemExit, match="it was not loaded"):
            checkpoint.load_tensors(path)
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(str(ran))))
    with pytest.raises(SystemExit, match="it was not loaded"):
        checkpoint.load_tensors(tmp_path / "old.pt")
    assert not ran.exists()


def test_random_numbers_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()

    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    torch.save(checkpoint.random_states(), tmp_path / "rank.pt")
    wanted = [draw() for _ in range(3)]
    checkpoint.set_random_states(checkpoint.load_tensors(tmp_path / "rank.pt"))
    assert [draw() for _ in range(3)] == wanted


# -----------------------------------------------------------------------------
# exports
# -----------------------------------------------------------------------------


def test_files_of_the_base_model_are_taken_as_they_are(tmp_path):
    """Also those of a cache that links to them; no weights, no lists of weights, no folders."""
    blob = tmp_path / "blob"
    blob.write_bytes(b'{"do_sample": false, "temperature": 0.01}')
    model = tmp_path / "model"
    model.mkdir()
    (model / "generation_config.json").symlink_to(blob)
    (model / "merges.txt").write_bytes(b"a b\r\n")
    (model / "chat_template.jinja").write_bytes("{{ x }}é".encode())
    for other in (
        "model.safetensors",
        "model.safetensors.index.json",
        "manifest.json",
        "README.md",
        "pt.bin",
    ):
        (model / other).write_bytes(b"{}")
    (model / "x.json").mkdir()
    assert checkpoint.base_files(str(model)) == {
        "chat_template.jinja": "{{ x }}é".encode(),
        "generation_config.json": b'{"do_sample": false, "temperature": 0.01}',
        "merges.txt": b"a b\r\n",
    }


def test_config_says_the_dtype_of_the_weights():
    old = b'{"model_type": "qwen2_vl",   "torch_dtype": "bfloat16"}'
    assert checkpoint.with_dtype(old, "bfloat16") == old  # not a byte is touched
    assert json.loads(checkpoint.with_dtype(old, "float32"))["torch_dtype"] == "float32"
    new = b'{"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}}'
    assert json.loads(checkpoint.with_dtype(new, "float32")) == {
        "dtype": "float32",
        "text_config": {"dtype": "float32", "x": 1},
    }
    assert json.loads(checkpoint.with_dtype(b'{"a": {"b": 1}}', "float32")) == {
        "a": {"b": 1},
        "torch_dtype": "float32",
    }


def test_too_little_room_is_said_at_the_start(tmp_path, monkeypatch):
    """A float32 net of 100 weights, 60 of them trained: an export takes 400 bytes, a state (4 + 12) * 60.
    With 5 saves to come, 3 states and 4 exports stand there at once.
    """
    net = torch.nn.Sequential(torch.nn.Linear(10, 4, bias=False), torch.nn.Linear(10, 6, bias=False))
    net[0].weight.requires_grad_(False)
    config = KNOBS | {"out_dir": str(tmp_path)}

    def fits(free, **changed):
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        try:
            checkpoint.check_room(net, config | changed, rank=0)
        except SystemExit as stopped:
            assert str(tmp_path) in str(stopped) and "free some space" in str(stopped)
            return False
        return True

    assert fits(3 * 960 + 4 * 400) and not fits(3 * 960 + 4 * 400 - 1)
    assert fits(960 + 400, save_interval=0) and not fits(960 + 399, save_interval=0)
    assert fits(960 + 400, steps=2) and fits(0, steps=0)
    for step in (2, 4):
        (tmp_path / "resume" / f"step-{step:06d}").mkdir(parents=True)
        (tmp_path / f"step-{step:06d}").mkdir()
    assert fits(960 + 2 * 400) and not fits(960 + 2 * 400 - 1)
    assert not fits(960 + 2 * 400, resume=False)


# -----------------------------------------------------------------------------
# logs
# -----------------------------------------------------------------------------


def test_logs_are_never_empty_while_they_are_rewritten(tmp_path, monkeypatch):
    """A kill just before the rename leaves the old log whole."""
    log = tmp_path / "rollouts.jsonl"
    lines = "".join(f'{{"step": {step}}}\n' for step in range(1000))
    log.write_text(lines)

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.truncate_logs(tmp_path, 10, ["rollouts.jsonl"])
    assert log.read_text() == lines
    monkeypatch.undo()
    checkpoint.truncate_logs(tmp_path, 10, ["rollouts.jsonl"])
    assert len(log.read_text().splitlines()) == 11


def test_damaged_lines_of_a_log_are_dropped_and_said(tmp_path, capsys):
    good = b'{"step": 1}\n'
    bad = [
        b'{"step": 2\n',
        b"\x00\xff\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b'{"step": "3"}\n',
        b"\n",
        b'{"step": 3}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(good + b"".join(bad[:-1]) + good + bad[-1])
    checkpoint.truncate_logs(tmp_path, 9, ["metrics.jsonl"])
    assert (tmp_path / "metrics.jsonl").read_bytes() == good * 2
    said = capsys.readouterr().err
    assert f"dropped {len(bad)} damaged or incomplete lines of" in said and said.count("dropped") == 1
    assert "steps 2 to 9 are missing in" in said


def test_a_log_that_is_gone_is_said(tmp_path, capsys):
    checkpoint.truncate_logs(tmp_path, 2, ["metrics.jsonl", "rollouts.jsonl"])
    assert capsys.readouterr().err.count("steps 1 to 2 are missing in") == 2
    checkpoint.truncate_logs(tmp_path, 0, ["metrics.jsonl"])
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_only_the_newest_are_kept(tmp_path):
    """A state that was half removed when its run was killed goes when the next one starts. A run that
    has gone back to step 4 keeps what is at or before it: later states go, later exports stay.
    """
    for step in (2, 3, 4, 6):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / "resume" / f"step-{step:06d}").mkdir(parents=True)
    checkpoint.prune(tmp_path, 4, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path / "resume")] == [3, 4]
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == [3, 4, 6]
    checkpoint.prune(tmp_path, 6, keep=0)
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == [3, 4, 6]


def test_curves_do_not_double(tmp_path):
    """TensorBoard shows each step once: the steps that a killed run does again hide those it did before."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 5), (3, 7)):  # killed after step 5, goes on from step 3
        log = common.Log(str(tmp_path), 0, {}, "tensorboard", start)
        for step in range(start + 1, end + 1):
            log.write({"step": step, "reward": float(10 * start + step)})
        log.board.close()
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars("reward")
    wanted = {1: 1, 2: 2, 3: 3, 4: 34, 5: 35, 6: 36, 7: 37}
    assert [(point.step, point.value) for point in curve] == list(wanted.items())


def test_a_resumed_run_keeps_its_id_and_a_new_one_gets_another(tmp_path):
    ids = []
    for step in (0, 3, 0):
        common.Log(str(tmp_path), 0, {}, "", step)
        ids.append(json.loads((tmp_path / "run.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / "run.json").write_text("{")
    common.Log(str(tmp_path), 0, {}, "", 3)
    assert len(json.loads((tmp_path / "run.json").read_text())["id"]) == 8


def test_a_full_disk_ends_the_log_with_a_sentence(tmp_path):
    log = common.Log(str(tmp_path), 0, {})
    log.file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(SystemExit, match="metrics.jsonl' cannot be written .*goes on from the last save"):
        log.write({"step": 1})
