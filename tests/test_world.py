"""A run on other machines than before: more or fewer processes, several machines, a process that dies.

Runs are forked from one process that has imported torch and DeepSpeed (experiments/crash.py). Machines are
agents of torchrun on the loopback address, each in a working folder of its own.

    python -m pytest tests/test_world.py       # 2 CPU cores, about 6 minutes
"""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import GRPO, ROOT, Script, records

import checkpoint
import common
import data
from experiments import crash

slow = pytest.mark.slow

# -----------------------------------------------------------------------------
# the formulas
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("before, now", [(1, 2), (2, 1), (2, 4), (4, 2), (2, 3), (5, 3), (3, 8)])
@pytest.mark.parametrize("length", [1, 2, 7, 24, 25])
def test_slices_of_another_number_of_processes(before, now, length):
    """Every number comes to its place, none from the padding."""
    row = torch.arange(1.0, length + 1)

    def slices(world, padding):
        size = -(-length // world)
        padded = torch.cat([row, torch.full((size * world - length,), padding)])
        return list(padded.split(size)), size

    old, old_size = slices(before, padding=-1.0)
    for rank, right in enumerate(slices(now, padding=0.0)[0]):
        mine = torch.zeros(len(right))
        checkpoint.fill_slice(mine, rank, length, old, old_size)
        assert mine.equal(right)


# ZeRO-3 of large models keeps its parameters in several groups, and their number is another in each world
LENGTHS = {"a": 5, "b": 8, "c": 1, "d": 7}
GROUPS = {1: ["a", "b", "cd"], 2: ["ab", "cd"], 3: ["abc", "d"]}


def zero_3_share(rank, world):
    """What a process saves of parameters that count from 0, with moments of twice and thrice as much."""
    flats = []
    for names in GROUPS[world]:
        pieces = []
        for name in names:
            size = -(-LENGTHS[name] // world)
            whole = torch.zeros(size * world)
            whole[: LENGTHS[name]] = torch.arange(LENGTHS[name]) + 100.0 * ord(name)
            pieces.append(whole[rank * size : (rank + 1) * size])
        flats.append(torch.cat(pieces))
    state = {}
    for number, flat in enumerate(flats):
        state[number] = {"step": torch.tensor(4.0), "exp_avg": 2 * flat, "exp_avg_sq": 3 * flat}
    settings = {"lr": 0.1, "params": list(range(len(flats)))}
    adam = {"state": state, "param_groups": [settings]}
    return {"fp32_flat_groups": flats, "optimizer_state_dict": adam, "overflow": False}


def shapes(world):
    return [{name: torch.Size([LENGTHS[name]]) for name in names} for names in GROUPS[world]]


@pytest.mark.parametrize("before, now", [(1, 2), (2, 1), (3, 2), (2, 3), (3, 1)])
def test_groups_of_large_models(tmp_path, monkeypatch, before, now):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: now)
    torch.save({"param_shapes": shapes(before)}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for rank in range(before):
        path = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": zero_3_share(rank, before)}, path)
    engine = SimpleNamespace(
        zero_optimization_partition_weights=lambda: True, _get_zero_param_shapes=lambda: shapes(now)
    )
    for rank in range(now):
        got = dict(tensors(checkpoint.recut(engine, tmp_path, before, rank)))
        right = dict(tensors(zero_3_share(rank, now)))
        assert got.keys() == right.keys()
        for key, value in right.items():
            assert value.equal(got[key]) if torch.is_tensor(value) else value == got[key], key
    engine._get_zero_param_shapes = lambda: shapes(now)[:-1]
    with pytest.raises(SystemExit, match="holds other weights than this run trains"):
        checkpoint.recut(engine, tmp_path, before, 0)


class Numbers(list):
    name = "numbers"


def encode(x):
    if x % 7 == 3:
        raise data.BadRow(f"row {x}")
    return x


class Streams:
    """Those of all processes of a run."""

    def __init__(self, world, rows, places=None):
        self.world = world
        self.all = [data.Stream(rows, encode, 5, rank, world, say=lambda line: None) for rank in range(world)]
        for stream in self.all if places else ():
            stream.go_on_for(*places)

    def step(self, size):
        """The prompts of a step, in the order in which their seeds are numbered."""
        taken = [stream.take(size // self.world) for stream in self.all]
        return [taken[k % self.world][k // self.world] for k in range(size)]

    def places(self):
        found = {}
        for stream in self.all:
            found |= stream.places()
        return zip(*[found[number] for number in sorted(found)], strict=True)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 4, 2), (4, 6, 1), (3, 2, 4, 3), (1, 12, 1)], ids=str)
def test_the_same_prompts_on_any_number_of_processes(worlds):
    """Also where rows are skipped, and where an epoch leaves a rest of rows."""
    rows, size, steps = Numbers(range(29)), 12, 3
    right = Streams(worlds[0], rows)
    now = Streams(worlds[0], rows)
    for world in worlds[1:]:
        for _ in range(steps):
            step = now.step(size)
            assert step == right.step(size)
            assert [stream.epoch for stream in now.all[:1]] == [stream.epoch for stream in right.all[:1]]
            skipped = [sum(stream.skipped for stream in streams.all) for streams in (now, right)]
            assert skipped[0] == skipped[1] > 0
        places = [list(values) for values in now.places()]
        assert [list(values) for values in right.places()] == places
        now = Streams(world, rows, places)
    assert [now.step(size) for _ in range(steps)] == [right.step(size) for _ in range(steps)]


def test_bits_of_frozen_weights():
    """Their sum sees one bit, and not what is trained."""

    class Engine:
        zero_optimization_partition_weights = staticmethod(lambda: False)

        def __init__(self):
            torch.manual_seed(0)
            self.module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2).bfloat16())
            self.module[0].weight.requires_grad_(False)
            self.module[1].requires_grad_(False)

    right = checkpoint.frozen_sum(Engine())
    other = Engine()
    other.module[0].bias.data += 1
    assert checkpoint.frozen_sum(other) == right
    for layer in (0, 1):
        other = Engine()
        other.module[layer].weight.data[0, 0] *= 1.01
        assert checkpoint.frozen_sum(other) != right


# -----------------------------------------------------------------------------
# another number of processes
# -----------------------------------------------------------------------------

# 11 rows: an epoch of 2 processes leaves one out, that of 1 would not; some are too long and skipped
SFT = [part for part in crash.SFT if not part.startswith(("--steps", "--save", "--keep"))]
RL = [part for part in crash.GRPO if not part.startswith(("--steps", "--save", "--keep", "--eval"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_folder(), folder / "model")
    return folder


@pytest.fixture(scope="module")
def pool(base):
    """A process to fork the runs from: this one has threads."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    cores.put(max(os.sched_getaffinity(0)))
    with context.Pool(1, crash.ready, (cores, str(base))) as pool:
        yield pool


@pytest.fixture(scope="module")
def run(base, pool):
    """run(name, command, world, steps) in a folder of that name -> its out_dir; run.whole: from the start."""
    done = {}

    def run(name, command, world, steps, code=0, function=crash.go):
        folder = base / name
        folder.mkdir(exist_ok=True)
        got = pool.apply(function, (folder, [*command, f"--steps={steps}"], world))
        assert got == code, crash.console(folder)[-3000:]
        return folder / "run"

    def whole(command, world, steps):
        key = (*command, world, steps)
        if key not in done:
            done[key] = run(f"whole{len(done)}", command, world, steps)
        return done[key]

    run.whole = whole
    return run


def differences(out_dir, right, keys=("loss", "epoch", "skipped_rows", "tokens_per_row", "reward", "kl")):
    """The largest relative difference of these values in metrics.jsonl, over all steps."""
    one, two = records(right), records(out_dir)
    assert [r["step"] for r in two] == [r["step"] for r in one]
    found = {}
    for a, b in zip(one, two, strict=True):
        for key in (key for key in keys if key in a):
            difference = abs(a[key] - b[key]) / max(abs(a[key]), 1e-3)
            found[key] = max(difference, found.get(key, 0.0))
    return found


def said(folder):
    return [line for line in crash.console(folder).splitlines() if line.startswith("resume: step")]


# knobs, processes one after another; two updates each
CHAINS = {
    "zero 1": (["--zero_stage=1"], (2, 1)),
    "zero 2": (["--zero_stage=2"], (1, 2)),
    "lora 3": (["--zero_stage=3", "--lora_rank=4"], (2, 1)),
}


@slow
@pytest.mark.parametrize("name", CHAINS)
def test_a_run_goes_on_with_more_or_fewer_processes(run, base, name):
    """Same rows, same losses as the run whose number of processes did not change."""
    knobs, worlds = CHAINS[name]
    command = [*SFT, *knobs]
    for number, world in enumerate(worlds, 1):
        out_dir = run(name, command, world, 2 * number)
    right = run.whole(command, worlds[0], 2 * len(worlds))
    changes = [
        f", written by {old} process(es), now {new}" for old, new in zip(worlds, worlds[1:], strict=False)
    ]
    lines = [f"resume: step {2 * number} of run{change}" for number, change in enumerate(changes, 1)]
    assert said(base / name) == lines
    found = differences(out_dir, right)
    print(name, found)
    assert found.pop("loss") < 2e-5
    assert found == {"epoch": 0, "skipped_rows": 0, "tokens_per_row": 0}
    assert records(out_dir)[-1]["skipped_rows"] > 0 and records(out_dir)[-1]["epoch"] > 1


@slow
def test_rollouts_do_not_notice_either(run, base):
    """Prompts, seeds and completions are those of the run on 2 processes."""
    command = [*RL, "--zero_stage=2", "--learning_rate=1e-4"]
    for number, world in enumerate((2, 1), 1):
        out_dir = run("grpo", command, world, 2 * number)
    right = run.whole(command, 2, 4)
    found = differences(out_dir, right)
    print("grpo", found)
    assert max(found.values()) < 1e-3

    def shown(folder):
        entries = sorted(records(folder, "rollouts.jsonl"), key=lambda e: (e["step"], e["id"]))
        return [(e["step"], e["id"], [c["text"] for c in e["completions"]]) for e in entries]

    assert shown(out_dir) == shown(right)


def resave(folder, command, world):
    """The run resumes, saves where it is and ends. In a process to fork from."""
    real = checkpoint.resume

    def resume(engine, model, base, stream, config, rank, say):
        step = real(engine, model, base, stream, config, rank, say)
        checkpoint.save_state(engine, stream, step, config, rank)
        common.finish()
        os._exit(0)

    checkpoint.resume = resume
    checkpoint.SCRIPT = command[0]  # it was imported by another
    try:
        return crash.go(folder, command, world)
    finally:
        checkpoint.resume = real


def tensors(value, path=""):
    """(path, tensor or plain value) of all that a file of a state holds."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from tensors(child, f"{path}/{key}")
    else:
        yield path, value


@slow
@pytest.mark.parametrize("knobs", [("2", "float32"), ("3", "bfloat16")], ids="-".join)
def test_no_bit_is_lost_on_the_way(run, base, knobs):
    """2 -> 4 -> 1 -> 2 processes without a step between: the files that were written at first."""
    stage, dtype = knobs
    command = [*SFT, f"--zero_stage={stage}", f"--dtype={dtype}"]
    name = f"bits {stage} {dtype}"
    state = run(name, command, 2, 2) / "resume" / "step-000002"
    before = base / f"{name} before"
    shutil.copytree(state, before)
    for world in (4, 1, 2):
        run(name, command, world, 2, function=resave)
    for path in sorted(before.rglob("*.pt")):
        if path.name.startswith("rank-"):
            continue
        old, new = (
            dict(tensors(checkpoint.load_tensors(folder / path.relative_to(before))))
            for folder in (before, state)
        )
        assert old.keys() == new.keys()
        if "optim_states" in path.name:  # master weights and two moments
            assert sum(torch.is_tensor(value) and value.numel() > 1000 for value in old.values()) >= 3
        for key, value in old.items():
            same = value.equal(new[key]) if torch.is_tensor(value) else str(value) == str(new[key])
            assert same or not isinstance(value, torch.Tensor | int | float | str), (path.name, key)
    old, new = (json.loads((folder / "loop.json").read_text()) for folder in (before, state))
    assert old == new


# -----------------------------------------------------------------------------
# frozen weights
# -----------------------------------------------------------------------------


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@slow
@pytest.mark.parametrize("stage, world", [(0, 1), (3, 2)])
def test_a_state_without_the_frozen_weights(run, base, stage, world):
    """It holds what is trained; with it the run goes on to the bit, and on the same model alone."""
    command = [*SFT, f"--zero_stage={stage}", "--lora_rank=4", "--learning_rate=1e-2"]
    name = f"frozen {stage}"
    out_dir = run(name, command, world, 2)
    state = out_dir / "resume" / "step-000002"
    files = [checkpoint.load_tensors(path) for path in (state / "state").glob("*model_states.pt")]
    assert all(".lora_" in key for file in files for key in file["module"])
    trained = sum(tensor.numel() for tensor in files[0]["module"].values() if stage < 3)
    total = sum(tensor.numel() for tensor in whole_weights(base / "model"))
    print(name, f"{size(state):,} bytes, {trained:,} of {total:,} weights are trained")
    assert size(state) < total * 4 / 2  # the base alone would have twice as many
    if stage < 3:
        assert size(state / "state") < 16 * trained + 150_000 * world

    # the model was exchanged in between
    weights = base / "model" / "model.safetensors"
    kept = weights.read_bytes()
    harmed = bytearray(kept)
    harmed[-2] ^= 1
    weights.write_bytes(harmed)
    run(name, command, world, 4, code=1)
    weights.write_bytes(kept)
    assert "frozen weights of" in crash.console(base / name) and "put the model back" in crash.console(
        base / name
    )

    run(name, command, world, 4)
    found = differences(out_dir, run.whole(command, world, 4))
    assert max(found.values()) == 0


def whole_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors").values()


def older(folder, command, world):
    """The run saves as older versions did: the frozen weights too. In a process to fork from."""
    import deepspeed

    real, of_trained = deepspeed.DeepSpeedEngine.save_checkpoint, checkpoint.trained_state

    def save_checkpoint(engine, *args, exclude_frozen_parameters=False, **options):
        return real(engine, *args, **options)

    deepspeed.DeepSpeedEngine.save_checkpoint = save_checkpoint
    checkpoint.trained_state = lambda module: module.state_dict()
    checkpoint.SCRIPT = command[0]
    try:
        return crash.go(folder, command, world)
    finally:
        deepspeed.DeepSpeedEngine.save_checkpoint, checkpoint.trained_state = real, of_trained


@slow
def test_a_state_that_lacks_a_weight(run, base):
    command = [*SFT, "--zero_stage=0", "--lora_rank=4"]
    state = run("lacks", command, 1, 2) / "resume" / "step-000002"
    path = state / "state" / "mp_rank_00_model_states.pt"
    content = checkpoint.load_tensors(path)
    gone = sorted(content["module"])[0]
    del content["module"][gone]
    torch.save(content, path)
    checkpoint.write_manifest(
        state, [p for p in sorted(state.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    )
    run("lacks", command, 1, 4, code=1)
    assert f"trained weights, the first is '{gone}'" in crash.last_line(base / "lacks")


# -----------------------------------------------------------------------------
# several machines
# -----------------------------------------------------------------------------


class Agent(Script):
    """torchrun of one machine of two, with one process, in a working folder of its own."""

    def __init__(self, command, folder, log, port, restarts=0):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
        torchrun += [f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test", f"--max_restarts={restarts}"]
        folder.mkdir(exist_ok=True)
        script = str(ROOT / command[0])
        # else the processes that are started again find the addresses of those that have died
        env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(ROOT / "tests")}
        super().__init__([*torchrun, script, *command[1:]], log, env=env, preexec_fn=lambda: os.chdir(folder))

    def kill(self):
        self.process.terminate()  # it ends its worker
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
        self.process.wait()

    def workers(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@pytest.fixture
def machines(tmp_path):
    """machines(command, [folder, folder], ...) -> two agents; they are ended with the test."""
    agents = []

    def start(command, folders, restarts=0):
        port = common.free_port()
        for number, folder in enumerate(folders):
            agents.append(Agent(command, folder, tmp_path / f"machine{number}.log", port, restarts))
        return agents

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            agent.kill()


# any policy can raise this reward at once: so the updates are real ones
TWO = [part for part in GRPO if not part.startswith("--zero")]
TWO += ['--reward_weights={"letters:share": 1.0}', "--reward_workers=1"]


@slow
def test_machines_without_a_common_disk_are_refused(machines, tiny_folder, tmp_path):
    """A relative out_dir in two folders: nothing is trained, the sentence names the machine."""
    command = [
        *TWO,
        f"--model={tiny_folder()}",
        "--rollout=hf",
        "--zero_stage=2",
        "--out_dir=run",
        "--steps=2",
    ]
    agents = machines(command, [tmp_path / "a", tmp_path / "b"])
    for agent in agents:
        assert agent.wait(90) != 0
        assert "does not see what process 0 on" in agent.text and "--out_dir" in agent.text
        assert "step 1/2" not in agent.text and "model: loading" not in agent.text
    assert not list(tmp_path.glob("*/run/*"))  # nothing that stays


@slow
@pytest.mark.parametrize("rollout, stage", [("vllm", 3)])
def test_two_machines_train(machines, tiny_folder, tmp_path, rollout, stage):
    out_dir = tmp_path / "run"
    command = [
        *TWO,
        f"--model={tiny_folder()}",
        f"--out_dir={out_dir}",
        f"--rollout={rollout}",
        f"--zero_stage={stage}",
    ]
    agents = machines([*command, "--steps=2"], [tmp_path / "a", tmp_path / "b"])
    for agent in agents:
        assert agent.wait(150) == 0, agent.text[-3000:]
    log = records(out_dir)
    assert [r["step"] for r in log] == [1, 2]
    assert all(r["grad_norm"] > 0 and r["mismatch"] < 1e-5 for r in log)
    assert (out_dir / "step-000002" / "config.json").is_file() and not list(out_dir.rglob("*.tmp"))


@slow
def test_a_killed_worker_starts_again(machines, tiny_folder, tmp_path):
    """kill -9 of a process: torchrun starts both machines' anew, and they go on from the newest state."""
    out_dir = tmp_path / "run"
    command = [*TWO, f"--model={tiny_folder()}", f"--out_dir={out_dir}", "--rollout=hf", "--zero_stage=2"]
    command += ["--save_interval=1", "--steps=12", "--max_completion_length=8"]
    agents = machines(command, [tmp_path / "a", tmp_path / "b"], restarts=1)
    agents[0].wait_for_step(out_dir, 2, 90)
    os.kill(agents[1].workers()[0], signal.SIGKILL)
    for agent in agents:
        assert agent.wait(60) == 0, agent.text[-3000:]
    text = agents[0].text + agents[1].text
    assert text.count("resume: step") == 1
    assert [r["step"] for r in records(out_dir)] == list(range(1, 13))
