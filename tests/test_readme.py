"""README, docs/ and CONTRIBUTING keep their word: files, links, line counts, commands, knobs, first commands.

.venv/bin/pytest -n 0 tests/test_readme.py
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from configurator import configure, find_block
from tasks import benchmarks

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("", "tasks", "tasks/grading", "experiments")  # whose Python files stand in the README's tables
WITH_KNOBS = (
    "train_grpo.py",
    "train_sft.py",
    "eval.py",
    "chat.py",
    "distill.py",
    "experiments/study.py",
    "experiments/bench.py",
    "experiments/limit.py",
    "experiments/decide.py",
)

# what starts a command of ours, after environment variables: DEVICE=cpu bash experiments/bench_gpu.sh
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|torchrun|bash|\.venv/bin/\w+|\w+\.py) .*")
# flags in the text that are no knobs: torchrun's, and "--key=value"
NOT_OURS = {"nproc_per_node", "shutdown-timeout", "max-restarts", "key"}


def code_of(page: Path) -> list[str]:
    """What a page shows as code: its indented lines, and what stands between backticks in its text."""
    text = re.sub(r"\\\n +", "", page.read_text())  # long commands go on in the next line
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    prose = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", prose)
    return lines + [" ".join(span.split()) for span in spans]


def commands_of(page: Path) -> list[str]:
    """The commands of a page, without comments; `a && b` is two."""
    found = []
    for code in code_of(page):
        for part in code.split(" && "):
            part = re.sub(r"\s+#.*$", "", part).strip()
            if COMMAND.fullmatch(part):
                found.append(part)
    return found


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """Script and arguments of a command, ("", []) if it runs none of ours, as `pip install` does."""
    if "-m" in words:
        at = words.index("-m") + 1
        if words[at].split(".")[0] not in FOLDERS:
            return "", []
        path = words[at].replace(".", "/")
        return f"{path}/__main__.py" if Path(path).is_dir() else f"{path}.py", words[at + 1 :]
    for at, word in enumerate(words):
        if word.endswith((".py", ".sh")):
            return word, words[at + 1 :]
    return "", []


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


SCRIPTS = [script for folder in FOLDERS for script in sorted((ROOT / folder).glob("*.py"))]
KNOBS = {name: find_block(str(ROOT / name))[1] for name in WITH_KNOBS}
COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]


# -----------------------------------------------------------------------------
# files and links
# -----------------------------------------------------------------------------


def test_file_tables_match_the_tree():
    rows = re.findall(r"^\| \[([\w/]+\.py)\]\(([\w/]+\.py)\) \| (\d+) \|", README, re.MULTILINE)
    lines_of = {name: int(lines) for name, target, lines in rows if name == target}
    assert set(lines_of) == {str(s.relative_to(ROOT)) for s in SCRIPTS if s.name != "__init__.py"}
    for name, lines in lines_of.items():  # the count may drift a little between edits, not more
        assert abs(len((ROOT / name).read_text().splitlines()) - lines) <= 15, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_linked_files_and_headings_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_of_docs_is_linked_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page.name


def test_the_table_of_benchmarks_is_that_of_the_code():
    assert benchmarks.table_markdown() in (ROOT / "docs" / "benchmarks.md").read_text()


# -----------------------------------------------------------------------------
# the loop
# -----------------------------------------------------------------------------


def test_the_loop_stays_readable_in_one_sitting():
    path = ROOT / "train_grpo.py"
    source = path.read_text()
    assert len(source.splitlines()) <= 550
    block, _ = find_block(str(path))  # its lines are comments for the most part: they would hide a bare loop
    code = source.replace(block, "")
    commented, lines = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            commented.add(token.start[0])
        elif token.string.strip() and not token.string.startswith('"""'):
            lines.add(token.start[0])
    assert len(commented) >= len(lines | commented) / 5  # one line in five explains


def test_the_steps_of_the_readme_are_those_of_the_loop():
    source = (ROOT / "train_grpo.py").read_text()
    loop = source[source.index("def main():") :]
    assert re.findall(r"^ +# (\d)\) ", loop, re.MULTILINE) == list("123456789")
    section = README.partition("\n## The algorithm\n")[2].partition("\n### ")[0]
    assert re.findall(r"^(\d)\. \*\*", section, re.MULTILINE) == list("123456789")


# -----------------------------------------------------------------------------
# commands
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p.name}: {c}" for p, c in COMMANDS])
def test_commands_name_existing_scripts_configs_and_knobs(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    for word in words:  # what else a command reads: requirements, tests
        if re.fullmatch(r"(?:experiments|tests|configs)/[\w/.-]+", word):
            assert Path(word).exists(), word
    name, arguments = script_of(words)
    if not name:
        return
    assert Path(name).exists(), name
    if name in KNOBS:
        wanted = [a for a in arguments if a != "--help"]
        if name == "chat.py":  # a model, pictures and a question come before its knobs
            wanted = [a for a in wanted if a.startswith("--")]
        configure({}, wanted, name)  # SystemExit: an unknown config file, knob or type


def test_commands_are_found():
    """The test above is worth nothing if the pages are misread."""
    found = [command for _, command in COMMANDS]
    assert "python qwen.py out/tiny" in found
    assert "python -m experiments.bench --image=448 --steps=6" in found  # from a table
    assert "train_grpo.py configs/tiny.py configs/ablate_no_kl.py --seed=2" in found  # from a paragraph
    assert any(command.startswith("DEEPSEEK_API_KEY=... python distill.py") for command in found)
    assert any(
        "--eval_split=valA" in command for command in found
    )  # stands in the second line of its command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_in_the_text_are_knobs(page):
    known = NOT_OURS.union(*KNOBS.values())
    for code in code_of(page):
        if code.startswith("--"):
            assert set(re.findall(r"--([\w-]+)", code)) <= known, code


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_has_a_header_with_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    header = re.match(r"(?:#.*\n)+", path.read_text()).group()
    argument = r"(?: (?:configs/[\w/]+\.py|--\S+))"
    script, arguments = re.search(
        rf"\b((?:train_grpo|train_sft|eval|distill)\.py)({argument}+)", header
    ).groups()
    assert str(path.relative_to(ROOT)) in arguments.split()
    configure({}, arguments.split(), script)


@pytest.mark.slow
def test_first_commands_of_the_readme_run(tmp_path):
    """The first run, command by command as the README has it, in a copy of the project, cut to 2 steps."""
    for item in [*ROOT.glob("*.py"), ROOT / "tasks", ROOT / "configs"]:
        copy = shutil.copytree if item.is_dir() else shutil.copy
        copy(item, tmp_path / item.name)
    commands = commands_of(ROOT / "README.md")
    first = commands.index("python qwen.py out/tiny")
    commands = commands[first : first + 3]
    assert [c.split()[0] for c in commands] == ["python", "torchrun", "torchrun"]
    short = [
        "",
        " --steps=2 --batch_size=4",
        " --steps=2 --prompts_per_step=2 --group_size=2 --eval_rows=4 --model=out/tiny_sft/step-000002",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, more in zip(commands, short, strict=True):
        done = subprocess.run(
            (command + more).split(),
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out/tiny_grpo/step-000002/model.safetensors").exists()
