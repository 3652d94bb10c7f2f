"""A campaign of crashes: is anything lost, changed or left behind when runs are killed and disks fail?

    python -m experiments.crash                       # all parts: 2 CPU cores, about 15 minutes
    python -m experiments.crash --only=kills --kills=10 --seed=1
    python -m experiments.crash --only=corrupt,disk,twice,term

In the root of the repository, on Linux; `disk` needs root. All parts run the two trainers on a tiny model:
  kills    SIGKILL at events of the run folder, in mid-write and at random moments, then the same command
           again: the end must equal, bit by bit, that of a run that nobody has disturbed
  corrupt  a file of the run folder is empty, cut off, has a flipped bit, is missing or holds noise: the same
           command (for an export: eval.py) comes to the same end, or says in a sentence what is damaged
  disk     the disk is full from an event on: one sentence, nothing lost, and with room the run goes on
  twice    a second run in the same folder is refused, and the first does not notice
  term     SIGTERM in the first seconds ends a run within 2; a compiler's stale lock does not stop the next

The scripts run as they are. To save the imports (half an hour in all) each run is forked from a process that
has imported torch, transformers and DeepSpeed; several processes of a run get the variables that torchrun
sets. An audit hook of Python sees the file-system events and kills at one of them. A run has one core and one
thread, hence the same bits each time. Prints a line for each case and a table; the folders of cases that went
wrong stay in out_dir. Exit code 1 if one did.
"""

import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with  python -m experiments.crash --key=value
kills = 100               # at least so many, in all runs together
seed = 0                  # of the moments
only = ""                 # parts, with commas; '' = all
out_dir = "/tmp/nanor1v-crash"
jobs = 2                  # cases at a time, each on a core of its own
# -----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
ROWS = "scenes:clevr?rows=11&seed=5&layout=grid&objects=1-3"  # 24 are used: the data are shuffled anew twice
# three saves, two are kept
TRAIN = ["--model={model}", f"--data_source={ROWS}", "--out_dir=run", "--steps=6", "--save_interval=2",
         "--keep=2", "--dtype=float32", "--grad_checkpointing=False", "--micro_tokens=4096",
         "--learning_rate=1e-3", "--lr_schedule=constant", "--warmup_steps=0", "--max_prompt_length=128"]
SFT = ["train_sft.py", *TRAIN, "--batch_size=4", "--max_completion_length=20"]  # longer rows are skipped
GRPO = ["train_grpo.py", *TRAIN, "--rollout=hf", "--prompts_per_step=4", "--group_size=2",
        "--reward_workers=0", "--temperature=1.0", "--max_completion_length=8", f"--eval_source={ROWS}",
        "--eval_rows=4", "--eval_interval=3",
        '--reward_weights={"accuracy": 1.0, "repetition": 1.0, "cosine": 1.0}']
RUNS = {  # name: (command, processes)
    "sft": ([*SFT, "--zero_stage=0"], 1),
    "grpo": ([*GRPO, "--zero_stage=2"], 1),
    "anew": ([*SFT, "--zero_stage=0", "--resume=False"], 1),  # starts over each time, in what is left there
    "sft x 2": ([*SFT, "--zero_stage=2"], 2),
    "grpo x 2": ([*GRPO, "--zero_stage=2"], 2),
}
EVAL = ["eval.py", "--model=run/step-000004", "--backend=hf", "--dtype=float32", f"--data_source={ROWS}",
        "--limit=4", "--max_completion_length=12", "--score_workers=0", "--page_rows=0", "--out_dir=eval"]
OTHER = {"sft": "grpo", "grpo": "sft", "sft x 2": "grpo x 2", "grpo x 2": "sft x 2"}  # the other script
STOPS = {"before save 3": "resume/step-000006", "before export 2": "mkdir run/step-000004"}  # where to begin
HARMS = ("empty", "half", "flipped", "missing", "noise")
FULL = {  # the disk is full from this event on: in a new run ...
    "new": ["start", "config.json", "run.json", "open run/metrics.jsonl", "rollouts.jsonl",
            "mkdir run/resume/step-000004", "resume/step-000004.tmp/loop", "resume/step-000004.tmp/manifest",
            "rename run/resume/step-000004", "mkdir run/step-000004", "run/step-000004.tmp/tokenizer",
            "run/step-000004.tmp/manifest", "rename run/step-000004", "run/resume/step-000002.old",
            "run/step-000002.old"],
    # ... and in one that was killed between the state and the export of its second save
    "resumed": ["config.json", "metrics.jsonl.tmp", "rollouts.jsonl.tmp", "run.json",
                "mkdir run/step-000004", "run/step-000004.tmp/tokenizer", "rename run/step-000004"],
}
# fmt: on


class Violation(Exception):
    """Something that a user would have lost, or not have been told."""

    kills = 0


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise Violation(sentence)


# -----------------------------------------------------------------------------
# a run: processes that are killed at an event or a moment
# -----------------------------------------------------------------------------


def watch(folder: Path, at_event: Callable[[int, str], None]) -> None:
    """From now on call at_event(n, "os.mkdir run/resume") before the n-th change of a name in folder/run.

    Python reports where it opens for writing, makes, renames, removes. What C++ and Rust write (torch.save,
    safetensors) it does not see: cut() is for them.
    """
    count = itertools.count(1)
    with_folder = ("os.mkdir", "os.remove", "os.rmdir")  # paths relative to a folder that is open
    events = ("open", "os.rename", "os.truncate", "shutil.rmtree", *with_folder)

    def hook(event: str, arguments: tuple) -> None:
        if event not in events or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        inside = arguments[-1] if event in with_folder else -1
        base = os.readlink(f"/proc/self/fd/{inside}") if inside >= 0 else folder
        path = os.path.join(base, os.fsdecode(arguments[0]))
        if path.startswith(str(folder / "run")):
            at_event(next(count), f"{event} {os.path.relpath(path, folder)}")

    sys.addaudithook(hook)


def at(place: int | str, action: Callable[[], None]) -> Callable[[int, str], None]:
    """An at_event: the action, once, before event number `place` or before the first that holds this text."""
    done = []

    def at_event(n: int, what: str) -> None:
        if not done and (n == place if isinstance(place, int) else place in what):
            done.append(n)
            os.write(2, f"[{what}]\n".encode())
            action()

    return at_event


def die() -> None:
    os.kill(0, signal.SIGKILL)  # 0: all processes of the run


def cut(size: int) -> None:
    """From now on the first file that grows beyond so many bytes is cut off there, and its writer killed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def become(folder: Path, command: list[str], log: str, variables: dict, at_event) -> None:
    """Be the script, in this forked process, and leave as Python would."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(folder / log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv, sys.path[0] = command, str(ROOT)
    if at_event:
        watch(folder, at_event)
    code = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    os._exit(code)


def script(command: list[str]) -> list[str]:
    return [str(ROOT / command[0]), *(part.replace("{model}", f"{out_dir}/model") for part in command[1:])]


def start(folder: Path, command: list[str], world: int = 1, at_event=None, log: str = "log.txt") -> list[int]:
    """The processes of a script that starts in this folder: a process group, named after the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids = []
    for rank in map(str, range(world)):
        size = str(world)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pid = os.fork()
        group = pids[0] if pids else pid  # pid is 0 in the child
        os.setpgid(pid, group)
        if pid == 0:
            become(folder, script(command), log, variables if world > 1 else {}, None if pids else at_event)
        pids.append(pid)
    return pids


def end(pids: list[int], kill_after: float = math.inf, alone: bool = False, limit: float = 120) -> int:
    """Exit code of the first process, or if it is 0 of one that failed; minus the signal that killed it.

    After kill_after seconds all are killed, with `alone` the last one. When one has ended badly, the others
    are told, and killed after 5 s: as torchrun does it.
    """
    started, codes, told = time.time(), {}, math.inf
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        age = time.time() - started
        if age > kill_after and pids[-1] not in codes:
            kill_after = math.inf
            os.kill(pids[-1] if alone else -pids[0], signal.SIGKILL)
        if any(codes.values()) and told == math.inf:
            told = age
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGTERM)
        if age > min(limit, told + 5):
            kill_group(pids[0])
        time.sleep(0.01)
    kill_group(pids[0])  # the report that the script has started and does not wait for
    require(age < limit, f"no end after {limit} s")
    return codes[pids[0]] or next((code for code in codes.values() if code), 0)


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def go(folder: Path, command: list[str], world: int = 1, at_event=None, **options) -> int:
    return end(start(folder, command, world, at_event), **options)


# -----------------------------------------------------------------------------
# what a run has left
# -----------------------------------------------------------------------------


def console(folder: Path) -> str:
    """What the runs in this folder have said, without the list of knobs at the start."""
    path = folder / "log.txt"
    return re.sub(r"(?m)^\w+: .* -> .*\n", "", path.read_text(errors="replace")) if path.exists() else ""


def last_line(folder: Path) -> str:
    return console(folder).strip().split("\n")[-1][:250]


def newest(folder: Path) -> int:
    """Step of the newest resume state, 0 if there is none."""
    names = [path.name for path in folder.glob("run/resume/step-*") if path.suffix != ".tmp"]
    return max([int(name.removeprefix("step-")) for name in names], default=0)


def content(path: Path):
    """Bytes of a file; of a log its records without seconds, memory and speed."""
    if path.suffix != ".jsonl":
        return path.read_bytes()
    timed = re.compile(r"seconds|memory|_per_s$")
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        return path.read_bytes()
    return [{key: value for key, value in record.items() if not timed.search(key)} for record in records]


def differences(folder: Path, name: str) -> list[str]:
    """What is lost, left over or not as in the undisturbed run."""
    now, then = folder / "run", Path(out_dir, "reference", name, "run")
    files = {str(path.relative_to(run)) for run in (now, then) for path in run.rglob("*") if path.is_file()}
    found = []
    for file in sorted(files):
        if re.fullmatch(r"run.json|curves.png|rollouts.html|\..*", file):
            continue  # a date; the report's pages, and what it was writing
        if not (then / file).exists():
            found.append(f"left over: {file}")
        elif not (now / file).exists():
            found.append(f"lost: {file}")
        elif content(now / file) != content(then / file):
            found.append(f"differs: {file}")
    return found


def compare(folder: Path, name: str) -> None:
    found = differences(folder, name)
    require(not found, ", ".join(found[:3]))


def finish(folder: Path, name: str) -> None:
    """Run the command to its end: it must go on from the newest state, and come to the same end."""
    before, said = newest(folder), len(console(folder))
    code = go(folder, *RUNS[name])
    text = console(folder)[said:]
    require(code == 0, f"exit code {code}: {last_line(folder)}")
    goes_on = not before or name == "anew" or f"resume: step {before} of" in text
    require(goes_on, f"did not go on from step {before}")
    for path in re.findall(r"run/(?:resume/)?step-\d{6}", text):
        there = path.endswith("000002") or (folder / path).is_dir()  # those of step 2 are removed in the end
        require(there, f"the console names {path}, which is not there")
    compare(folder, name)


def refusal(folder: Path, code: int, *words: str) -> str:
    """The last line. Violation unless the exit code is 1, there is no traceback, and the words were said."""
    text = console(folder)
    require(code == 1, f"exit code {code}: {last_line(folder)}")
    require("Traceback" not in text, f"a traceback: {last_line(folder)}")
    require(re.match(r"\w+: ", last_line(folder)) is not None, f"no sentence: {last_line(folder)}")
    for word in words:
        require(word in text, f"'{word}' is not named: {last_line(folder)}")
    return last_line(folder)


# -----------------------------------------------------------------------------
# parts: a case is a function of (new folder, name of the run, what); raises Violation or returns a note
# -----------------------------------------------------------------------------


def reference(folder: Path, name: str, what: str) -> str:
    """The run that nobody disturbs. Its events go to events.txt, its seconds to seconds.txt."""
    events = os.open(folder / "events.txt", os.O_WRONLY | os.O_CREAT)
    started = time.time()
    code = go(folder, *RUNS[name], lambda n, event: os.write(events, f"{event}\n".encode()))
    require(code == 0, f"exit code {code}: {last_line(folder)}")
    (folder / "seconds.txt").write_text(str(time.time() - started))
    return f"{len((folder / 'events.txt').read_text().splitlines())} events"


def stopped(folder: Path, name: str, what: str) -> str:
    """A run that is killed where other cases begin, and an evaluation of its last export."""
    require(go(folder, *RUNS[name], at(STOPS[what], die)) == -signal.SIGKILL, "not killed")
    if (folder / "run/step-000004").exists():
        require(go(folder, EVAL) == 0, last_line(folder))
    return f"state of step {newest(folder)}"


def killed(folder: Path, name: str, what: list[tuple]) -> str:
    """One kill after the other, each in the same command, which then comes to its end.

    what: ("event", number or text), ("cut", number of the event, bytes), ("all" or "last", seconds).
    """
    done = []
    try:
        for kind, place, *size in what:
            before, options = newest(folder), {}
            if kind in ("all", "last"):
                options = {"kill_after": place, "alone": kind == "last"}
            else:
                options = {"at_event": at(place, functools.partial(cut, *size) if size else die)}
            code = go(folder, *RUNS[name], **options)
            if code == 0:  # it was over before
                break
            done.append((kind, place, *size))
            by_us = code in (-signal.SIGKILL, -signal.SIGXFSZ) or kind == "last"
            require(by_us, f"exit code {code}: {last_line(folder)}")
            require(newest(folder) >= before or name == "anew", f"the state of step {before} is lost")
        finish(folder, name)
    except Violation as problem:
        problem.kills = len(done)
        raise
    return f"{len(done)} kills"


def harm(path: Path, how: str) -> None:
    """Do to the file what disks and people do."""
    whole = path.read_bytes()
    middle = min(len(whole) // 2 | 3, len(whole) - 1)  # in weights the high byte of a float
    bit = 1 if path.suffix in (".json", ".jsonl", ".jinja") else 64
    harmed = {
        "empty": b"",
        "half": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ bit]) + whole[middle + 1 :],
        "noise": random.Random(seed).randbytes(len(whole)),
    }
    path.unlink()
    if how != "missing":
        path.write_bytes(harmed[how])


def corrupt(folder: Path, name: str, what: str) -> str:
    """A run that was killed before its third save, then harmed. what: "resume/*/loop.json missing"."""
    shutil.copytree(Path(out_dir, "stopped", "before save 3"), folder, dirs_exist_ok=True)
    (folder / "log.txt").unlink()
    file, how = what.split(" ")
    for path in list((folder / "run").glob(file)):
        harm(path, how)
    word = Path(file).name
    if file.startswith("step-"):
        rows = json.loads((folder / "eval/eval.json").read_text())["results"]
        shutil.rmtree(folder / "eval")
        code = go(folder, EVAL)
        if code != 0:
            # a bit of the manifest is one of a checksum: it speaks of another file
            return refusal(folder, code, "is damaged" if word == "manifest.json" else word)
        same = json.loads((folder / "eval/eval.json").read_text())["results"] == rows
        require(same or word in console(folder), "other outputs, without a word")
        return "the same outputs" if same else f"other outputs; it names {word}"
    code = go(folder, *RUNS[name])
    text = console(folder)
    if code != 0:
        return refusal(folder, code, "resume" if file.startswith("resume/") else word)
    if differences(folder, name) == [f"differs: {file}"] and file.endswith(".jsonl"):
        require(word in text or how == "flipped", f"differs: {file}, without a word")
        return f"goes on, all else exact; it {'names' if word in text else 'does not notice'} the log"
    compare(folder, name)
    if file.startswith("resume/step-000004"):
        require("'run/resume/step-000004' is damaged" in text, "the damage is not named")
    return "goes on, all exact"


def full(folder: Path, name: str, what: str) -> str:
    """A disk of 100 MB. what: "new 0 run.json", so many bytes are left from this event on."""
    kind, left, event = what.split(" ", 2)
    run, ballast = folder / "run", folder / "run/ballast"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", run], check=True)
    try:
        if kind == "resumed":
            shutil.copytree(Path(out_dir, "stopped", "before export 2", "run"), run, dirs_exist_ok=True)

        def fill():
            (folder / "before").write_text(str(newest(folder)))
            disk = os.statvfs(run)
            with open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - int(left))

        if event == "start":
            fill()
        code = go(folder, *RUNS[name], at(event, fill))
        require(ballast.exists(), f"no event '{event}'")
        ballast.unlink()
        require(newest(folder) >= int((folder / "before").read_text()), "a state is lost")
        note = refusal(folder, code) if code else "needs no more room"
        finish(folder, name)
        return note
    finally:
        subprocess.run(["umount", "-l", run], check=True)


def twice(folder: Path, name: str, what: str) -> str:
    """A second run in the folder of a first, which holds still meanwhile."""
    command, world = RUNS[OTHER[name] if what == "other script" else name]
    if what == "resume=False":
        command = [*command, "--resume=False"]
    stop = at("open run/metrics.jsonl", lambda: os.kill(0, signal.SIGSTOP))
    first = start(folder, *RUNS[name], stop, log="first.txt")
    _, status = os.waitpid(first[0], os.WUNTRACED)
    require(os.WIFSTOPPED(status), "the first run has ended")
    try:
        code = go(folder, command, world)
    finally:
        os.killpg(first[0], signal.SIGCONT)
        first_code = end(first)
    require(code == 1 and "another run is" in console(folder), f"exit code {code}: {last_line(folder)}")
    require(first_code == 0, f"the first run: exit code {first_code}")
    compare(folder, name)
    return "refused"


def term(folder: Path, name: str, what: str) -> str:
    """The script, not forked, and SIGTERM after `what` seconds; "lock": a killed compiler has left one."""
    command, world = script(RUNS[name][0]), RUNS[name][1]
    torchrun = [f"{sys.prefix}/bin/torchrun", "--standalone", f"--nproc_per_node={world}"]
    launch = torchrun if world > 1 else [sys.executable]
    if what == "lock":
        lock = folder / "extensions/deepspeed_shm_comm/lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
    else:
        command += ["--steps=100000", "--save_interval=0"]
    variables = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    with open(folder / "log.txt", "w") as log:
        options = {"cwd": folder, "env": variables, "stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen(launch + command, **options)
    try:
        if what == "lock":
            require(process.wait(60) == 0, last_line(folder))
            compare(folder, name)
            return "runs, to the same end as a forked one"
        time.sleep(float(what))
        told = time.time()
        process.terminate()
        process.wait(60)
        require(time.time() - told < 2, f"{time.time() - told:.1f} s to end")
        return f"{time.time() - told:.1f} s to end, state of step {newest(folder)}"
    except subprocess.TimeoutExpired:
        raise Violation("no end after 60 s") from None
    finally:
        kill_group(process.pid)
        process.wait()


# -----------------------------------------------------------------------------
# main
# -----------------------------------------------------------------------------


def ready(cores, folder: str) -> None:
    """A worker: on a core of its own, with the imports that its forks need."""
    global out_dir
    out_dir = folder
    os.sched_setaffinity(0, {cores.get()})
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)  # two runs at a time must not be told to meet at one port
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "DS_IGNORE_CUDA_DETECTION": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "DS_LOG_LEVEL": "error"}
    import deepspeed  # noqa: F401
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor  # noqa: F401


def case(task: tuple) -> tuple[str, int, bool]:
    """(part, kills, went well) of (part, function, name of the run, what); prints its line."""
    part, function, name, what = task
    label = " ".join(" ".join(map(str, kill)) for kill in what) if isinstance(what, list) else what
    own = {reference: name, stopped: label}.get(function, f"{name} {label}")
    folder = Path(out_dir, part, own.replace("/", "|"))
    folder.mkdir(parents=True)
    made, right = 0, True
    try:
        note = function(folder, name, what)
        made = int(note.split()[0]) if function is killed else 0
        if part not in ("reference", "stopped"):
            shutil.rmtree(folder)
    except Violation as problem:
        note, made, right = f"VIOLATION {problem}", problem.kills, False
    print(f"{part:<9} {name:<8} {label:<55} {note}", flush=True)
    return part, made, right


def plan(part: str) -> list[tuple]:
    """The cases of a part other than kills."""
    if part == "corrupt":
        run = Path(out_dir, "stopped", "before save 3", "run")
        files = [str(path.relative_to(run)) for path in sorted(run.rglob("*")) if path.is_file()]
        files = [file for file in files if "step-000002" not in file and not file.endswith((".png", ".html"))]
        harms = [f"{file} {how}" for file in [*files, "resume/*/loop.json"] for how in HARMS]
        return [(part, corrupt, "grpo", what) for what in harms]
    if part == "disk":
        places = [(kind, left, event) for kind in FULL for event in FULL[kind] for left in (0, 2_000_000)]
        return [(part, full, "grpo", " ".join(map(str, place))) for place in places]
    if part == "twice":
        seconds = ("again", "resume=False", "other script")
        return [(part, twice, name, what) for name in OTHER for what in seconds]
    moments = ["0.2", "1", "2", "3", "5", "8", "lock"]
    return [(part, term, name, what) for name in OTHER for what in moments]


def plan_kills(number: int) -> tuple:
    """A run that is killed up to three times: half of them at moments, half at events."""
    name = list(RUNS)[number % len(RUNS)]
    dice = random.Random(f"{seed} {number}")
    beside = Path(out_dir, "reference", name)
    events = len((beside / "events.txt").read_text().splitlines())
    what = []
    for attempt in range(3):
        most = events if attempt == 0 else events // 2  # a resumed run has fewer
        place = 1 + int(most * (number * 0.618 % 1))  # evenly spread over all runs
        moment = round(dice.uniform(0, float((beside / "seconds.txt").read_text())), 2)
        kinds = [("event", place), ("event", place), ("cut", place, int(10 ** dice.uniform(4.3, 6.5)))]
        if (number // len(RUNS) + attempt) % 2:
            kinds = [("all", moment)] if RUNS[name][1] == 1 else [("all", moment), ("last", moment)]
        what.append(dice.choice(kinds))
    return "kills", killed, name, what


if __name__ == "__main__":
    configure(globals(), sys.argv[1:], __file__)
    known = ("kills", "corrupt", "disk", "twice", "term")
    parts = only.split(",") if only else known
    if set(parts) - set(known):
        raise SystemExit(f"only: '{only}'; the parts are {', '.join(known)}")
    out_dir = str(Path(out_dir).resolve())
    shutil.rmtree(out_dir, ignore_errors=True)
    subprocess.run([sys.executable, ROOT / "qwen.py", f"{out_dir}/model"], check=True, capture_output=True)

    context = multiprocessing.get_context("fork")
    cores = context.Queue()
    for core in itertools.islice(itertools.cycle(sorted(os.sched_getaffinity(0))), jobs):
        cores.put(core)
    done = []  # (part, kills, went well) of each case
    with context.Pool(jobs, ready, (cores, out_dir)) as pool:
        tasks = [("reference", reference, name, "") for name in RUNS]
        done += pool.imap_unordered(case, tasks)
        done += pool.imap_unordered(case, [("stopped", stopped, "grpo", what) for what in STOPS])
        if not all(right for *_, right in done):
            raise SystemExit("crash: the undisturbed runs did not end well, see above")
        numbers = itertools.count()
        while "kills" in parts and sum(made for _, made, _ in done) < kills:
            done += pool.imap_unordered(case, [plan_kills(next(numbers)) for _ in range(2 * len(RUNS))])
        for part in parts:
            if part != "kills":
                done += pool.imap_unordered(case, plan(part))

    print(f"\n{'part':<9} cases  kills  violations")
    for part in dict.fromkeys(part for part, *_ in done):
        rights = [right for name, _, right in done if name == part]
        made = sum(made for name, made, _ in done if name == part)
        print(f"{part:<9} {len(rights):>5} {made:>6} {rights.count(False):>11}")
    sys.exit(not all(right for *_, right in done))
