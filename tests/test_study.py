"""study.py: statistics against scipy, tables against the page, and the files that its runs hand on."""

import json
from pathlib import Path

import pytest
from scipy import stats

import data
from experiments import study
from tasks import scenes

ROOT = Path(__file__).resolve().parent.parent
A = [96.0, 94.4, 97.2]
B = [88.0, 95.0, 91.4]


def test_intervals_are_those_of_scipy():
    mean, half = study.interval(A)
    expected = stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(expected, abs=1e-9)
    mean, half = study.difference(A, B)
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(expected, abs=1e-9)
    assert study.difference([0.0] * 3, [0.0] * 3) == (0.0, 0.0)


def test_the_page_holds_the_tables_of_the_record(monkeypatch):
    monkeypatch.setattr(study, "record", str(ROOT / "docs/study.jsonl"))
    runs = {}
    for line in study.recorded("arm"):
        runs.setdefault(line["arm"], []).append(line)
    assert study.tables(runs) in (ROOT / "docs/study.md").read_text()


def test_lists_are_compared_with_the_scene():
    """A right list in any order counts whole; one with a missing, wrong or doubled object names the rest."""
    source = "scenes:clevr?rows=9&seed=7&first=40&layout=grid&objects=3-8"
    results, shares = [], []
    for index in range(4):
        scene = data.load_rows(source).records.scene(index)
        assert scene == scenes.sample_scene(7_000_040 + index, "clevr", "grid", 3, 8)
        there = [f"{obj['color']} {obj['shape']}" for obj in scene["objects"]]
        n = len(there)
        said, share = [
            (there[::-1], 1),
            (there[1:], (n - 1) / n),
            (["pink cube", *there[1:]], (n - 1) / n),
            ([there[0], *there], n / (n + 1)),
        ][index]
        text = f"<think> {', '.join(said)} </think> <answer> 3 </answer>"
        results.append({"index": index, "outputs": [{"text": text}]})
        shares.append(share)
    found = study.faithfulness({"source": source, "results": results})
    assert found["listed"] == 0.25
    assert found["named"] == pytest.approx(sum(shares) / 4, abs=1e-4)


def test_right_samples_become_rows(tmp_path):
    """Five samples of a scene: two right ones that are equal, another right one, one wrong, one malformed."""
    source = "scenes:clevr?rows=3&seed=7&layout=grid&objects=1-3"
    row = data.load_rows(source)[1]
    outputs = []
    for thinking, accuracy, form in [("a, b", 1, 1), ("a, b", 1, 1), ("b", 1, 1), ("c", 0, 1), ("d", 1, 0)]:
        text = f"<think> {thinking} </think> <answer> {row['solution']} </answer>"
        outputs.append({"text": text, "accuracy": accuracy, "format": form})
    entry = {"index": 1, "problem": row["problem"], "solution": row["solution"], "outputs": outputs}
    result = tmp_path / "eval.json"
    result.write_text(json.dumps({"results": [entry]}))

    path, kept = study.keep_right(result, source, tmp_path / "rows")
    rows = data.load_rows(str(path))
    assert kept == len(rows) == 2
    assert [kept_row["thinking"] for kept_row in rows] == ["a, b", "b"]
    assert rows[0]["images"][0].tobytes() == row["images"][0].tobytes()
    assert rows[0]["problem"] == row["problem"]
    assert rows[0]["solution"] == row["solution"]


def test_the_rate_is_that_of_the_best_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "record", str(tmp_path / "study.jsonl"))
    with pytest.raises(SystemExit, match="--stage=settings"):
        study.chosen_rate("answers")
    found = {5e-4: (0.9, 0.5), 1e-3: (0.7, 0.8), 2e-3: (0.6, 0.6)}  # means 0.70, 0.75, 0.60
    for rate, values in found.items():
        for arm, value in zip(("perfect", "answers"), values, strict=True):
            validation = {"clevr": {"accuracy": value}}
            study.finish({"setting": arm, "learning_rate": rate, "validation": validation})
    assert study.chosen_rate("answers") == study.chosen_rate("expert") == 1e-3
    for line in study.recorded("setting"):
        assert line["commit"] and line["date"]  # what made the line, and when


def test_a_failed_run_does_not_stop_the_others(tmp_path, capsys):
    log = tmp_path / "log.txt"

    def missing_script() -> None:
        study.call(["no_such_script.py"], log)

    def full_disk() -> None:
        raise SystemExit("cannot write")

    tasks = [(missing_script,), (full_disk,), (lambda word: f"{word} done", "third")]
    with pytest.raises(SystemExit, match="2 of 3 runs failed"):
        study.work(tasks)
    said = capsys.readouterr().out
    assert f"no_such_script.py: failed, see the end of {log}" in said
    assert "cannot write" in said
    assert "third done" in said
    assert "no_such_script.py" in log.read_text()
