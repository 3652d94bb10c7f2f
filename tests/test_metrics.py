"""The metrics of charts, documents and scene text, as reward and in evaluation, and a user's own metric.

The numbers are worked out by hand, or are those that the papers and the evaluation pages print.
"""

import json
import random
import sys
import time
from pathlib import Path

import published
import pytest
from helpers import ROOT, refuses, run

import results
import rewards
from tasks import benchmarks
from tasks.metrics import anls, relaxed, vqa, vqa_form

# -----------------------------------------------------------------------------
# the formulas
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", 1),  # 5 % exactly
        ("95", "100", 1),
        ("105.01", "100", 0),
        ("0.95", "1", 1),  # 1 - 0.95 is more than 0.05 in floats
        ("-10.4", "-10", 1),
        ("10", "-10", 0),
        ("−10", "-10", 1),  # a typographic minus
        ("1,234", "1200", 1),
        ("$14", "14", 1),
        ("0", "0.0", 1),
        ("0.001", "0", 0),  # no number but 0 is within 5 % of 0
        ("12%", "12.5%", 1),
        ("0.12", "12%", 1),  # a percent sign divides by a hundred, as in the usual scripts
        ("12", "12%", 0),
        ("1950", "2010", 1),  # a year is a number to this metric
        ("Very  good", "very good", 1),
        ("Chile.", "Chile", 1),
        ("Chile and Peru", "Chile", 0),
        ("12 million", "12", 0),
        ("1,2", "12", 0),  # two numbers
        ("[2, 3]", "[2, 3]", 1),
        ("$", "0", 0),
        (".", "0", 0),
        ("1" * 40, "1" * 40, 1),
    ],
)
def test_relaxed(answer, reference, right):
    assert relaxed(answer, reference) == right


def test_anls_is_that_of_the_competition_page():
    # rrc.cvc.uab.es, Document Visual Question Answering, tasks: What soft drink company name is on the disk?
    both = ("Coca Cola", "Coca Cola Company")
    table = {"The Coca": (0, 0), "CocaCola": (0.89, 0), "Coca cola": (1, 0.53), "Cola": (0, 0), "Cat": (0, 0)}
    for answer, scores in table.items():
        assert [anls(answer, one) for one in both] == pytest.approx(list(scores), abs=5e-3), answer
    assert anls("  COCA \n cola ", "Coca Cola") == 1, "case and the number of blanks do not count"
    assert anls("12", "13") == 0, "NL = 0.5 is not below tau"
    assert anls("123", "124") == pytest.approx(2 / 3)
    assert anls("", "x") == 0


def test_vqa_counts_how_many_of_ten_agree():
    # by hand: with k of ten alike, leaving out one of them leaves k - 1, one of the others k
    for k, score in enumerate((0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1)):
        assert vqa("red", ["red"] * k + ["blue"] * (10 - k)) == pytest.approx(score)
    assert vqa("red", ["red"]) == 1 and vqa("red", ["blue", "Red."]) == 1, "too few to agree by three"
    assert vqa("red", ["blue"]) == 0
    assert vqa("red", ["red"] * 2 + ["blue"] * 2) == pytest.approx((2 * 1 / 3 + 2 * 2 / 3) / 4)


def test_vqa_brings_answers_to_one_form():
    # the examples of visualqa.org/evaluation
    forms = {
        "dont": "don't",
        "100,978": "100978",
        "girl's": "girl's",
        "2:50 pm": "2:50 pm",
        "The  Red\ncar.": "red car",
        "2.5": "2.5",
        "two dogs": "2 dogs",
        "None": "0",
        "black/white": "black white",
        "black / white": "black white",
        "p.m.": "pm",
        "x-y z- w": "xy z w",  # of the script: a mark beside a blank is left out everywhere
        "1,000-2,000": "10002000",  # and all are where a comma parts digits
        "a": "",
        "youdve": "youdve",  # two apostrophes are missing
        "you'dve": "you'd've",
        "were hell": "were hell",
        "twenty": "twenty",
    }
    for text, form in forms.items():
        assert vqa_form(text) == form, text


def test_metrics_take_anything_and_at_once():
    strange = ("", " ", "a" * 200_000, "1" * 200_000, "\ud800\0", "'" * 5000, "[['", "<>" * 5000)
    begin = time.time()
    for answer in strange:
        for reference in strange:
            values = (relaxed(answer, reference), anls(answer, reference), vqa(answer, [reference] * 10))
            assert all(type(value) is float and 0 <= value <= 1 for value in values)
    assert time.time() - begin < 10


# -----------------------------------------------------------------------------
# as tasks
# -----------------------------------------------------------------------------


def accuracy(answer, solution, task, **options):
    row = {"problem": "?", "solution": solution, "task": task}
    return rewards.score(f"<think>so</think><answer>{answer}</answer>", row, **options)["accuracy"]


def test_tasks_pay_their_value_over_all_references():
    both = str(["Coca Cola", "Coca Cola Company"])
    assert accuracy("CocaCola", both, "anls") == pytest.approx(8 / 9)
    assert accuracy("Coca Cola Compan", both, "anls") == pytest.approx(16 / 17), "the best, not the first"
    assert accuracy("14.2", str(["20", "14"]), "relaxed") == 1
    # ten people, with apostrophes and quotes, and a list that is longer than most
    ten = ["it's"] * 2 + ['the "end"'] * 8
    assert accuracy("its", str(ten), "vqa") == 0, "its is a word of its own"
    assert accuracy("it's", str(ten), "vqa") == pytest.approx(0.6)
    long = ["x" * 400] * 2 + ["o'clock"] * 8
    assert accuracy("OCLOCK!", str(long), "vqa") == 1
    # read strictly, as every task
    row = {"problem": "?", "solution": "Coca Cola", "task": "anls"}
    assert rewards.accuracy_reward("Coca Cola", row) == 0
    assert rewards.accuracy_reward("The answer is Coca Cola", row, strict=False) == 1


def test_other_parts_of_a_reward_know_soft_accuracies():
    row = {"problem": "?", "solution": str(["red"] * 3 + ["blue"] * 7), "task": "vqa"}
    texts = ["<answer>red</answer>", "<answer>green</answer>"]
    right, wrong = rewards.score_group(texts, row, ("accuracy", "length", "fuzzy"), [10, 20], 100)
    assert right == pytest.approx({"accuracy": 0.9, "length": 0.5, "fuzzy": 0.9})
    assert wrong == {"accuracy": 0, "length": -0.5, "fuzzy": 0}


# -----------------------------------------------------------------------------
# in evaluation
# -----------------------------------------------------------------------------


def entry(index, *accuracies, metric=None):
    outputs = []
    for value in accuracies:
        output = {"text": "<answer>x</answer>", "accuracy": value, "lenient": value, "format": 0.0}
        outputs.append(output | {"tokens": 9, "finished": True} | ({} if metric is None else {"m:f": metric}))
    found = {"index": index, "id": str(index), "problem": f"q{index}", "solution": "x", "task": "anls"}
    return found | {"labels": {}, "outputs": outputs}


def test_a_value_over_a_half_is_right():
    found = results.summary([entry(0, 0.9, 0.3), entry(1, 0.0, 0.5)])
    assert found["accuracy"] == pytest.approx(1.7 / 4)
    assert found["pass_at_k"] == pytest.approx({"1": 0.25, "2": 0.5})


def test_compare_of_values_between():
    a = [entry(i, value) for i, value in enumerate((0.2, 0.9, 0.5, 0.0))]
    b = [entry(i, value) for i, value in enumerate((0.6, 0.9, 0.4, 0.5))]
    found = results.compare(a, b, "accuracy")
    # differences 0.4, 0, -0.1, 0.5: mean 0.2, standard deviation sqrt(0.26 / 3), 1.96 of it over sqrt(4)
    assert found["means"] == pytest.approx([0.4, 0.6])
    assert found["difference"] == pytest.approx(0.2)
    assert found["interval"] == pytest.approx([0.2 - 0.28851, 0.2 + 0.28851], abs=1e-4)
    assert (found["higher"], found["lower"], found["p"]) == (2, 1, 1.0)
    six = results.compare([entry(i, 0.1) for i in range(6)], [entry(i, 0.7) for i in range(6)], "accuracy")
    assert six["p"] == pytest.approx(2 / 64), "six coins that all fall on one side"
    lines = []
    results.print_comparison(found, [Path("a"), Path("b")], lines.append)
    text = "\n".join(lines)
    assert "A 0.4, B 0.6, B - A +0.2" in text and "higher in B: 2 rows, lower: 1" in text
    # of verdicts nothing changes
    assert "only_a" in results.compare([entry(0, 1.0)], [entry(0, 0.0)], "accuracy")


def test_an_incomplete_set_says_so():
    lines = []
    some = results.summary([entry(0, 1.0)] * 8, 1, of=900)
    whole = results.summary([entry(0, 1.0)] * 9, of=9)
    results.print_table({"mmmu": some, "mine": whole, "old": {**whole, "of": 0}}, say=lines.append)
    assert some["of"] == 900 and "8 of 900" in lines[1]
    assert " of " not in lines[2] + lines[3]


def test_sources_of_a_mixture_are_categories():
    rows = [entry(0, 1.0) | {"source": "a"}, entry(1, 0.0) | {"source": "b"}, entry(2, 1.0)]
    found = results.summary(rows)["categories"]
    assert {name: share["accuracy"] for name, share in found["source"].items()} == {"a": 1, "b": 0}
    lines = []
    results.print_table({"mix": results.summary(rows)}, say=lines.append)
    assert "source a" in lines[2] and "100.0%" in lines[2], "without --show_categories"


def test_docvqa_rule_is_that_of_the_competition():
    row = {"solution": str(["Coca Cola", "13"])}
    assert benchmarks.docvqa_rule("Coca cola", row) == 1, "the whole output where there is no tag"
    assert benchmarks.docvqa_rule("<think>x</think><answer>CocaCola</answer>", row) == pytest.approx(8 / 9)
    assert benchmarks.docvqa_rule("12", row) == 0.5, "the paper's formula gives 0"
    assert benchmarks.docvqa_rule("", row) == 0
    found = results.grade(entry(0, 0.0) | {"solution": "Coca Cola"}, benchmarks.docvqa_rule)
    assert found["outputs"][0]["published"] == 0


def test_docs_have_the_table():
    assert benchmarks.table_markdown() in (ROOT / "docs" / "benchmarks.md").read_text()


# -----------------------------------------------------------------------------
# a user's own metric
# -----------------------------------------------------------------------------

OWN = """
def words(completion, row):
    return len(completion.split()) + 0.5 * (row["solution"] == "4")

def fails(completion, row):
    return 1 / 0

def ends(completion, row):
    import os
    os._exit(3)

def some(completions, solution, **kwargs):
    return [None if "5" in c[0]["content"] else 2.0 for c in completions]

def ocr(completion, row):
    assert row["images"][0].size == (150, 100)
    return len(row["ocr_tokens"]) + len(row["answers"])
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module with the functions above, which scripts find, too."""
    name = f"own_{random.getrandbits(40):x}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def regraded(tmp_path, texts, metric):
    lines = [{"question": f"q{i}", "ground_truth": "4", "output": text} for i, text in enumerate(texts)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scorer = rewards.Scorer(0, [metric])
    try:
        said = []
        record = results.regrade(
            tmp_path / "r.jsonl", tmp_path, "count", None, said.append, metric=metric, scorer=scorer
        )
    finally:
        scorer.close()
    return record, "\n".join(said)


def test_own_metric_of_a_result_file(own, tmp_path):
    record, text = regraded(tmp_path, ["one <answer>4</answer>", "<answer>5</answer>"], f"{own}:words")
    # 2.5 and 1.5: mean 2, s = 0.70711, 1.96 * s / sqrt(2) = 0.98
    expected = {"name": f"{own}:words", "mean": 2.0, "n": 2}
    assert record["own_metric"].pop("interval") == pytest.approx([1.02, 2.98])
    assert record["own_metric"] == expected
    assert [row["outputs"][0][f"{own}:words"] for row in record["results"]] == [2.5, 1.5]
    assert record["accuracy"] == 0.5
    header, line = (line.split() for line in text.splitlines() if line.startswith(("source", "r ")))
    assert "words" in header and line[-1] == "2"
    # a function for lists, which leaves out a row
    record, _ = regraded(tmp_path, ["<answer>4</answer>", "<answer>5</answer>"], f"{own}:some")
    assert (record["own_metric"]["mean"], record["own_metric"]["n"]) == (2.0, 1)
    # the metric of a task
    record, _ = regraded(tmp_path, ["<answer>4.1</answer>", "<answer>5</answer>"], "relaxed")
    assert record["accuracy"] == 0 and record["own_metric"]["mean"] == 0.5


@pytest.mark.parametrize("name", ["fails", "ends"])
def test_own_metric_that_fails_is_one_sentence(own, tmp_path, name):
    with pytest.raises(SystemExit) as stop:
        regraded(tmp_path, ["<answer>4</answer>"], f"{own}:{name}")
    said = str(stop.value)
    assert said.startswith(f"metric '{own}:{name}' on row") and "reward" not in said
    assert {"fails": "ZeroDivisionError", "ends": "exit code 3"}[name] in said
    assert "the outputs are kept" in said


def test_own_metric_that_does_not_exist(own):
    for name in ("best", f"{own}:nothing", "no_such_module:f"):
        with pytest.raises(SystemExit, match="^metric.* '" + name) as stop:
            results.check_metric(name)
        assert "reward" not in str(stop.value)
    results.check_metric("anls")
    results.check_metric(f"{own}:words")


def test_compare_by_own_metric(own, tmp_path):
    for name, answers in (("a", ["4", "4 4 4", "5"]), ("b", ["4 4", "4", "5"])):
        rows = [{"question": f"q{i}", "ground_truth": "3", "output": text} for i, text in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"--compare={tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    text = run(["eval.py", files, f"--metric={own}:words", "--task=count"], tmp_path / "log")
    assert "higher in B: 1 rows, lower: 1" in text and "B - A -0.3333" in text
    refuses(["eval.py", files, "--metric=own:"], tmp_path / "bad", "metric", "own:")


# -----------------------------------------------------------------------------
# eval.py on the tiny model
# -----------------------------------------------------------------------------

TINY = ["--backend=hf", "--dtype=float32", "--max_prompt_length=512", "--max_completion_length=8"]
TINY += ["--min_pixels=12544", "--max_pixels=12544", "--page_rows=0"]


@pytest.mark.slow
def test_a_benchmark_with_a_metric_of_her_own(own, tiny_folder, tmp_path):
    """Columns and images reach it, and rows that were answered are not answered again for another one."""
    spec = published.write("textvqa", tmp_path)
    command = ["eval.py", f"--model={tiny_folder()}", f"--bench={spec}", f"--out_dir={tmp_path}/out", *TINY]
    text = run([*command, f"--metric={own}:ocr"], tmp_path / "log")
    assert "4 of 5000" in text
    record = json.loads((tmp_path / "out" / "textvqa.json").read_text())
    assert record["of"] == 5000 and record["n"] == 4
    assert record["own_metric"]["mean"] == 11, "one ocr token and ten answers"
    outputs = [row["outputs"][0]["text"] for row in record["results"]]

    text = run([*command, "--metric=anls"], tmp_path / "again")
    again = json.loads((tmp_path / "out" / "textvqa.json").read_text())
    assert "4 of them done before" in text
    assert [row["outputs"][0]["text"] for row in again["results"]] == outputs
    assert again["own_metric"]["name"] == "anls" and again["results"][0]["outputs"][0][f"{own}:ocr"] == 11


def test_another_set_under_a_benchmark_s_name_is_refused(monkeypatch, tmp_path):
    import data
    import eval as script

    monkeypatch.setattr(script, "data", data, raising=False)
    ai2d = published.write("ai2d", tmp_path).partition("@")[2]
    # by its columns
    for name, column in (("mathvision", "subject"), ("chartqa", "type"), ("mathverse", "problem_version")):
        with pytest.raises(SystemExit, match=f"no column '{column}'.*another data set"):
            script.load_sources({name: f"{name}@{ai2d}/data/test-00000-of-00001.parquet"}, print)
    # by its answers
    published.save(published.picture(0), tmp_path / "x.png")
    rows = [{"question": "?", "ground_truth": letter, "image_path": "x.png"} for letter in "ABCDAB"]
    published.write_json(tmp_path / "test200.jsonl", rows)
    with pytest.raises(SystemExit, match="is not of superclevr200.*'A'"):
        script.load_sources({"superclevr200": f"superclevr200@{tmp_path}/test200.jsonl"}, print)
    # a small copy is what it is
    some = script.load_sources({"ai2d": f"ai2d@{ai2d}"}, print)["ai2d"]
    assert (len(some.indices), some.of) == (4, 3088)
    mixed = script.chosen_rows(data.load_rows(f"ai2d@{ai2d}:1,scenes:clevr?rows=9:1", "test"))
    assert len(mixed) == 13
    monkeypatch.setattr(script, "limit", 3)
    mixed = script.chosen_rows(data.load_rows(f"ai2d@{ai2d}:1,scenes:clevr?rows=9:1", "test"))
    assert mixed == [0, 1, 2, 4, 5, 6], "the first so many of each source"


def test_what_the_chat_template_opens_is_part_of_the_output(monkeypatch):
    import eval as script

    class Sampling:
        sample_seed = staticmethod(lambda *numbers: 0)

        @staticmethod
        def rollout_hf(policy, prompts, samples, seeds, temperature, max_tokens):
            done = type("Completion", (), {"ids": [1, 2], "finished": True})
            return [[done()] for _ in prompts]

    class Tokenizer:
        @staticmethod
        def decode(ids, skip_special_tokens):
            return "2 + 1</think> <answer>3</answer>"

    monkeypatch.setattr(script, "sampling", Sampling, raising=False)
    monkeypatch.setattr(script, "backend", "hf")
    source = script.Source("x", [], [0], 1, 8, None)
    row = {"id": "r", "problem": "?", "solution": "3", "task": "count"}
    prompts = {0: {"row": row, "opened": "<think>\n"}}
    (found,) = script.generate(None, source, prompts, Tokenizer, {})
    assert found["outputs"][0]["text"].startswith("<think>\n2 + 1</think>")
    assert results.grade(found)["outputs"][0]["format"] == 1
