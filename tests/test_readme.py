"""The README keeps its word: files, line counts and commands are those of the repository, and its first commands run.

.venv/bin/pytest tests/test_readme.py
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configurator import configure

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text().replace("\\\n      ", "")  # long commands go on in the next line
COMMANDS = re.findall(
    r"^    ((?:python|torchrun|bash|\.venv/bin/\w+) .*?)(?:\s{2,}#.*)?$", README, re.MULTILINE
)


def test_file_table_matches_the_tree():
    table = {
        name: int(lines)
        for name, lines in re.findall(r"^\| \[([\w/]+\.py)\]\([\w/]+\.py\) \| (\d+) \|", README, re.MULTILINE)
    }
    files = [p for folder in (ROOT, ROOT / "tasks", ROOT / "experiments") for p in folder.glob("*.py")]
    assert set(table) == {str(p.relative_to(ROOT)) for p in files if p.name != "__init__.py"}
    for name, lines in table.items():  # the count may drift a little between edits, not more
        assert abs(len((ROOT / name).read_text().splitlines()) - lines) <= 15, name


def test_the_loop_stays_readable_in_one_sitting():
    lines = (ROOT / "train_grpo.py").read_text().splitlines()
    assert len(lines) <= 550
    assert sum("#" in line for line in lines) >= len(lines) / 4.5  # about one line in four explains
    numbered = [
        int(n)
        for n in re.findall(
            r"^ +# (\d)\) ", "\n".join(lines[lines.index('if __name__ == "__main__":') :]), re.MULTILINE
        )
    ]
    assert (
        numbered == sorted(set(numbered)) and numbered[0] == 1 and numbered[-1] == 9
    )  # the README's steps, in order


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"(train_grpo|train_sft|eval)\.py", c)])
def test_commands_name_existing_scripts_configs_and_knobs(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = next(i for i, w in enumerate(words) if w.endswith(".py"))
    configure(
        {}, words[script + 1 :], words[script]
    )  # raises SystemExit on an unknown config file, knob or type


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_has_a_header_with_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    header = re.match(r"(?:#.*\n)+", path.read_text()).group()
    script, arguments = re.search(
        r"\b((?:train_grpo|train_sft|eval|distill)\.py)((?: (?:configs/[\w/]+\.py|--\S+))+)", header
    ).groups()
    assert str(path.relative_to(ROOT)) in arguments.split()
    configure({}, arguments.split(), script)


@pytest.mark.slow
def test_first_commands_of_the_readme_run(tmp_path):
    """qwen.py, train_sft.py, train_grpo.py exactly as the README has them, in a copy of the project, cut to 2 steps."""
    for item in [*ROOT.glob("*.py"), ROOT / "tasks", ROOT / "configs"]:
        (shutil.copytree if item.is_dir() else shutil.copy)(item, tmp_path / item.name)
    commands = COMMANDS[COMMANDS.index("python qwen.py out/tiny") :][:3]
    assert [c.split()[0] for c in commands] == ["python", "torchrun", "torchrun"]
    grpo = " --steps=2 --prompts_per_step=2 --group_size=2 --eval_rows=4 --model=out/tiny_sft/step-000002"
    short = ["", " --steps=2 --batch_size=4", grpo]
    bin_folder = str(Path(sys.executable).parent)
    for command, more in zip(commands, short, strict=True):
        env = os.environ | {"PATH": bin_folder + os.pathsep + os.environ["PATH"]}
        done = subprocess.run(
            (command + more).split(), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out/tiny_grpo/step-000002/model.safetensors").exists()


def test_the_table_of_benchmarks_is_that_of_the_code():
    from tasks import benchmarks

    assert benchmarks.table_markdown() in README
