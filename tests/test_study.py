"""study.py: its statistics against scipy, and the files that its runs hand on."""

import json

import pytest
from scipy import stats

import data
from experiments import study
from tasks import scenes

A, B = [96.0, 94.4, 97.2], [88.0, 95.0, 91.4]


def test_intervals_are_those_of_scipy():
    mean, half = study.interval(A)
    expected = stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(expected, abs=1e-9)
    mean, half = study.difference(A, B)
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(expected, abs=1e-9)
    assert study.difference([0.0] * 3, [0.0] * 3) == (0.0, 0.0)


def test_lists_are_compared_with_the_scene():
    """A right list in any order counts whole; with a missing, a wrong and a doubled object it is not the list, but names the others."""
    source = "scenes:clevr?rows=9&seed=7&first=40&layout=grid&objects=3-8"
    results, shares = [], []
    for index in range(4):
        objects = [
            f"{o['color']} {o['shape']}" for o in data.load_rows(source).records.scene(index)["objects"]
        ]
        assert objects == [
            f"{o['color']} {o['shape']}"
            for o in scenes.sample_scene(7_000_040 + index, "clevr", "grid", 3, 8)["objects"]
        ]
        said = [objects[::-1], objects[1:], ["pink cube", *objects[1:]], [objects[0], *objects]][index]
        shares.append(
            [
                1,
                (len(objects) - 1) / len(objects),
                (len(objects) - 1) / len(objects),
                len(objects) / (len(objects) + 1),
            ][index]
        )
        results.append(
            {
                "index": index,
                "outputs": [{"text": f"<think> {', '.join(said)} </think> <answer> 3 </answer>"}],
            }
        )
    found = study.faithfulness({"source": source, "results": results})
    assert found["listed"] == 0.25 and found["named"] == pytest.approx(sum(shares) / 4, abs=1e-4)


def test_right_samples_become_rows(tmp_path):
    """Of six samples of a scene: two right ones that are equal, another right one, a wrong one, two without the format."""
    source = "scenes:clevr?rows=3&seed=7&layout=grid&objects=1-3"
    problem, truth = (data.load_rows(source)[1][k] for k in ("problem", "solution"))
    texts = [("a, b", 1, 1), ("a, b", 1, 1), ("b", 1, 1), ("c", 0, 1), ("d", 1, 0)]
    outputs = [
        {"text": f"<think> {t} </think> <answer> {truth} </answer>", "accuracy": a, "format": f}
        for t, a, f in texts
    ]
    result = tmp_path / "eval.json"
    result.write_text(
        json.dumps({"results": [{"index": 1, "problem": problem, "solution": truth, "outputs": outputs}]})
    )
    path, kept = study.keep_right(result, source, tmp_path / "rows")
    rows = data.load_rows(str(path))
    assert kept == len(rows) == 2 and [r["thinking"] for r in rows] == ["a, b", "b"]
    assert rows[0]["images"][0].tobytes() == data.load_rows(source)[1]["images"][0].tobytes()
    assert rows[0]["problem"] == problem and rows[0]["solution"] == truth


def test_the_rate_is_that_of_the_best_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "record", str(tmp_path / "study.jsonl"))
    with pytest.raises(SystemExit, match="--stage=settings"):
        study.chosen_rate("answers")
    found = {5e-4: (0.9, 0.5), 1e-3: (0.7, 0.8), 2e-3: (0.6, 0.6)}  # means 0.70, 0.75, 0.60
    for rate, values in found.items():
        for arm, value in zip(("perfect", "answers"), values, strict=True):
            study.finish(
                {"setting": arm, "learning_rate": rate, "validation": {"clevr": {"accuracy": value}}}
            )
    assert study.chosen_rate("answers") == study.chosen_rate("expert") == 1e-3
