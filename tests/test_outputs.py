"""Result files of other evaluators: each layout is read as its project writes it, or ends in one sentence.

Run: python -m pytest -q tests/test_outputs.py. Every file is made here, in the layout that the project's own
writer has; three rows are counted right and the last one wrong, so that a verdict in the wrong place shows.
"""

import csv
import gzip
import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import results  # noqa: E402

REFERENCES = ["0", "1", "2", "3"]
SAID = ["0", "1", "2", "7"]  # the last is wrong
RIGHT = [1, 1, 1, 0]
TEXTS = [f"<think> I count them. </think> <answer> {said} </answer>" for said in SAID]
QUESTION = "How many?"


def rows(make) -> list[dict]:
    """A record for each of the four rows: make(index, output, reference, is it right)."""
    return [make(i, TEXTS[i], REFERENCES[i], RIGHT[i]) for i in range(4)]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table(records: list[dict], delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def user(text: str) -> dict:
    return {"role": "user", "content": text}


regrade = partial(results.regrade, say=lambda line: None)

# fmt: off
OLD_LMMS = rows(lambda i, output, reference, right: {
    "doc_id": i, "doc": {"question": QUESTION, "target": "not this one"}, "target": reference,
    "arguments": [[QUESTION, {}]], "resps": [[output]], "filtered_resps": [output],
    "exact_match": float(right)})
NEW_LMMS = rows(lambda i, output, reference, right: {
    "doc_id": i, "input": QUESTION, "target": reference, "resps": [output], "filtered_resps": output,
    "mmmu_acc": {"id": "x", "parsed_pred": "y"}, "exact_match": right})
# where the filters left a text as it was, one release drops resps
ONLY_FILTERED = rows(lambda i, output, reference, right: {
    "doc_id": i, "input": [QUESTION, "{'until': []}"], "target": reference, "filtered_resps": [output],
    "exact_match": right})
FILTERS = [{**record, "filter": name} for name in ("strict-match", "flexible") for record in OLD_LMMS]
OPENCOMPASS = rows(lambda i, output, reference, right: {
    "origin_prompt": [{"role": "HUMAN", "prompt": QUESTION}], "prediction": output, "gold": reference})
DETAILS = rows(lambda i, output, reference, right: {
    "prompt": QUESTION, "origin_prediction": output, "predictions": SAID[i], "references": reference,
    "correct": bool(right)})
SWIFT = rows(lambda i, output, reference, right: {
    "response": output, "labels": reference, "logprobs": None, "images": [{"bytes": None, "path": "a.png"}],
    "messages": [{"role": "system", "content": "Be brief."}, user("<image>" + QUESTION)]})
LLAMA = rows(lambda i, output, reference, right: {
    "prompt": f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{QUESTION}<|im_end|>",
    "predict": output, "label": reference + "<|im_end|>\n"})
VERL = rows(lambda i, output, reference, right: {
    "input": f"user\n{QUESTION}\nassistant\n", "output": output, "gts": reference,
    "score": 2.0 * right - 1, "step": 1})
EASY = rows(lambda i, output, reference, right: {
    "prompt": QUESTION, "output": output, "ground_truth": reference,
    "score": {"overall": 0.6 + 0.4 * right, "format": 1.0, "accuracy": float(right)}})
EASY_LOG = "".join(
    f"[prompt] {QUESTION}\nin two lines\n[output] {output}\n[ground_truth] {reference}\n[score] {right}\n\n"
    for output, reference, right in zip(TEXTS, REFERENCES, RIGHT, strict=True))
VIDEO = rows(lambda i, output, reference, right: {
    "problem": QUESTION, "solution": f"<answer>{reference}</answer>", "output": output, "prediction": SAID[i],
    "reward": float(right), "correct": bool(right), "problem_type": "numerical"})
R1V = rows(lambda i, output, reference, right: {
    "question": {"image_path": "0.png", "question": QUESTION, "ground_truth": int(reference)},
    "ground_truth": int(reference), "model_output": output, "extracted_answer": int(SAID[i])})
SWAPPED = rows(lambda i, output, reference, right: {
    "question": QUESTION, "answer": output, "gt": reference, "acc": right})
PREDICTED = rows(lambda i, output, reference, right: {
    "question": QUESTION, "answer": reference, "prediction": output, "ground_truth": None,
    "is_correct": right})
PERCENT = rows(lambda i, output, reference, right: {
    "question": QUESTION, "ground_truth": reference, "model_output": output, "correct": 100 * right})
WORDS = rows(lambda i, output, reference, right: {
    "question": QUESTION, "ground_truth": reference, "model_output": output,
    "verdict": "CORRECT" if right else "incorrect"})
WORKED = rows(lambda i, output, reference, right: {
    "question": QUESTION, "solution": "Look at the first row, then at the second, and add.\nDone.",
    "answer": reference, "response": output, "hit": str(bool(right))})
CHAT = rows(lambda i, output, reference, right: {
    "prompt": [user("Hello"), {"role": "assistant", "content": "Hi"}, user(QUESTION)],
    "completion": [{"role": "assistant", "content": "I look."}, {"role": "assistant", "content": output}],
    "solution": reference, "accuracy": right})
CHOICES = [
    {"index": i, "question": QUESTION, "A": 5, "B": 1, "C": "2", "D": "", "answer": "ABCA"[i],
     "prediction": f"<answer> {letter} </answer>", "hit": RIGHT[i], "category": "count"}
    for i, letter in enumerate("ABCB")]

FILES = {
    "lmms_samples_count.jsonl":  lines(OLD_LMMS),
    "lmms_old.json":             json.dumps({"args": {}, "logs": OLD_LMMS, "time": 3}),
    "lmms_new.jsonl":            lines(NEW_LMMS),
    "lmms_filtered.jsonl":       lines(ONLY_FILTERED),
    "lmms_filters.jsonl":        lines(FILTERS),
    "opencompass.json":          json.dumps({str(i): record for i, record in enumerate(OPENCOMPASS)}),
    "details.json":              json.dumps({"accuracy": 75.0, "details": {"type": "GEN"} | {
                                     str(i): record for i, record in enumerate(DETAILS)}}),
    "swift.jsonl":               lines(SWIFT),
    "generated_predictions.jsonl": lines(LLAMA),
    "verl.jsonl":                lines(VERL),
    "easyr1.jsonl":              lines(EASY),
    "generations.log":           EASY_LOG,
    "video_r1.json":             json.dumps({"results": VIDEO, "final_acc": [{"mean_acc": 0.75}]}),
    "r1v.json":                  json.dumps({"accuracy": 75.0, "results": R1V}),
    "detailed.json":             json.dumps({"accuracy": 0.75, "detailed_results": PERCENT}),
    "swapped.json":              json.dumps(SWAPPED),
    "predicted.json":            json.dumps(PREDICTED),
    "words.json":                json.dumps(WORDS),
    "worked.json":               json.dumps(WORKED),
    "chat.jsonl":                lines(CHAT),
    "lines_in.json":             lines(PERCENT),
    "whole_in.jsonl":            json.dumps({"results": PERCENT}),
    "bom.json":                  "\ufeff" + json.dumps(PERCENT),
    "named.json":                json.dumps({f"sample {i}": record for i, record in enumerate(PERCENT)}),
    "pandas.json":               json.dumps({name: {str(i): record[name] for i, record in enumerate(PERCENT)}
                                     for name in PERCENT[0]}),
    "columns.json":              json.dumps({name: [record[name] for record in PERCENT]
                                     for name in PERCENT[0]}),
    "vlmevalkit.tsv":            table(CHOICES, "\t"),
    "vlmevalkit.csv":            table(CHOICES, ","),
    "vlmevalkit.json":           json.dumps(CHOICES),
}
# fmt: on
NO_VERDICT = ("opencompass.json", "swift.jsonl", "generated_predictions.jsonl")


def check(path: Path, with_verdict: bool = True) -> list[dict]:
    """The file is read whole: its question, its references, and our verdicts, which are those it holds."""
    found = regrade(path, path.parent / "out", "auto", None)
    assert [entry["outputs"][0]["accuracy"] for entry in found["results"]] == RIGHT
    assert found["n"] == 4 and found["skipped"] == 0
    assert all(QUESTION in entry["problem"] for entry in found["results"])
    assert not any("<image>" in entry["problem"] or "<|" in entry["problem"] for entry in found["results"])
    if with_verdict:
        agreement = {"both_right": 3, "only_ours": 0, "only_theirs": 0, "both_wrong": 1}
        assert found["against_recorded"] == agreement
    else:
        assert "against_recorded" not in found
    return found["results"]


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_read_with_its_questions_references_and_verdicts(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    entries = check(tmp_path / name, name not in NO_VERDICT)
    if name.startswith("vlmevalkit"):
        assert entries[0]["options"] == ["5", "1", "2"] and entries[0]["labels"] == {"category": "count"}
        assert entries[3]["id"] == "3"


def test_excel_and_parquet_files_and_compressed_ones(tmp_path):
    import openpyxl
    import pyarrow
    import pyarrow.parquet

    book = openpyxl.Workbook()
    book.active.append(list(CHOICES[0]))
    for record in CHOICES:
        book.active.append([value or None for value in record.values()])
    book.save(tmp_path / "model_set.xlsx")
    entries = results.read_results(tmp_path / "model_set.xlsx")["results"]
    assert [entry["solution"] for entry in entries] == list("ABCA")
    assert [entry["outputs"][0].get("recorded") for entry in entries] == [1, 1, 1, None]  # an empty cell

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CHAT), tmp_path / "completions_00001.parquet")
    check(tmp_path / "completions_00001.parquet")

    for name in ("verl.jsonl", "vlmevalkit.tsv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name].encode()))
        check(tmp_path / f"{name}.gz")
    (tmp_path / "excel.csv").write_bytes(FILES["vlmevalkit.tsv"].encode("utf-16"))
    check(tmp_path / "excel.csv")


def test_the_question_of_a_prompt_in_parts(tmp_path):
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    (tmp_path / "a.jsonl").write_text(lines([{**record, "prompt": [user(parts)]} for record in CHAT]))
    check(tmp_path / "a.jsonl")


def test_the_name_of_a_metric_tells_the_task_unless_the_user_does(tmp_path):
    # 11 is within 5 % of 10.5: right for ChartQA's relaxed accuracy
    record = {"doc_id": 0, "target": "10.5", "resps": [["<answer>11</answer>"]], "relaxed_overall": 1.0}
    (tmp_path / "a.jsonl").write_text(lines([record]))
    for task, accuracy in (("auto", 1), ("math", 0)):
        assert regrade(tmp_path / "a.jsonl", tmp_path, task, None)["accuracy"] == accuracy


def test_several_references_keep_their_letters(tmp_path):
    record = {
        "doc_id": 0,
        "target": ["\U0001f600 café", "smile"],
        "resps": [["<answer>\U0001f600 café</answer>"]],
    }
    (tmp_path / "a.jsonl").write_text(lines([record]))
    assert regrade(tmp_path / "a.jsonl", tmp_path, "text", None)["accuracy"] == 1


def test_several_outputs_of_one_row(tmp_path):
    record = {"question": QUESTION, "target": "1", "resps": [[TEXTS[1], TEXTS[3]]]}
    (tmp_path / "a.jsonl").write_text(lines([record]))
    found = regrade(tmp_path / "a.jsonl", tmp_path, "auto", None)
    assert found["n"] == 1 and found["accuracy"] == 0.5 and found["pass_at_k"]["2"] == 1


def test_boxes_of_vlm_r1(tmp_path):
    def record(said, correct):
        output = '<think> there </think> <answer> {"bbox_2d": ' + json.dumps(said) + "} </answer>"
        found = {"image": "0.jpg", "question": "<image>Where is the man?", "ground_truth": [10, 10, 60, 40]}
        return found | {"model_output": output, "extracted_answer": said, "correct": correct}

    found = {"accuracy": 50.0, "results": [record([10, 10, 60, 40], 1), record([200, 10, 260, 40], 0)]}
    (tmp_path / "rec.json").write_text(json.dumps(found))
    graded = regrade(tmp_path / "rec.json", tmp_path, "auto", None)
    assert [entry["task"] for entry in graded["results"]] == ["grounding"] * 2
    assert graded["against_recorded"]["both_right"] == graded["against_recorded"]["both_wrong"] == 1
    assert graded["results"][0]["problem"] == "Where is the man?"


@pytest.mark.parametrize(
    "options, answers, said",
    [
        (["red", "blue", "green"], [0, 2, 1], "ACB"),  # a 0: counted from 0
        (["red", "blue", "green"], [1, 3, 2], "ACB"),  # the number of options: from 1
        ({"A": "red", "B": "blue", "C": "green"}, ["A", "C", "B"], "ACB"),
        (["A. red", "B. blue", "C. green"], ["red", "green", "blue"], "ACB"),
        ("['red', 'blue', 'green']", ["A", "C", "B"], ["red", "green", "blue"]),
        (["3", "1", "2"], [3, 2, 1], "ACB"),  # the options are numbers: no indexes
    ],
)
def test_references_of_choices(tmp_path, options, answers, said):
    records = []
    for answer, letter in zip(answers, said, strict=True):
        response = f"<answer> {letter} </answer>"
        records.append({"question": "Which?", "options": options, "answer": answer, "response": response})
    (tmp_path / "a.json").write_text(json.dumps(records))
    found = regrade(tmp_path / "a.json", tmp_path, "auto", None)
    assert found["accuracy"] == 1 and found["n"] == 3


# fmt: off
REFUSED = {
    "llava.jsonl": (lines(rows(lambda i, output, reference, right: {
        "question_id": i, "prompt": QUESTION, "text": output, "answer_id": "x", "model_id": "m"})),
        ("outputs (text) but no references", "question_id, prompt, text", "column solution")),
    "trl.jsonl": (lines(rows(lambda i, output, reference, right: {
        "step": 1, "prompt": QUESTION, "completion": output, "accuracy": 1.0, "advantage": 0.0})),
        ("outputs (completion) but no references",)),
    "data.json": (json.dumps([{"question": QUESTION, "answer": "3"}]),
        ("no outputs of a model", "question, answer")),
    "nan.json": ('[{"question": "q", "ground_truth": NaN, "model_output": "1"}]', ("no references",)),
    "index.json": (json.dumps([{"options": ["a", "b", "c"], "answer": 1, "response": "B"}] * 3),
        ("cannot be told whether they count from 0 or from 1", "letters")),
    "cut.json": (json.dumps({"results": PERCENT})[:-40], ("cannot be read as JSON", "is it complete")),
    "number.json": ("5", ("holds no list of results",)),
    "empty.json": ('{"accuracy": 0, "results": []}', ("holds no list of results",)),
    "totals.json": ('{"results": {"mmmu_val": {"acc": 0.5}}, "configs": {}}', ("holds no list of results",)),
    "zero.json": ("", ("cannot be read as JSON",)),
    "broken.xlsx": ("PK" + " " * 100, ("cannot be read as an Excel file", "not a zip file")),
    "broken.parquet": ("PAR1 and nothing", ("cannot be read as a parquet file",)),
    "loglikelihood.jsonl": (lines([{"target": "B", "resps": [[[-1.5, False]]], "acc": 1.0}] * 3),
        ("none of the 3 records",)),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_ends_in_one_sentence(tmp_path, name):
    text, words = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        results.read_results(tmp_path / name)
    assert all(word in end.value.code for word in words), end.value.code
    assert "\n" not in end.value.code and name in end.value.code


class Trap:
    def __reduce__(self):
        return Path.write_text, (Path("opened"), "a pickle was opened")


def test_a_pickle_is_never_opened_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("results.pkl", "results.json"):
        (tmp_path / name).write_bytes(pickle.dumps({0: Trap()}))
        with pytest.raises(SystemExit, match="is a pickle.*PRED_FORMAT"):
            results.read_results(tmp_path / name)
    assert not (tmp_path / "opened").exists()


def test_rows_without_output_or_reference_are_counted_and_a_torn_line_is_one(tmp_path, capsys):
    records = [dict(record) for record in PERCENT]
    records[1]["ground_truth"] = None
    records[2]["model_output"] = float("nan")
    records[3]["model_output"] = ""  # an empty output is an output, and wrong
    text = lines(records) + lines(records)[:60]
    (tmp_path / "a.jsonl").write_text(text)
    found = results.regrade(tmp_path / "a.jsonl", tmp_path, "auto", None)
    assert found["n"] == 2 and found["skipped"] == 3 and found["accuracy"] == 0.5
    said = capsys.readouterr().out
    for words in (
        "record 1 of 'a.jsonl' has no reference",
        "record 2 of 'a.jsonl' has no output",
        "record 4",
    ):
        assert words in said


def test_a_score_on_another_scale_is_no_verdict(tmp_path):
    said = []
    records = [{"question": QUESTION, "gt": "1", "output": TEXTS[1], "score": score} for score in (1, 3, 5)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    entries = results.read_results(tmp_path / "a.json", say=said.append)["results"]
    assert not any("recorded" in entry["outputs"][0] for entry in entries)
    assert said == ["file: 'a.json': score lies between 1 and 5, which is no verdict, so it is left out"]


# -----------------------------------------------------------------------------
# a file of a benchmark
# -----------------------------------------------------------------------------


def choices(n: int) -> list[dict]:
    return [{"question": f"q{i}", "answer": "B", "response": "<answer>B</answer>"} for i in range(n)]


def test_an_incomplete_benchmark_says_so(tmp_path, capsys):
    (tmp_path / "mmmu.json").write_text(json.dumps(choices(8)))
    found = results.regrade(tmp_path / "mmmu.json", tmp_path, "auto", None, bench="mmmu")
    assert found["n"] == 8 and found["of"] == 900  # MMMU's validation set has 900 questions
    assert "8 of 900" in capsys.readouterr().out
    assert json.loads((tmp_path / "mmmu.regraded.json").read_text())["of"] == 900


def test_the_task_of_a_benchmark_is_that_of_its_rows(tmp_path):
    # 4.1 is within 5 % of 4: right for ChartQA, wrong as a number
    (tmp_path / "a.json").write_text(
        json.dumps([{"question": "q", "answer": "4", "response": "<answer>4.1</answer>"}])
    )
    for bench, accuracy in (("chartqa", 1), ("", 0)):
        found = regrade(tmp_path / "a.json", tmp_path, "auto", None, say=lambda line: None, bench=bench)
        assert found["accuracy"] == accuracy


@pytest.mark.parametrize(
    "bench, reference, is_refused",
    [
        ("superclevr200", "B", True),
        ("superclevr200", "3", False),
        ("refcoco_val", "3", True),
        ("refcoco_val", "[1, 2, 30, 40]", False),
        ("mmmu", "17", True),
        ("mmmu", "(B)", False),
        ("mathvista", "17", False),
        ("gsm8k", "B", False),  # a set of numbers and formulas: nothing is evident
    ],
)
def test_a_file_of_evidently_another_set_is_refused(tmp_path, bench, reference, is_refused):
    record = {"question": "q", "ground_truth": reference, "response": "<answer>5</answer>"}
    path = tmp_path / "a.json"
    for n, refused in ((4, False), (5, is_refused)):  # four rows are no evidence
        path.write_text(json.dumps([record] * n))
        if refused:
            with pytest.raises(SystemExit, match=f"'{path}' is not of {bench}: .*--bench"):
                regrade(path, tmp_path, "auto", None, bench=bench)
        else:
            regrade(path, tmp_path, "auto", None, bench=bench)
    if is_refused:  # one that fits is enough
        other = {"superclevr200": "3", "refcoco_val": "[1, 2, 30, 40]", "mmmu": "B"}[bench]
        path.write_text(json.dumps([record] * 5 + [record | {"ground_truth": other}]))
        regrade(path, tmp_path, "auto", None, bench=bench)
    path.write_text(json.dumps({"name": "geoqa_test", "results": [record]}))
    with pytest.raises(SystemExit, match="its results are of geoqa_test"):
        regrade(path, tmp_path, "auto", None, bench=bench)
