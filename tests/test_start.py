"""The start of a run: what does not fit is said in one sentence, before anything long begins.

python -m pytest tests/test_start.py        # 2 CPU cores, 15 seconds; half a minute more with the slow one
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import GRPO, ROOT, Script, environment, records

import common
import qwen
from configurator import find_block

# -----------------------------------------------------------------------------
# the sentence under torchrun
# -----------------------------------------------------------------------------

# each process does what argv says of its rank, then all meet in a collective, as in the middle of a step
TOY = """
import sys
import common

def main():
    rank, world, device = common.setup(0)
    stop = common.StopSignal()  # as in the loop: torchrun's SIGTERM is noted, and must still end us
    what = sys.argv[1 + rank]
    if what == "refuse":
        raise SystemExit("loss: nan at step 7; lower learning_rate")
    if what == "fail":
        {}["a bug"]
    common.all_gather(rank)

common.run(main)
"""


def torchrun(folder, *what: str) -> tuple[str, int]:
    """What the toy prints on two processes, and the exit code."""
    (folder / "toy.py").write_text(TOY)
    environ = environment(Path(sys.executable).parent) | {"PYTHONPATH": str(ROOT)}
    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2"]
    command += [str(folder / "toy.py"), *what]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr, done.returncode


@pytest.mark.parametrize("what", [("refuse", "refuse"), ("wait", "refuse")])
def test_the_sentence_is_the_last_line_and_stands_there_once(tmp_path, what):
    """Of one process or of all: the others, which lose their partner, say nothing."""
    text, code = torchrun(tmp_path, *what)
    assert code == 1
    *_, last, ruler = text.strip().splitlines()
    assert last.endswith("loss: nan at step 7; lower learning_rate") and set(ruler) == {"="}
    assert text.count("lower learning_rate") == 1
    assert text.count("Traceback") == 1 and "Connection closed" not in text  # the one is torchrun's own


def test_a_bug_keeps_its_traceback(tmp_path):
    text, code = torchrun(tmp_path, "wait", "fail")
    assert code == 1 and text.count('toy.py", line') == 1 and text.count("KeyError: 'a bug'") == 2
    assert text.strip().splitlines()[-2].endswith("KeyError: 'a bug' (its traceback is above)")


# -----------------------------------------------------------------------------
# stopping
# -----------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_saves_the_step(tiny_folder, tmp_path):
    """Its SIGTERM goes to whole process groups; the processes that score must outlive it, for this step."""
    knobs = ["--rollout=hf", "--steps=100000", f"--model={tiny_folder()}", f"--out_dir={tmp_path}/run"]
    script = Script([*GRPO, *knobs], tmp_path / "log", ranks=2)
    script.wait_for_step(tmp_path / "run", 2)
    script.process.send_signal(signal.SIGTERM)
    script.wait(timeout=60)
    last = records(tmp_path / "run")[-1]["step"]
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == [f"step-{last:06d}"]
    said = [line for line in script.text.splitlines() if line.startswith("stopping after this step")]
    assert len(said) == 1 and "--shutdown-timeout" in said[0]


# -----------------------------------------------------------------------------
# devices, compilers, the hub
# -----------------------------------------------------------------------------


@pytest.fixture
def cpu(monkeypatch):
    """No GPU, and nobody has said that this is meant."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("PATH", "/nowhere")
    return monkeypatch


def test_a_cuda_build_without_a_gpu_is_refused_unless_the_cpu_is_meant(cpu, capsys):
    cpu.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SystemExit, match="built for CUDA 13.0 and sees no GPU; look at nvidia-smi"):
        common.check_device({"dtype": "bfloat16"})
    common.check_device({"dtype": "float32"})
    cpu.setenv("CUDA_VISIBLE_DEVICES", "")
    common.check_device({"dtype": "bfloat16"})  # slow, but asked for
    assert capsys.readouterr().out.count("\n") == 1


def test_a_gpu_config_on_a_cpu_is_one_line_and_a_cpu_config_none(cpu, capsys):
    common.check_device({"dtype": "float32"})
    assert capsys.readouterr().out == ""
    common.check_device({"dtype": "bfloat16"})
    assert "dtype=bfloat16 is for GPUs" in capsys.readouterr().out


def test_a_cpu_build_beside_a_gpu_says_so(cpu, capsys, tmp_path):
    stub(tmp_path / "nvidia-smi", "exit 0")
    cpu.setenv("PATH", str(tmp_path))
    common.check_device({"dtype": "float32"})
    assert capsys.readouterr().out.endswith("for the GPU of this machine run: bash setup.sh\n")


def test_a_missing_compiler_is_named_with_what_needs_none(cpu, tmp_path):
    with pytest.raises(SystemExit, match=r"need g\+\+, which is not there; .*, or set --backend=hf"):
        common.check_compiler("set --backend=hf")
    stub(tmp_path / "c++17", "exit 0")
    cpu.setenv("PATH", str(tmp_path))
    cpu.setenv("CXX", "c++17 -pipe")
    common.check_compiler("set --backend=hf")


@pytest.fixture
def hub(monkeypatch):
    """hub(answer): the hub is a local server that sends these bytes; if there are none, its callers wait."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # put back afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    common.hub_is_there.cache_clear()
    server = socket.create_server(("127.0.0.1", 0))

    def serve(answer: bytes):
        caller, _ = server.accept()
        caller.recv(4096)
        if answer:
            caller.sendall(answer)
        callers.append(caller)  # stays open

    callers = []

    def start(answer: bytes):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return constants

    yield start
    for opened in [server, *callers]:
        opened.close()
    common.hub_is_there.cache_clear()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
def test_a_hub_that_is_silent_or_ill_is_given_up_within_seconds(hub, answer):
    constants = hub(answer)
    assert not common.hub_is_there() and constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_answers_is_there(hub):
    constants = hub(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert common.hub_is_there() and not constants.HF_HUB_OFFLINE


# -----------------------------------------------------------------------------
# models
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{" * 10**5, "config.json' cannot be read"),
        ("config.json", b'{"learning_rate": 0.1}', "no model_type in its config.json"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors is damaged"),
        ("model.safetensors", None, "model.safetensors.index.json is missing"),
        ("tokenizer.json", b'{"version": ', "tokenizer.json is damaged"),
        ("tokenizer.json", None, "tokenizer.json or vocab.json is missing"),
        ("tokenizer_config.json", b"\x80", "tokenizer_config.json is damaged"),
        ("processor_config.json", None, "processor_config.json is missing"),
        ("chat_template.jinja", None, "does not have a chat template"),
        ("chat_template.jinja", b"{% if messages %}", "Unexpected end of template"),
    ],
)
def test_the_damaged_file_of_a_checkpoint_is_named(tiny_folder, tmp_path, name, content, words):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        qwen.load_processor(str(folder))
        qwen.load_model(str(folder))
    assert words in str(stopped.value) and str(folder) in str(stopped.value)
    assert "\n" not in str(stopped.value)


# -----------------------------------------------------------------------------
# knobs
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_grpo.py", "train_sft.py", "eval.py"])
def test_no_variable_of_main_hides_a_knob(script):
    """Knobs are globals: one that main() assigned would be a local variable there, unset until then."""
    program = compile((ROOT / script).read_text(), script, "exec")
    main = [code for code in program.co_consts if getattr(code, "co_name", "") == "main"]
    assert len(main) == 1 and not set(main[0].co_varnames + main[0].co_cellvars) & set(knobs_of(script))


def knobs_of(script: str) -> dict:
    return find_block(str(ROOT / script))[1]


@pytest.mark.parametrize("knob", ["steps", "prompts_per_step", "max_completion_length", "max_pixels"])
@pytest.mark.parametrize("value", [0, -8])
def test_a_count_of_nothing_is_refused(knob, value):
    config = {"rollout": "hf", "compile_layers": False, knob: value}
    with pytest.raises(SystemExit, match=f"{knob}: {value} is not above 0"):
        common.check_knobs(config, 1)


# -----------------------------------------------------------------------------
# setup.sh: what is missing is said before the download
# -----------------------------------------------------------------------------

PYTHON = """case "$*" in
*"(3, 11) <= "*) [ -z "$OLD" ] ;;
*ensurepip*) [ -z "$BARE" ] ;;
*-venv*) echo python3.12-venv ;;
*Python.h*) [ -z "$NO_HEADER" ] ;;
*-dev*) echo python3.12-dev ;;
--version) echo Python 3.10.12 ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip"*) exit 1 ;;
*) echo "unexpected: $*" >&2; exit 99 ;;
esac"""


def stub(path: Path, text: str) -> None:
    """A program that does this."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def setup_says(tmp_path, gpu: bool = False, free: int = 100, compiler: bool = True, **variables: str) -> str:
    """The last line of setup.sh on a machine like this, whose pip finds nothing; it must fail."""
    for name in ("setup.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("awk", "cmp", "cp", "dirname", "grep", "mkdir", "sh"):
        (programs / name).symlink_to(shutil.which(name))
    stub(programs / "python3", PYTHON)
    stub(programs / "df", f"echo; echo disk 0 0 {free}000000")
    stub(programs / "nvidia-smi", "exit 0" if gpu else "exit 9")
    if compiler:
        stub(programs / "gcc", "exit 0")
    command = [shutil.which("bash"), "setup.sh"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": str(programs)} | variables, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"PYTHON": "python9"}, "there is no program 'python9'; install Python 3.11 or newer"),
        ({"OLD": "1"}, "Python 3.11 to 3.14 is needed, Python 3.10.12 found"),
        ({"BARE": "1"}, "apt install python3.12-venv"),
        ({"free": 3}, "3 GB of disk are free in"),
        ({"free": 10, "gpu": True}, "10 GB of disk are free in"),
        ({"gpu": True, "compiler": False}, "a C compiler is needed, which Triton calls on GPUs"),
        ({"gpu": True, "NO_HEADER": "1"}, "apt install python3.12-dev"),
        ({}, "pip finds no math-verify==0.9.0: no network, or no package index"),
        ({"free": 10, "compiler": False, "NO_HEADER": "1"}, "pip finds no"),  # a CPU needs none of these
    ],
)
def test_setup_says_what_is_missing_before_the_download(tmp_path, machine, words):
    assert words in setup_says(tmp_path, **machine)
