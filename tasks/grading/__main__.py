"""Which rule decides? The stages of a verdict, a line each.

    python -m tasks.grading ANSWER REFERENCE --task=math [--problem=TEXT] [--options="red;blue"] [--lenient]

ANSWER is what stands in the tag, or a whole completion: one with tags, or with --lenient one without. "-"
reads it from stdin, "@answer.txt" from a file. --options may be repeated, an option each. The stages are
those of tasks/grading/, in their order; the last line is the verdict and the rule that gave it.
"""

import sys
from pathlib import Path

from tasks.grading import VERIFIERS, task_of, verdict
from tasks.grading.find import OPENING_TAG, extract_answer
from tasks.grading.stages import noted
from tasks.grading.symbolic import attempt

WIDTH = 160  # characters of a line


def read_words(words: list[str]) -> tuple[str, dict, bool]:
    """(answer, row, lenient) from the command line. SystemExit, one sentence, for what is none."""
    row = {"task": "auto", "problem": "", "options": []}
    texts = []
    lenient = False
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--lenient":
            lenient = True
        elif equals and name == "--options":
            row["options"] += [option.strip() for option in value.split(";")]
        elif equals and name in ("--task", "--problem"):
            row[name[2:]] = value
        elif word.startswith("--"):
            raise SystemExit(f"'{word}' is none of --task=, --problem=, --options= and --lenient")
        else:
            texts.append(word)
    if len(texts) != 2:
        raise SystemExit(
            'usage: python -m tasks.grading ANSWER REFERENCE --task=math, both in quotes: "2 cm"'
        )
    if row["task"] not in VERIFIERS:
        raise SystemExit(f"unknown task '{row['task']}'; known tasks: {', '.join(sorted(VERIFIERS))}")
    answer, row["solution"] = texts
    return read_text(answer), row, lenient


def read_text(word: str) -> str:
    """The text itself, of "@file" the file's, of "-" what comes in."""
    if word == "-":
        return sys.stdin.read()
    if not word.startswith("@"):
        return word
    try:
        return Path(word[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not in UTF-8
        raise SystemExit(f"'{word[1:]}' cannot be read: {error}") from error


def explain(text: str, row: dict, lenient: bool = False) -> list[str]:
    """The lines about an answer, or about a completion that holds tags or is read leniently."""
    with noted() as notes:
        answer = text.strip()
        if lenient or OPENING_TAG.search(text):
            answer = extract_answer(text, strict=not lenient, task=task_of(row))
        value = (attempt(verdict, answer, row) or 0.0) if answer else 0.0
    task = row["task"]
    lines = [
        line("answer", text),
        line("reference", row["solution"]),
        line("task", f"{task}: {rule_of(task)}"),
    ]
    lines += [line(stage, said) for stage, said in notes]
    lines.append(line(*outcome(value, notes)) if answer else "wrong:     there is no answer")
    return lines


def rule_of(task: str) -> str:
    """What the task asks for: the first line of its verifier's docstring."""
    return VERIFIERS[task].__doc__.split("\n")[0]


def outcome(value: float, notes: list[tuple[str, str]]) -> tuple[str, str]:
    """("right:", the rule that said yes), ("wrong:", the last one asked), ("0.89:", of a soft task)."""
    asked = [said.rpartition(": ") for stage, said in notes if stage == "rule"]
    said_yes = [rule for rule, _, says in asked if says == "yes"]
    if value == 1:
        return "right:", f"by the rule '{said_yes[-1]}'" if said_yes else "by the rule of the task"
    if value:
        return f"{value:.2f}:", "by the rule of the task"
    return "wrong:", f"by the rule '{asked[-1][0]}'" if asked else "by the rule of the task"


def line(stage: str, said: str) -> str:
    """One line, aligned, of what a stage came to."""
    said = " / ".join(said.split("\n"))
    if len(said) > WIDTH:
        said = said[: WIDTH // 2] + " ... " + said[-WIDTH // 2 :]
    return f"{stage:<11}{said}".rstrip()


if __name__ == "__main__":
    print("\n".join(explain(*read_words(sys.argv[1:]))))
