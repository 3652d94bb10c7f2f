"""Runs the real scripts in processes of their own, and draws pictures; used by several tests."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCENES = "scenes:clevr?rows=200&layout=grid&objects=1-2"
TINY = [
    "--dtype=float32",
    "--grad_checkpointing=False",
    "--zero_stage=0",
    "--micro_tokens=4096",
    "--max_prompt_length=128",
    "--learning_rate=1e-3",
    "--lr_schedule=constant",
]
SFT = [
    "train_sft.py",
    *TINY,
    "--warmup_steps=0",
    "--batch_size=4",
    "--max_completion_length=64",
    f"--data_source={SCENES}",
]
GRPO = [
    "train_grpo.py",
    *TINY,
    "--prompts_per_step=4",
    "--group_size=4",
    "--max_completion_length=24",
    "--temperature=1.0",
    f"--data_source={SCENES}",
]
SOURCES = "scenes:clevr?rows=8&seed=3&layout=grid&objects=1-2"  # held-out rows


def environment(bin: Path) -> dict[str, str]:
    """The variables of a script's process: ours, without what an engine in the pytest process has set."""
    of_engine = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in of_engine}
    # as in an activated environment
    path = f"{bin}{os.pathsep}{inherited.get('PATH', '')}"
    return inherited | {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}


class Script:
    """A running script; its output (both streams) is in `log`. With ranks > 1 it is started by torchrun."""

    def __init__(self, command: list[str], log: Path, ranks=1, env: dict | None = None, preexec_fn=None):
        self.command = command
        self.log = log
        bin = Path(sys.executable).parent
        if ranks > 1:
            start = [str(bin / "torchrun"), "--standalone", f"--nproc_per_node={ranks}"]
        else:
            start = [sys.executable]
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                start + command,
                cwd=ROOT,
                env=environment(bin) | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=preexec_fn,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        # torchrun's workers have sessions of their own; asked politely it ends them
        if "torchrun" in self.process.args[0]:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout: float = 180) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"no end after {timeout} s: {' '.join(self.command)}\n{self.text[-4000:]}")

    def wait_for_step(self, out_dir: Path, step: int, timeout: float = 180) -> None:
        """Until metrics.jsonl has a line of that step."""
        end = time.time() + timeout
        while time.time() < end and self.process.poll() is None:
            if any(r["step"] >= step for r in records(out_dir)):
                return
            time.sleep(0.02)
        self.kill()
        pytest.fail(f"step {step} was not reached: {' '.join(self.command)}\n{self.text[-4000:]}")


def run(command: list[str], log: Path, code: int = 0, timeout: float = 180, **options) -> str:
    """Run a script to its end, check its exit code and return what it printed."""
    script = Script(command, log, **options)
    got = script.wait(timeout)
    assert got == code, f"exit code {got}, expected {code}: {' '.join(command)}\n{script.text[-4000:]}"
    return script.text


def records(out_dir: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The complete lines of a log."""
    path = Path(out_dir, name)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def refuses(command: list[str], log: Path, *words: str, **options) -> str:
    """The script ends with exit code 1 and one sentence that holds all `words`; no traceback.

    Returns the sentence.
    """
    text = run(command, log, code=1, **options)
    assert "Traceback" not in text, text[-4000:]
    found = []
    for line in text.splitlines():
        is_echo = " -> " in line  # of a knob that was set
        if not is_echo and all(word in line for word in words):
            found.append(line)
    assert len(found) == 1, f"{len(found)} lines with {words}:\n{text[-4000:]}"
    return found[0]


def picture(number: int) -> Image.Image:
    """A picture that its width tells from others: 20 + number pixels."""
    return Image.new("RGB", (20 + number, 10), "red")


def picture_bytes(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, kind)
    return buffer.getvalue()
