"""Layouts of other trainers: records as their documentation shows them give the rows a person would note.

python -m pytest tests/test_layouts.py
"""

import base64
import json

import pytest
from helpers import picture, picture_bytes

import data
from tasks import layouts

HOW = "How many items are there?"


pytestmark = pytest.mark.usefixtures("offline")


def load(folder, *records, name="rows.jsonl"):
    """The rows of a file with these records, beside the pictures 0.png to 3.png."""
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    if name.endswith(".parquet"):
        import datasets

        datasets.Dataset.from_list(list(records)).to_parquet(str(folder / name))
    elif name.endswith(".json"):
        (folder / name).write_text(json.dumps(records, indent=1))
    else:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return data.load_rows(str(folder / name))


def brief(row: dict) -> tuple:
    """Problem, answer and the numbers of the pictures."""
    return row["problem"], row["solution"], [image.width - 20 for image in row["images"]]


def chat(*texts, roles=("user", "assistant"), role="role", content="content"):
    """A chat of these texts, the roles in turn."""
    return [{role: roles[i % 2], content: text} for i, text in enumerate(texts)]


def conversation(*texts):
    return chat(*texts, roles=("human", "gpt"), role="from", content="value")


KINDS = {
    "VLM-R1": {"id": 1, "image": "1.png", "conversations": conversation(f"<image>{HOW}", "3")},
    "VLM-R1, images in a list": {"image": ["1.png"], "conversations": conversation(f"<image>\n{HOW}", "3")},
    "LLaMA-Factory sharegpt": {"conversations": conversation(f"<image>{HOW}", "3"), "images": ["1.png"]},
    "LLaMA-Factory messages": {"messages": chat(f"<image>{HOW}", "3"), "images": ["1.png"]},
    "LLaMA-Factory, own tags": {"conversations": chat(f"<image>{HOW}", "3"), "images": ["1.png"]},
    "LLaMA-Factory preference": {
        "conversations": conversation(f"<image>{HOW}"),
        "chosen": {"from": "gpt", "value": "3"},
        "rejected": {"from": "gpt", "value": "4"},
        "images": ["1.png"],
    },
    "TRL preference": {"prompt": HOW, "chosen": chat(HOW, "3"), "rejected": chat(HOW, "4"), "image": "1.png"},
    "messages and chosen": {"messages": chat(HOW, "3"), "chosen": chat(HOW, "3"), "images": ["1.png"]},
    "Alpaca": {"instruction": f"<image>{HOW}", "input": "", "output": "3", "images": ["1.png"]},
    "ms-swift GRPO": {
        "messages": chat(f"<image>{HOW}"),
        "images": ["1.png"],
        "solution": "<answer> 3 </answer>",
    },
    "ms-swift SFT": {"messages": chat(f"<image>{HOW}", "3"), "images": [{"bytes": None, "path": "1.png"}]},
    "ms-swift query": {"query": f"<image>{HOW}", "response": "3", "history": [], "images": ["1.png"]},
    "ms-swift query and solution": {"query": f"<image>{HOW}", "solution": "3", "images": ["1.png"]},
    "ms-swift conversation": {
        "conversation": [{"human": f"<image>{HOW}", "assistant": "3"}],
        "images": ["1.png"],
    },
    "Qwen-VL's old marks": {"conversations": conversation(f"Picture 1: <img>1.png</img>\n{HOW}", "3")},
    "LMM-R1": {
        "message": json.dumps(chat([{"type": "image", "image": "1.png"}, {"type": "text", "text": HOW}])),
        "answer": "3",
    },
    "FineVision": {"texts": [{"user": HOW, "assistant": "3", "source": "x"}], "images": ["1.png"]},
    "TRL text": {"prompt": HOW, "image": "1.png", "solution": "3"},
    "TRL messages": {
        "prompt": chat([{"type": "image"}, {"type": "text", "text": HOW}]),
        "images": ["1.png"],
        "solution": "3",
    },
    "TRL SFT, text": {"prompt": HOW, "completion": "3", "image": "1.png"},
    "TRL SFT, messages": {
        "prompt": chat(HOW),
        "completion": [{"role": "assistant", "content": "3"}],
        "images": ["1.png"],
    },
    "TRL SFT, parts": {
        "messages": chat(
            [{"type": "image", "text": None}, {"type": "text", "text": HOW}],
            [{"type": "text", "text": "3"}],
        ),
        "images": ["1.png"],
    },
    "verl": {
        "data_source": "geo",
        "prompt": chat(f"<image>{HOW} You FIRST think. The answer MUST BE put in \\boxed{{}}."),
        "images": [{"image": "1.png"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0, "answer": "3 items", "question": f"<image>{HOW}"},
    },
    "EasyR1": {"problem": f"<image>{HOW}", "answer": "3", "images": ["1.png"]},
    "a question of messages": {"question": chat(HOW), "answer": 3, "image": "1.png"},
}
PLAIN = ("EasyR1",)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_row(kind, name, tmp_path):
    """One question about one picture, written as each trainer wants it."""
    rows = load(tmp_path, KINDS[kind], KINDS[kind], name=name)
    problem, solution, pictures = brief(rows[0])
    assert (problem.removeprefix("Picture 1: <image>\n"), solution, pictures) == (HOW, "3", [1])
    assert rows[0]["context"] is None and rows[0]["thinking"] is None
    assert (rows.layout is None) == (kind in PLAIN)


def test_names_of_the_layouts():
    names = {
        "VLM-R1": "LLaVA / VLM-R1 conversations",
        "LLaMA-Factory sharegpt": "ShareGPT conversations",
        "ms-swift GRPO": "chat messages",
        "ms-swift query": "ms-swift query and response",
        "Alpaca": "Alpaca",
        "TRL text": "TRL prompts",
        "verl": "verl",
    }
    for kind, name in names.items():
        assert layouts.recognise(list(KINDS[kind]), [KINDS[kind]]).name == name


@pytest.mark.parametrize(
    "record",
    [
        {"problem": HOW, "solution": "3"},
        {"question": HOW, "answer": 3, "image": "1.png"},
        # a set that has been mapped for a trainer and keeps its plain columns
        {"problem": HOW, "solution": "3", "prompt": chat("You are a helper. " + HOW)},
        {"q": HOW, "a": "3", "messages": None},
    ],
    ids=["problem", "question", "both", "q"],
)
def test_a_plain_set_is_none(record):
    assert layouts.recognise(list(record), [record, None, {}]) is None


def test_unknown_columns_are_none():
    for record in ({"text": "a story"}, {"prompt": "a story"}, {"instruction": HOW}, {"image": "1.png"}, {}):
        assert layouts.recognise(list(record), [record]) is None
    assert layouts.recognise([], []) is None


def address(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture_bytes(number)).decode()


PARTS = {
    "OpenAI chat": [
        {"type": "image_url", "image_url": {"url": address(1)}},
        {"type": "text", "text": "and"},
        {"type": "image_url", "image_url": {"url": address(2), "detail": "low"}},
        {"type": "text", "text": HOW},
    ],
    "OpenAI responses": [
        {"type": "input_image", "image_url": address(1)},
        {"type": "input_text", "text": "and"},
        {"type": "input_image", "image_url": address(2)},
        {"type": "input_text", "text": HOW},
    ],
    "Qwen": [{"image": "1.png"}, {"text": "and"}, {"image": "2.png"}, {"text": HOW}],
    "transformers": [
        {"type": "image", "path": "1.png"},
        {"type": "text", "text": "and"},
        {"type": "image", "url": address(2)},
        {"type": "text", "text": HOW},
    ],
    "Anthropic": [
        {"type": "image", "source": {"type": "base64", "data": address(1).partition(",")[2]}},
        {"type": "text", "text": "and"},
        {"type": "image", "source": {"type": "base64", "data": address(2).partition(",")[2]}},
        {"type": "text", "text": HOW},
    ],
    # the marks of the text are the parts once more
    "both": [
        {"type": "image", "image": "1.png"},
        {"type": "image", "image": "2.png"},
        {"type": "text", "text": f"<image>and<image>{HOW}"},
    ],
}


@pytest.mark.parametrize("kind", PARTS)
def test_images_in_the_parts_of_a_message(kind, tmp_path):
    rows = load(tmp_path, {"messages": chat(PARTS[kind], [{"type": "text", "text": "3"}])})
    problem, solution, pictures = brief(rows[0])
    assert (solution, pictures) == ("3", [1, 2])
    assert problem == (f"and{HOW}" if kind == "both" else f"<image>and<image>{HOW}")


def test_a_part_may_leave_its_image_to_the_column(tmp_path):
    parts = [{"type": "image"}, {"type": "image", "image": "2.png"}, {"type": "text", "text": HOW}]
    rows = load(tmp_path, {"messages": chat(parts, "3"), "images": ["1.png"]})
    assert brief(rows[0]) == (HOW, "3", [1, 2])


def test_the_last_question_with_what_went_before_it(tmp_path):
    turns = chat("<image>What is this?", "<think>Round.</think> A ball.", f"<image>Look here. {HOW}", "3")
    system = {"role": "system", "content": "Be brief."}
    wanted = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>What is this?"},
        {"role": "assistant", "content": "A ball."},
    ]
    pairs = [["<image>What is this?", "A ball."]]
    records = [
        {"messages": [system, *turns], "images": ["1.png", "2.png"]},
        {"system": "Be brief.", "conversations": turns, "images": ["1.png", "2.png"]},
        {
            "system": "Be brief.",
            "query": f"<image>Look here. {HOW}",
            "history": pairs,
            "response": "3",
            "images": ["1.png", "2.png"],
        },
        {
            "system": "Be brief.",
            "instruction": "<image>Look here.",
            "input": HOW,
            "history": pairs,
            "output": "3",
            "images": ["1.png", "2.png"],
        },
        {"prompt": [system, *turns[:3]], "completion": turns[3:], "images": ["1.png", "2.png"]},
        {
            "conversation": [
                {"system": "Be brief.", "human": "<image>What is this?", "assistant": "A ball."},
                {"human": f"<image>Look here. {HOW}", "assistant": "3"},
            ],
            "images": ["1.png", "2.png"],
        },
    ]
    for record in records:
        row = load(tmp_path, record)[0]
        assert row["context"] == wanted
        problem, solution, pictures = brief(row)
        between = "\n" if "input" in record else " "  # Alpaca's two columns
        assert problem == f"<image>Look here.{between}{HOW}" and (solution, pictures) == ("3", [1, 2])


REPLIES = {
    "think": ("<think>One, two, three.</think> 3", None),
    "think and answer": ("<think>\nOne, two, three.\n</think>\n\n<answer> 3 </answer>", None),
    "thinking": ("<thinking>One, two, three.</thinking>\n3", None),
    "opened by the template": ("One, two, three.\n</think>\n\n3", None),
    "reasoning_content": ("3", "One, two, three."),
}


@pytest.mark.parametrize("kind", REPLIES)
def test_the_reasoning_of_a_reply_is_the_thinking(kind, tmp_path):
    text, reasoning = REPLIES[kind]
    reply = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    row = load(tmp_path, {"messages": [*chat(HOW), reply]})[0]
    assert (row["thinking"], row["solution"]) == ("One, two, three.", "3")
    # what SFT imitates, from the reply alone
    assert data.target_text(row) == "<think> One, two, three. </think> <answer> 3 </answer>"


def test_a_column_with_the_answer_wins_over_the_reply(tmp_path):
    reply = "<think>One, two.</think> There are two items."
    for column in ("solution", "answer", "label", "ground_truth"):
        row = load(tmp_path, {"messages": chat(HOW, reply), column: "3"})[0]
        assert (row["solution"], row["thinking"]) == ("3", "One, two.")
        # this row alone has none
        row = load(tmp_path, {"messages": chat(HOW, reply), column: "3"}, {"messages": chat(HOW, "4")})[1]
        assert row["solution"] == "4"
    # KTO's mark of a good reply is no answer
    row = load(tmp_path, {"messages": chat(HOW, reply), "label": True})[0]
    assert row["solution"] == "There are two items."


def test_open_r1_keeps_reasoning_and_answer_in_one_column(tmp_path):
    solution = "<think>One, two, three.</think>\n\n<answer>3</answer>"
    rows = load(tmp_path, {"image": "1.png", "problem": HOW, "solution": solution, "original_answer": "3"})
    assert brief(rows[0]) == (HOW, "3", [1]) and rows[0]["thinking"] == "One, two, three."
    assert data.target_text(rows[0]) == "<think> One, two, three. </think> <answer> 3 </answer>"


def test_vlmevalkit(tmp_path):
    """A tsv with base64 pictures, options in columns, a hint, a question without options, lists as texts."""
    one, two = (base64.b64encode(picture_bytes(number)).decode() for number in (1, 2))
    lines = [
        ("index", "image", "hint", "question", "A", "B", "C", "answer", "category"),
        ("7", one, "Only the red ones.", HOW, "1", "2", "3", "C", "count"),
        ("8", one, "", "Is it red?", "yes", "no", "", "A", "colour"),
        ("9", f"['{one}', '{two}']", "", HOW, "", "", "", "3", "count"),
        ("1000007", "7", "", HOW, "3", "1", "2", "A", "count"),  # the picture of row 7 once more
    ]
    path = tmp_path / "own.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    rows = data.load_rows(str(path))
    assert brief(rows[0]) == (f"Only the red ones.\n{HOW}\n(A) 1\n(B) 2\n(C) 3", "C", [1])
    assert (rows[0]["id"], rows[0]["task"], rows[0]["labels"]) == ("7", "choice", {"category": "count"})
    assert brief(rows[1]) == ("Is it red?\n(A) yes\n(B) no", "A", [1]) and rows[1]["options"] == ["yes", "no"]
    assert brief(rows[2]) == (HOW, "3", [1, 2]) and rows[2]["options"] is None
    assert brief(rows[3]) == (f"{HOW}\n(A) 3\n(B) 1\n(C) 2", "A", [1])


def test_records_of_one_set_may_differ(tmp_path):
    """A row without picture, a text where others have turns, turns of nobody: each row for itself."""
    rows = load(
        tmp_path,
        {"image": "1.png", "conversations": conversation(f"<image>{HOW}", "3")},
        {"conversations": conversation(HOW, "4")},
        {"conversations": HOW, "answer": "5"},
        {"conversations": None},
        {"conversations": [{"from": "human", "value": HOW}, {"from": "observation", "value": "{}"}]},
        {"image": "1.png", "conversations": conversation(f"<image><image>{HOW}", "3")},
        {"conversations": conversation(HOW, "3"), "label": False},
        {"conversations": conversation(HOW)},
    )
    assert [brief(rows[i])[1:] for i in range(3)] == [("3", [1]), ("4", []), ("5", [])]
    words = {
        3: "no question at the end of 'conversations'",
        4: "a turn of 'observation', which is none of user",
        5: "2 <image>",
        6: "marked as undesired",
        7: "no answer",
    }
    for i, why in words.items():
        with pytest.raises(data.BadRow, match=why):
            rows[i]


def test_a_chat_as_json_and_as_columns():
    turns = chat(HOW, "3")
    for value in (json.dumps(turns), {"role": ["user", "assistant"], "content": [HOW, "3"]}):
        layout = layouts.recognise(["messages"], [{"messages": value}])
        assert layout.row({"messages": value}) == {"problem": HOW, "context": None, "solution": "3"}


def test_parts_of_another_kind_are_bad_rows():
    layout = layouts.recognise(["messages"], [{"messages": chat(HOW, "3")}])
    for part in ({"type": "video", "video": "a.mp4"}, {"type": "input_audio", "input_audio": {"data": ""}}):
        with pytest.raises(ValueError, match=f"a part of the kind '{part['type']}'"):
            layout.row({"messages": chat([part, {"type": "text", "text": HOW}], "3")})


def test_boxes_of_ms_swift_stand_in_the_texts(tmp_path):
    record = {
        "messages": chat("<image>Find the <ref-object>.", "<bbox>"),
        "images": ["1.png"],
        "objects": {"ref": ["sheep"], "bbox": [[1, 2, 9, 8]]},
    }
    row = load(tmp_path, record)[0]
    assert (row["problem"], row["solution"]) == ("Find the sheep.", "[1, 2, 9, 8]")


def test_column_value():
    record = {
        "reward_model": {"ground_truth": "3", "a.b": {"c": 1}},
        "conversations": conversation(HOW, "4"),
        "x.y": "own name",
        "x": {"y": "inside"},
    }
    wanted = {
        "reward_model.ground_truth": "3",
        "conversations.1.value": "4",
        "conversations.-1.value": "4",
        "conversations.0": {"from": "human", "value": HOW},
        "x.y": "own name",
        "reward_model.a.b.c": 1,
        "x": {"y": "inside"},
        "conversations.2.value": None,
        "conversations.value": None,
        "nobody": None,
        "x.y.z": None,
        "x.y.z.": None,
    }
    assert {name: layouts.column_value(record, name) for name in wanted} == wanted


def test_a_dotted_column_on_the_command_line(tmp_path):
    record = {"q": {"text": HOW, "answers": ["3", "three"]}, "picture": {"file": "1.png"}}
    load(tmp_path, {"problem": HOW, "solution": "3"})
    (tmp_path / "own.jsonl").write_text(json.dumps(record))
    columns = "problem=q.text,solution=q.answers.0,images=picture.file"
    assert brief(data.load_rows(str(tmp_path / "own.jsonl"), columns=columns)[0]) == (HOW, "3", [1])
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat(HOW, "3"), "mine": "4"}))
    assert data.load_rows(str(tmp_path / "chat.jsonl"), columns="solution=mine")[0]["solution"] == "4"
