"""Result files of unknown origin: read, skipped by record, or refused in one sentence; never a traceback.

Run: python -m pytest -q tests/test_results.py
"""

import copy
import json
import random
import sys
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import report  # noqa: E402
import results  # noqa: E402
from tasks import benchmarks  # noqa: E402


def ours() -> dict:
    found = []
    for i in range(3):
        output = {"text": f"<answer>{i}</answer>", "answer": str(i), "accuracy": 1.0, "lenient": 1.0}
        output |= {"format": 0.0, "tokens": 18, "finished": True}
        entry = {"index": i, "id": f"a/{i}", "problem": "How many?", "solution": str(i), "task": "count"}
        entry |= {"labels": {"shape": "cube"}, "image_size": [640, 480], "box_frame": [1000, 1000]}
        found.append(entry | {"outputs": [output, dict(output)]})
    return {"name": "x", "accuracy": 1.0, "skipped": 1, "results": found}


def theirs() -> dict:
    found = []
    for i in range(3):
        record = {"id": i, "question": "q", "ground_truth": i, "model_output": f"<answer>{i}</answer>"}
        record |= {"extracted_answer": i, "is_correct": True, "gold": 1, "options": ["0", "1", "2"]}
        found.append(record)
    return {"accuracy": 25.0, "results": found}


def save(path: Path, record) -> Path:
    path.write_text(json.dumps(record))
    return path


# fmt: off
STRANGE = [
    None, True, -1, 5, 10**400, 1e308, float("nan"), float("inf"),
    "", "\ud83d", "\0", "9" * 4999, "[1, 2, 3, 4]", "yes", "²", "builtins:eval", "<script>",
    [], [1], [[1]], [None], ["a", 3, None], [0, 0], [float("nan")] * 4, [10**400, 1, 2, 3],
    {}, {"a": 1}, {"\ud83d": "\ud83d"}, {"n": "9" * 4500}, {"shape": {"x": [1]}},
]
# fmt: on


def places(node, at=()) -> list[tuple]:
    """The path to every value within a JSON value."""
    found = [at] if at else []
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            found += places(node[key], (*at, key))
    return found


def test_files_with_anything_anywhere_are_read_or_end_in_one_sentence(tmp_path):
    """300 files with one to three values replaced, cut off, or with bytes put in."""
    rng = random.Random(0)
    good = save(tmp_path / "good.json", ours())
    rules = (None, *{benchmark.rule for benchmark in benchmarks.BENCHMARKS.values() if benchmark.rule})
    rules = sorted(rules, key=str)
    ends = {"read": 0, "refused": 0}
    for _ in range(300):
        record = copy.deepcopy(rng.choice([ours(), theirs()]))
        for _ in range(rng.randint(1, 3)):
            *path, last = rng.choice(places(record) or [("results",)])
            node = record
            for key in path:
                node = node[key]
            node[last] = copy.deepcopy(rng.choice(STRANGE))
        text = json.dumps(record).encode()
        if rng.random() < 0.2:
            cut = rng.randrange(len(text))
            text = text[:cut] + rng.choice([b"", b"\xff\0" + text[cut:], b"[" * 9999, b"NaN" + text[cut:]])
        hostile = tmp_path / "f.json"
        hostile.write_bytes(text)
        rule = rng.choice(rules)
        try:
            regraded = results.regrade(hostile, tmp_path, "auto", rule)
            table = {"": {"f": regraded}}
            report.eval_page(tmp_path / "f.html", "f", "graded again", table, {}, 100)
            both = [results.read_graded(path, "auto", rule, "accuracy") for path in (hostile, good)]
            results.print_comparison(results.compare(*both, "accuracy"), [hostile, good])
            ends["read"] += 1
        except SystemExit as end:
            assert isinstance(end.code, str) and "\n" not in end.code
            ends["refused"] += 1
    assert min(ends.values()) > 30, ends  # both ways of ending were tried


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"task": "riddle"}, "task 'riddle' that is none of count, choice"),
        ({"task": ["count"]}, "task ['count'] that is none of"),
        ({"outputs": []}, "has no output"),
        ({"outputs": [{"text": 5}]}, "without a text"),
        ({"outputs": [{"text": "x", "accuracy": 7}]}, "has as accuracy 7, which is not between 0 and 1"),
        ({"outputs": [{"text": "x", "tokens": "many"}]}, "'many' tokens"),
        ({"solution": None}, "has no reference"),
        ({"solution": float("nan")}, "has no reference"),
        ({"solution": {"a": 1}}, "reference that is no text: {'a': 1}"),
        ({"problem": ["q"]}, "problem that is no text"),
        ({"options": ["a", {"b": 1}]}, "option that is no text"),
        ({"box_frame": [0, 1000]}, "box_frame that is no width and height: [0, 1000]"),
        ({"reward_func": "builtins:eval"}, "data cannot name other functions"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_the_rest_is_graded(tmp_path, capsys, change, reason):
    record = ours()
    record["results"][1] |= change
    graded = results.regrade(save(tmp_path / "f.json", record), tmp_path, "auto", None)
    assert graded["n"] == 2 and graded["skipped"] == 1 + 1  # the file's own count, and this one
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped: record" in line]
    assert len(lines) == 1 and "record 1 of 'f.json'" in lines[0] and reason in lines[0]


def test_many_bad_records_are_counted(tmp_path, capsys):
    record = theirs()
    record["results"] += [{"question": "q"}] * 500
    assert results.read_results(save(tmp_path / "f.json", record))["skipped"] == 500
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and "490 more records" in lines[-1]


def test_verdicts_in_words_a_byte_order_mark_and_torn_lines(tmp_path, capsys):
    said = {"yes": 1, "False": 0, " Correct ": 1, "0": 0}
    lines = []
    for word in said:
        lines.append(json.dumps({"question": "q", "answer": "3", "response": "3", "correct": word}))
    lines.insert(2, '{"question": "torn')
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    read = results.read_results(tmp_path / "f.jsonl")
    assert [entry["outputs"][0]["recorded"] for entry in read["results"]] == list(said.values())
    assert read["skipped"] == 1 and "record 2 of 'f.jsonl' is no JSON object" in capsys.readouterr().out


def test_the_row_that_r1v_files_have_for_a_question(tmp_path):
    record = theirs()
    record["results"][0]["question"] = {"image_path": "0.png", "question": "How many?", "ground_truth": 0}
    read = results.read_results(save(tmp_path / "f.json", record))
    assert [entry["problem"] for entry in read["results"]] == ["How many?", "q", "q"]


def test_a_damaged_result_of_our_own_is_named_when_an_evaluation_goes_on(tmp_path):
    for damaged in ('{"knobs": {', '{"knobs": {}, "results": 5}', "[]", "[" * 9999):
        (tmp_path / "a.json").write_text(damaged)
        with pytest.raises(SystemExit, match="a.json' is damaged .*remove it, or --resume=False"):
            results.read_progress(tmp_path, "a", {})


def test_published_rules_are_quick_on_tags_that_never_close():
    output = "<answer>" * 12_500
    for benchmark in benchmarks.BENCHMARKS.values():
        if benchmark.rule:
            started = time.process_time()
            assert not benchmark.rule(output, {"solution": "3"})
            assert time.process_time() - started < 2
