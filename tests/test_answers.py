"""References, options and chats as people write them: what a person would read, or one sentence.

python -m pytest tests/test_answers.py
"""

import json
import re
import runpy

import numpy as np
import pytest
from PIL import Image

import data
import qwen
import rewards
from tasks.answers import read_options, read_solution

NAN = float("nan")
RED = ["red", "blue"]


def row_of(*records, **options):
    """The first row of records that have a problem and an answer unless they say otherwise."""
    return data.Rows([{"problem": "Which?", "solution": "A"} | record for record in records], "x", **options)[
        0
    ]


def accuracy(row, answer):
    return rewards.score(f"<think>t</think> <answer> {answer} </answer>", row)["accuracy"]


# -----------------------------------------------------------------------------
# references
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "answer", "thinking"),
    [
        ("4", "4", ""),
        (4, "4", ""),
        ("\\boxed{4}", "4", ""),
        ("$\\boxed{\\frac{1}{\\sqrt{2}}}$", "\\frac{1}{\\sqrt{2}}", ""),
        ("First \\boxed{3}, no, it is \\boxed{4}.", "4", "First \\boxed{3}, no, it is \\boxed{4}."),
        ("Two and two.\n#### 4", "4", "Two and two."),
        ("#### 1,234", "1,234", ""),
        ("#### Step 1\nAdd them up", "#### Step 1\nAdd them up", ""),  # a heading
        ("<answer> 4 </answer>", "4", ""),
        ("<answer>\\boxed{4}</answer>", "4", ""),
        ("<think>2 + 2</think>\n<answer>4</answer>", "4", "2 + 2"),
        ("<think>2 + 2</think>\n4", "4", "2 + 2"),
        ("2 + 2</think>4", "4", "2 + 2"),
        ("<think> 2 + 2 </think> It is \\boxed{4}", "4", "2 + 2"),
        ({"role": "assistant", "content": "<answer>4</answer>"}, "4", ""),
        ([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], "4", ""),
        ({"value": 4, "unit": "m"}, "4 m", ""),
        ({"text": ["Paris", "Paris, France"], "answer_start": [1, 1]}, "['Paris', 'Paris, France']", ""),
        ([{"answer": "net", "answer_id": 1}, {"answer": "a net", "answer_id": 2}], "['net', 'a net']", ""),
        ("nan", "nan", ""),
        ("null", "null", ""),
    ],
)
def test_references(given, answer, thinking):
    assert read_solution(given, "auto") == (answer, thinking)


def test_a_row_thinks_what_its_solution_thought():
    derived = "Count them: \\boxed{4}"
    assert row_of({"solution": derived})["thinking"] == derived
    assert row_of({"solution": derived, "thinking": "mine"})["thinking"] == "mine"
    assert (
        row_of({"solution": "<think>a</think><answer>[1, 2, 3, 4]</answer>", "task": "grounding"})["solution"]
        == "[1, 2, 3, 4]"
    )


LONG = "First the cubes are counted, then the spheres, and in the end the two are added to each other."


def test_answer_beside_solution():
    """Where the solutions are derivations, the answers are the references; else the solutions stay it."""
    row = row_of({"solution": LONG, "answer": 4})
    assert (row["solution"], row["thinking"]) == ("4", LONG)
    row = row_of({"solution": LONG + " \\boxed{4}", "answer": "four"})
    assert (row["solution"], row["thinking"]) == ("4", LONG + " \\boxed{4}")
    row = row_of({"solution": "4", "answer": "four things"})
    assert (row["solution"], row["thinking"]) == ("4", None)
    # decided for the whole set: the solution of one row may be short or missing
    others = [{"solution": LONG, "answer": 1}] * 3
    assert row_of({"solution": "Look.", "answer": 0}, *others)["solution"] == "0"
    assert row_of({"solution": None, "answer": 0}, *others)["solution"] == "0"
    assert row_of({"solution": LONG, "answer": None}, *others)["solution"] == LONG
    assert row_of({"solution": LONG, "answer": 4}, columns="solution=solution")["solution"] == LONG
    others = [{"solution": "four things", "answer": "4"}] * 3
    assert row_of({"solution": LONG, "answer": 4}, *others)["solution"] == LONG


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"task": "count", "solution": "many"}, "no answer could meet the reference 'many'"),
        ({"task": "count", "solution": "3 or 4"}, "no answer could meet"),
        ({"task": "text", "solution": "."}, "no answer could meet"),
        ({"options": RED, "solution": "C"}, "the answer C is the letter of none of 2 options"),
        ({"options": RED, "solution": "(E)"}, r"the answer \(E\) is the letter"),
        ({"options": "red or blue"}, "the options are the text 'red or blue', in which no list is found"),
        (
            {"options": {"label": ["A", "B"], "x": [1, 2]}},
            "the options are a dict of label, x: which is the text",
        ),
        ({"options": ["red", "", "blue"]}, "an option before the last is missing"),
        ({"options": 5}, "the options are a int where a list is meant"),
        ({"task": "grounding", "solution": [1, 2, 1, 4]}, "no box"),
        ({"task": "grounding", "solution": [1, 2, NAN, 4]}, "no box"),
        ({"solution": "\\boxed{ }"}, "has no answer"),
        ({"solution": "<think>hm</think> <answer></answer>"}, "has no answer"),
    ],
)
def test_references_that_nobody_could_meet(record, why):
    with pytest.raises(data.BadRow, match=f"^row x:0:? {why}"):
        row_of(record)


@pytest.mark.parametrize("task", ["count", "choice", "text", "math", "auto"])
@pytest.mark.parametrize("answer", ["3", "three", "B", "['3', '4']", "0", "-1"])
def test_references_that_can_be_met(task, answer):
    if (task, answer) == ("count", "B"):
        return
    assert row_of({"task": task, "solution": answer})["solution"] == answer


# -----------------------------------------------------------------------------
# options
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["red", "blue"],
        ("red", "blue"),
        np.array(["red", "blue"]),
        {"A": "red", "B": "blue"},
        {"A": "red", "B": "blue", "C": None, "D": NAN},
        ["red", "blue", None, ""],
        {"label": ["A", "B"], "text": ["red", "blue"]},
        {"text": np.array(["red", "blue"]), "label": np.array(["A", "B"])},
        [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}],
        [{"key": "A", "value": "red"}, {"key": "B", "value": "blue"}],
        [{"option": "A", "content": "red"}, {"option": "B", "content": "blue"}],
        [{"option": "red"}, {"option": "blue"}],
        [{"A": "red"}, {"B": "blue"}],
        '["red", "blue"]',
        "['red', 'blue']",
        "['red' 'blue']",
        "('red', 'blue')",
        '{"A": "red", "B": "blue"}',
        ["A. red", "B. blue"],
        ["(A) red", "(B) blue"],
        ["a) red", "b) blue"],
        ["A: red", "B: blue"],
        ["A．red", "B．blue"],
        "A. red\nB. blue",
        "A. red B. blue",
        "(A) red\n(B) blue\n",
        "red\nblue",
    ],
    ids=str,
)
def test_options(options):
    row = row_of({"options": options, "solution": "B"})
    assert (row["options"], row["solution"], row["task"]) == (RED, "B", "choice")
    assert row["problem"] == "Which?\n(A) red\n(B) blue"
    assert [accuracy(row, answer) for answer in ("B", "(b) blue", "blue", "A", "red")] == [1, 1, 1, 0, 0]


def test_options_that_are_none():
    for options in (None, NAN, [], "", "[]", ["", ""], [None], {}, ["A", "B", "C"]):
        assert read_options(options) == (None, [])


def test_letters_in_front_are_letters_only_if_all_have_them():
    assert read_options(["A. red", "blue"])[0] == ["A. red", "blue"]
    assert read_options(["B. red", "A. blue"])[0] == ["B. red", "A. blue"]
    assert read_options(["A cat", "B movies"])[0] == ["A cat", "B movies"]
    assert read_options(["red", "red", "blue"])[0] == ["red", "red", "blue"]  # twice the same is fine


@pytest.mark.parametrize(
    "listed",
    [
        "A. red\nB. blue",
        "(A) red (B) blue",
        "a) red b) blue",
        "(a) red\n(b) blue",
        "A．red\nB．blue",
        "**A.** red",
    ],
)
def test_options_that_stand_in_the_problem(listed):
    problem = f"Which colour?\n{listed}"
    assert row_of({"problem": problem, "options": RED})["problem"] == problem


def test_labels_of_options():
    """The reference may be the label of an option, whatever the labels are and however they are ordered."""
    numbered = {"label": ["1", "2"], "text": RED}
    assert row_of({"options": numbered, "solution": "2"})["solution"] == "B"
    assert row_of({"options": {"label": ["B", "A"], "text": RED}, "solution": "A"})["solution"] == "B"
    assert (
        row_of({"options": [{"id": 0, "text": "red"}, {"id": 1, "text": "blue"}], "solution": 0})["solution"]
        == "A"
    )
    assert row_of({"options": RED, "solution": "b"})["solution"] == "B"
    assert row_of({"options": ["X", "Y"], "solution": "Y"})["solution"] == "B"
    assert row_of({"options": ["the", "a"], "solution": "a"})["solution"] == "B"  # an article, not a letter


def indexed(*numbers, options=("red", "blue", "green"), **more):
    records = [{"problem": "Which?", "options": list(options), "solution": number} for number in numbers]
    rows = data.Rows(records, "x", **more)
    return [rows[i]["solution"] for i in range(len(rows))]


def test_numbers_of_options():
    """From 0 if a 0 is there, from 1 if the last one is; as texts, too, and as floats of a table."""
    assert indexed(1, 0, 2) == ["B", "A", "C"]
    assert indexed("1", "0", "2") == ["B", "A", "C"]
    assert indexed(1.0, 0.0, 2.0) == ["B", "A", "C"]
    assert indexed(1, 3, 2) == ["A", "C", "B"]
    assert indexed(np.int64(1), np.int64(0)) == ["B", "A"]
    # the 0 may come late
    assert indexed(*[1] * 30, 0) == ["B"] * 30 + ["A"]
    assert indexed("A", "B", "C") == ["A", "B", "C"]
    # they are the texts
    assert indexed("3", "1", options=["1", "2", "3", "4"]) == ["3", "1"]
    assert indexed(3, 1, options=[1, 2, 3, 4]) == ["3", "1"]
    # some are, by chance
    records = [
        {"problem": "p", "options": ["1", "2"], "solution": 1},
        {"problem": "p", "options": ["red", "blue"], "solution": 0},
    ]
    rows = data.Rows(records, "x")
    assert [rows[i]["solution"] for i in range(2)] == ["B", "A"]


def test_numbers_of_options_that_could_be_both():
    for numbers in ((1, 1, 2), (0, 1, 3)):
        with pytest.raises(
            SystemExit, match=r"^data: 'x': .*from 0 or from 1; .*--columns=solution=solution\+0"
        ):
            indexed(*numbers)
        assert indexed(1, 2, columns="solution=solution+0") == ["B", "C"]
        assert indexed(1, 2, columns="solution=solution+1") == ["A", "B"]
    rows = data.Rows([{"problem": "p", "options": RED, "solution": n} for n in (0, 1, 7)], "x")
    with pytest.raises(data.BadRow, match="the answer 7 is the index of none of 2 options"):
        rows[2]
    # a column may be called so
    row = row_of({"label+1": "blue"}, columns="solution=label+1")
    assert row["solution"] == "blue"


def test_a_number_among_options_is_also_its_letter():
    row = row_of({"options": ["1", "2", "3"], "solution": "3"})
    assert [accuracy(row, answer) for answer in ("3", "C", "(C) 3", "2", "B")] == [1, 1, 1, 0, 0]


# -----------------------------------------------------------------------------
# columns, and what is said of them
# -----------------------------------------------------------------------------


def test_columns_in_columns(tmp_path):
    record = {
        "q": {"text": "How many?"},
        "reward_model": {"ground_truth": "3"},
        "turns": [{"v": "a"}, {"v": "b"}],
    }
    rows = data.Rows([record], "x", "problem=q.text,solution=reward_model.ground_truth,thinking=turns.1.v")
    row = rows[0]
    assert (row["problem"], row["solution"], row["thinking"]) == ("How many?", "3", "b")
    assert row["columns"] is record and row["source"] == "x"
    with pytest.raises(SystemExit, match="has no column 'reward_model.truth'"):
        data.Rows([record], "x", "problem=q.text,solution=reward_model.truth")


def test_a_column_can_be_left_out():
    record = {"task": "closed choice", "options": "none of them"}
    with pytest.raises(data.BadRow, match="task 'closed choice' is none of"):
        row_of(record)
    assert row_of(record, columns="task=,options=")["solution"] == "A"


def test_one_line_says_what_a_source_was_taken_for(tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    chat = [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "3"}]
    files = {
        "plain.jsonl": [{"problem": "How\nmany?", "solution": "", "image": ""}]
        + [{"problem": "How\nmany?", "solution": "so \\boxed{3}", "image": "a.png"}] * 2,
        "chat.jsonl": [{"conversations": chat, "image": "a.png"}],
        "index.jsonl": [{"problem": "p", "solution": n, "options": RED} for n in (0, 1)],
        "bad.jsonl": [{"problem": "p", "solution": "s", "image": "gone.png"}],
    }
    said = {}
    for name, records in files.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        lines = []
        data.load_rows(str(tmp_path / name), say=lines.append)
        (said[name],) = lines
    place = re.escape(str(tmp_path)) + "/|"  # a long path is cut to its name
    for name, words in {
        "plain.jsonl": (
            "columns image, problem, solution, 2 of the first 3 rows have pictures; "
            "the first that can be used, row 1: 'How many?' -> '3'"
        ),
        "chat.jsonl": (
            "LLaVA / VLM-R1 conversations, 1 of the first 1 rows have pictures; the first: 'How many?' -> '3'"
        ),
        "index.jsonl": (
            "columns problem, solution, options, 0 of the first 2 rows have pictures, "
            "answers count the options from 0; the first: 'p (A) red (B) blue' -> 'A'"
        ),
        "bad.jsonl": "columns image, problem, solution, 1 of the first 1 rows have pictures; none of them",
    }.items():
        assert re.sub(place, "", said[name]).startswith(f"data: {name}: {words}"), said[name]
    lines = []
    data.load_rows(f"scenes:clevr?rows=4:1,{tmp_path}/index.jsonl:1", say=lines.append)
    assert len(lines) == 2 and "drawn scenes; the first: 'How many items are there" in lines[0]
    assert data.load_rows("scenes:clevr?rows=4")[0]["columns"]["solution"].isdigit()


def test_the_command_that_looks_at_a_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"
    records = [{"q": "How many?", "n": n} for n in (3, 4, None)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr("sys.argv", ["data.py", str(path), "--columns=solution=n"])
    runpy.run_path(data.__file__, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "columns q, n, 0 of the first 3 rows have pictures; the first: 'How many?' -> '3'"
    )
    assert "skipped (number 1): row" in lines[1] and "has no answer" in lines[1]
    assert lines[2] == "data: 2 of 3 rows can be used"


# -----------------------------------------------------------------------------
# chats, and templates that begin the completion
# -----------------------------------------------------------------------------


@pytest.fixture
def processor(tiny_folder):
    return qwen.load_processor(tiny_folder())


PAD = "<|vision_start|><|image_pad|><|vision_end|>"


def chat(*turns, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"messages": messages} | more]


def pictures(*sizes):
    return [Image.new("RGB", size) for size in sizes]


def rendered(row, processor, template="direct"):
    return processor.apply_chat_template(data.build_prompt(row, template), tokenize=False)


def test_the_last_question_with_what_went_before(processor):
    records = chat("<image>How many?", "Three.", "And <image>?", "2", images=pictures((56, 56), (84, 56)))
    row = data.Rows(records, "x")[0]
    assert (row["problem"], row["solution"]) == ("And <image>?", "2")
    assert row["context"] == [
        {"role": "user", "content": "<image>How many?"},
        {"role": "assistant", "content": "Three."},
    ]
    text = rendered(row, processor)
    assert f"user\n{PAD}How many?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>" in text
    assert f"user\nAnd {PAD}?  Output only the final answer (number)" in text
    assert text.count("Output only") == 1  # the instruction stands with the last question alone
    prompt = data.encode_prompt(row, processor)
    assert prompt["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6]]  # in the order of the turns
    assert prompt["opened"] == ""


def test_a_chat_whose_images_are_not_marked(processor):
    row = data.Rows(chat("How many?", "Three.", "Which?", "2", images=pictures((56, 56))), "x")[0]
    text = rendered(row, processor)
    assert f"user\n{PAD}How many?" in text and text.count(PAD) == 1


def test_marks_of_a_chat_are_counted(processor):
    records = chat("<image>How many?", "Three.", "And <image>?", "2", images=pictures((56, 56)))
    with pytest.raises(data.BadRow, match="^row x:0: 2 <image> in the problem for 1 images"):
        data.Rows(records, "x")[0]
    records = chat("How many?", "Three <|im_end|>.", "Which?", "2")
    with pytest.raises(data.BadRow, match="the context holds <.im_end.>, a special token"):
        data.encode_prompt(data.Rows(records, "x")[0], processor)


def test_a_system_turn_stays_with_the_template_zero():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "3"},
    ]
    row = data.Rows([{"messages": messages}], "x")[0]
    assert [turn["role"] for turn in data.build_prompt(row, "think")] == ["system", "user"]
    system, user = data.build_prompt(row, "zero")
    assert system["content"] == f"Be brief.\n{data.ZERO_SYSTEM}" and user["role"] == "user"


def opening(processor, text):
    """The processor with a template that begins the completion with this text."""
    processor.chat_template += "{% if add_generation_prompt %}{{ " + json.dumps(text) + " }}{% endif %}"
    return processor


@pytest.mark.parametrize("text", ["<think>\n", "<think>", "<think>\n\n</think>\n\n"])
def test_what_the_template_opens(processor, text):
    row = row_of({"problem": "How many?", "solution": "3", "thinking": "one, two, three"})
    before = data.encode_prompt(row, processor)
    prompt = data.encode_prompt(row, opening(processor, text))
    assert (before["opened"], prompt["opened"]) == ("", text)
    decoded = processor.tokenizer.decode(prompt["input_ids"])
    assert decoded.endswith(f"assistant\n{text}")
    targets = ["answer"] if "</think>" in text else ["answer", "cot"]
    for target in targets:
        whole = prompt["opened"] + data.target_text(row, target, prompt["opened"])
        assert whole.count("<think>") == whole.count("</think>") == 1
        assert rewards.score(whole, row) == {"accuracy": 1.0, "format": 1.0}
    if "</think>" in text:
        with pytest.raises(
            data.BadRow, match="^row x:0: the chat template closes the thinking .*--target=answer"
        ):
            data.target_text(row, "cot", prompt["opened"])
    assert data.target_text(row, "cot") == "<think> one, two, three </think> <answer> 3 </answer>"


def test_a_question_about_the_tag_opens_nothing(processor):
    row = row_of({"problem": "What does this mean: <think>", "solution": "a tag"})
    assert data.encode_prompt(row, processor, "bare")["opened"] == ""


def test_no_reference_is_checked_for_more_than_a_moment():
    """The check runs for every row that is read: far below a millisecond."""
    import time

    row = {"task": "count", "solution": "3", "options": None, "problem": "How many?"}
    start = time.perf_counter()
    for _ in range(200):
        data.refuse_unanswerable(row)
    assert (time.perf_counter() - start) / 200 < 1e-3


@pytest.mark.parametrize(
    ("solution", "answer", "reasoning"),
    [
        ("Answer: B", "B", ""),
        ("The answer is 12.", "12", ""),
        ("Two and two are four. So the answer is 4.", "4", "Two and two are four."),
        ("2 + 2 = 4\nFinal answer: 4", "4", "2 + 2 = 4"),
        ("the answer", "the answer", ""),
        ("an answer is given below", "an answer is given below", ""),
    ],
)
def test_a_reference_that_says_answer(solution, answer, reasoning):
    assert read_solution(solution, "auto") == (answer, reasoning)


def test_an_index_beside_a_sentence_is_the_reference(tmp_path):
    """ScienceQA's columns: `solution` explains, `answer` counts from 0."""
    lines = []
    for index in (0, 2, 1):
        record = {"question": "Which?", "choices": ["x", "y", "z"], "answer": index}
        lines.append(json.dumps(record | {"solution": "It is the one in the middle."}))
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    rows = data.load_rows(str(tmp_path / "s.jsonl"))
    assert [rows[i]["solution"] for i in range(3)] == ["A", "C", "B"]
    assert rows[0]["thinking"] == "It is the one in the middle."
