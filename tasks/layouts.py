"""The record layouts of other trainers: by which columns each is known, and how its records become rows.

    conversations   [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "3"}]
    messages        [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "3"}]
    prompt          such a list or a text, beside solution, completion or reward_model.ground_truth
    query, instruction    a text, beside response or output
    A, B, C, D      the options of a question in columns of their own

In a conversation the last question is the problem, what was said before it the context, and the reply to it
the reference: its answer is the solution, its reasoning the thinking. A column with the answer wins over the
reply. <image> in a text stands where an image belongs; data.py counts the marks, cleans the answers and opens
the images. Recognising looks at the columns and the first records; what a record holds is decided for each.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tasks.answers import is_empty

IMAGE_MARK = "<image>"  # in a problem: an image of the row belongs here
# Where each thing stands, in the order of preference.
PLAIN = ("problem", "question", "q")  # a text in one of these, and an answer: no layout is needed
CHATS = ("messages", "conversations", "conversation", "message", "texts", "prompt", *PLAIN)  # lists of turns
QUESTIONS = ("prompt", "query", "instruction")  # texts
REPLIES = ("response", "completion", "output", "chosen")  # texts or turns
ANSWERS = ("solution", "answer", "ground_truth", "label", "a")
THINKING = ("reasoning_content", "reasoning", "thinking")  # of a turn
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
}
# The letters of VLMEvalKit's option columns.
OPTION_COLUMNS = "ABCDEFGHIJ"


class Layout(NamedTuple):
    name: str  # for a person
    row: Callable[[dict], dict]  # record -> fields of the row, raw; raises ValueError for one of no use
    columns: tuple[str, ...]  # that `row` reads


# -----------------------------------------------------------------------------
# which layout
# -----------------------------------------------------------------------------


def recognise(columns: list[str], first: list[dict]) -> Layout | None:
    """The layout of a set by its columns and first records; None for a plain one and for an unknown one."""
    records = [record for record in first if isinstance(record, dict)]
    question = next((column for column in PLAIN if any_text(records, column)), None)
    answer = next((column for column in ANSWERS if any_value(records, column)), None)
    if question and answer:
        return plain_layout(columns, records, question, answer)
    chat = next((c for c in CHATS if any(turns_of(record.get(c)) for record in records)), None)
    asked = chat or next((column for column in QUESTIONS if any_text(records, column)), None)
    reply = next((column for column in REPLIES if column in columns and column != asked), None)
    if asked is None or not (chat or reply or answer or "reward_model" in columns):
        return None
    read = (asked, reply, "input", "history", "system", "objects", "reward_model", "extra_info", *ANSWERS)
    read = tuple(column for column in read if column in columns)
    return Layout(chat_name(columns, asked, chat), partial(chat_row, asked=asked, reply=reply), read)


def plain_layout(columns: list[str], records: list[dict], question: str, answer: str) -> Layout | None:
    """What else is special about a set of questions and answers; None if nothing is."""
    if {"A", "B"} <= set(columns) or {"index", "hint"} <= set(columns):
        read = ("index", "hint", question, *OPTION_COLUMNS, answer, "category")
        read = tuple(column for column in read if column in columns)
        return Layout("VLMEvalKit's questions", partial(letter_row, question=question), read)
    values = [record.get(answer) for record in records]
    thought = any(isinstance(value, str) and "</think" in value for value in values)
    if thought and not any_value(records, "thinking"):
        return Layout("reasoning and answer in one column", partial(thought_row, answer=answer), (answer,))
    return None


def chat_name(columns: list[str], asked: str, chat: str | None) -> str:
    """What people call a set whose questions stand in the column `asked`, turns of a chat or texts."""
    if "reward_model" in columns:
        return "verl"
    if asked in ("conversations", "conversation"):
        return "LLaVA / VLM-R1 conversations" if "image" in columns else "ShareGPT conversations"
    if asked == "messages":
        return "chat messages"
    names = {"prompt": "TRL prompts", "query": "ms-swift query and response", "instruction": "Alpaca"}
    return names.get(asked, f"chat turns in '{asked}'")


def any_value(records: list[dict], column: str) -> bool:
    return any(not is_empty(record.get(column)) for record in records)


def any_text(records: list[dict], column: str) -> bool:
    values = [record.get(column) for record in records]
    return any(isinstance(value, str) and value.strip() and not turns_of(value) for value in values)


# -----------------------------------------------------------------------------
# one record -> fields of a row
# -----------------------------------------------------------------------------


def chat_row(record: dict, asked: str, reply: str | None = None) -> dict:
    """The row of a record with a chat, or a question as a text, in the column `asked`.

    The reply to it may be in the column `reply`. Raises ValueError if the chat does not end with a question
    and at most one reply to it, or holds turns of another kind (tools, video).
    """
    if record.get("label") is False or record.get("kto_tag") is False:
        raise ValueError("the reply is one that was marked as undesired")
    turns = read_turns(record.get(asked))
    if turns and asked == "instruction" and not is_empty(record.get("input")):
        turns[-1]["content"] += "\n" + str(record["input"])
    turns = read_turns(record.get("history")) + turns
    if not is_empty(record.get("system")) and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, new_turn("system", str(record["system"])))
    if reply and not (turns and turns[-1]["role"] == "assistant"):
        turns += read_turns(record.get(reply), "assistant")[-1:]  # some repeat the question before it
    fill_objects(turns, record.get("objects"))

    last = turns.pop() if turns and turns[-1]["role"] == "assistant" else new_turn("assistant", "")
    if not turns or turns[-1]["role"] != "user":
        raise ValueError(f"no question at the end of '{asked}'")
    problem = turns[-1]["content"]
    for turn in turns:  # what an assistant had thought before is not part of a chat that goes on
        if turn["role"] == "assistant":
            turn["content"] = split_reply(turn["content"])[1]
    context = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:-1]]
    fields = {"problem": bare_question(record, problem), "context": context or None}

    thinking, answer = split_reply(last["content"])
    thinking = last["thinking"] or thinking
    if thinking and is_empty(record.get("thinking")):
        fields["thinking"] = thinking
    columns = [record.get(column) for column in ANSWERS]
    columns.insert(0, column_value(record, "reward_model.ground_truth"))
    given = [value for value in columns if not is_empty(value) and not isinstance(value, bool)]
    fields["solution"] = given[0] if given else answer or None

    sources = [source for turn in turns for source in turn["images"]]
    if any(source is not None for source in sources):
        # a turn may name its image or leave it to the column, which holds them in order
        rest = iter(column_images(record))
        fields["images"] = [next(rest, None) if source is None else source for source in sources]
    elif any(isinstance(image, dict) and "bytes" not in image for image in column_images(record)):
        fields["images"] = [image_source(image) for image in column_images(record)]
    return fields


def thought_row(record: dict, answer: str) -> dict:
    """open-r1: the column `answer` holds "<think> ... </think> <answer> ... </answer>"."""
    thinking, solution = split_reply(str(record.get(answer) or ""))
    return {"thinking": thinking, "solution": solution} if thinking else {}


def letter_row(record: dict, question: str) -> dict:
    """VLMEvalKit: the options are columns A, B, ..., and a hint may go before the question."""
    paragraphs = [record.get("hint"), record.get(question)]
    options = [record.get(letter) for letter in OPTION_COLUMNS]
    fields = {
        "problem": "\n".join(str(text) for text in paragraphs if not is_empty(text)),
        "labels": {"category": record.get("category")},
    }
    if not all(map(is_empty, options)):
        fields["options"] = options  # with gaps at the end, where the set has more columns
    if not is_empty(record.get("index")) and is_empty(record.get("id")):
        fields["id"] = record["index"]
    return fields


def bare_question(record: dict, problem: str) -> str:
    """The question that verl keeps in extra_info, to which its prompt adds how to write the answer."""
    question = column_value(record, "extra_info.question")
    if not isinstance(question, str) or not question.strip() or question.strip() not in problem:
        return problem
    marks = problem.count(IMAGE_MARK) - question.count(IMAGE_MARK)
    return IMAGE_MARK * marks + question


def split_reply(text: str) -> tuple[str, str]:
    """(reasoning, the rest) of "<think> ... </think> the rest"; a template may have opened the tag itself."""
    closing = re.search(r"</think(?:ing)?>", text)
    if not closing:
        return "", text.strip()
    thinking = re.sub(r"^.*?<think(?:ing)?>", "", text[: closing.start()], flags=re.DOTALL)
    return thinking.strip(), text[closing.end() :].strip()


# -----------------------------------------------------------------------------
# the turns of a chat
# -----------------------------------------------------------------------------


def new_turn(role: str, content: str) -> dict:
    """A turn as read_turns gives it: `images` has a source, or None, for each image mark of its parts."""
    return {"role": role, "content": content, "images": [], "thinking": ""}


def turns_of(value) -> list[dict]:
    """The messages of a chat, raw; [] if the value is no chat.

    It is a list of messages, one message, JSON of those, or a struct of columns {"role": [...], "content":
    [...]}, which some versions of datasets make of a list.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict):
        if all(isinstance(column, list) for column in value.values()):
            names, columns = value.keys(), zip(*value.values(), strict=False)
            value = [dict(zip(names, message, strict=True)) for message in columns]
        else:
            value = [value]
    if not isinstance(value, list) or not value:
        return []
    return value if all(isinstance(message, dict) and is_message(message) for message in value) else []


def is_message(message: dict) -> bool:
    return bool(message.keys() & {"role", "from"}) or is_pair(message)


def is_pair(message: dict) -> bool:
    """A question and its reply in one, as {"human": ..., "assistant": ...} of ms-swift."""
    return bool(message.keys() & {"human", "user"}) and bool(message.keys() & {"assistant", "gpt", "bot"})


def read_turns(value, role: str = "user") -> list[dict]:
    """The turns of a chat, of a history [[question, reply], ...] or of a text, which has the given role.

    Raises ValueError for a turn of another role or with something else than text and images.
    """
    if is_empty(value):
        return []
    messages = turns_of(value)
    if not messages and isinstance(value, str):
        return [read_turn(role, value)]
    if not messages and isinstance(value, list) and all(isinstance(pair, list) for pair in value):
        messages = [dict(zip(("user", "assistant"), pair, strict=False)) for pair in value]
    if not messages:
        raise ValueError(f"a {type(value).__name__} where the turns of a chat are meant")
    turns = []
    for message in messages:
        if is_pair(message):
            for name in ("system", "human", "user", "assistant", "gpt", "bot"):
                if not is_empty(message.get(name)):
                    turns.append(read_turn(ROLES[name], message[name]))
            continue
        name = str(first_of(message, "role", "from")).strip().lower()
        if name not in ROLES:
            raise ValueError(f"a turn of '{name}', which is none of {', '.join(ROLES)}")
        turn = read_turn(ROLES[name], first_of(message, "content", "value"))
        reasoning = first_of(message, *THINKING)
        if isinstance(reasoning, str):
            turn["thinking"] = reasoning.strip()
        turns.append(turn)
    return turns


def read_turn(role: str, content) -> dict:
    """A turn of a text or of a list of parts: texts, images, and the reasoning before a reply.

    Raises ValueError for parts of another kind.
    """
    turn = new_turn(role, "")
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        turn["content"] = inline_images("" if content is None else str(content), turn["images"])
        return turn
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") or next((key for key in part if part[key] is not None), "text")
        if kind in ("text", "input_text", "output_text"):
            # an image has a part of its own: a mark in the text beside it is the same one again
            text = str(first_of(part, "text", "content", "value") or "")
            several = any(isinstance(other, dict) and is_image(other) for other in content)
            turn["content"] += text.replace(IMAGE_MARK, "") if several else text
        elif is_image(part):
            turn["content"] += IMAGE_MARK
            turn["images"].append(image_source(part))
        elif kind in ("thinking", "reasoning"):
            turn["thinking"] += str(first_of(part, kind, "text") or "")
        else:
            raise ValueError(f"a part of the kind '{kind}' in a turn, where texts and images are meant")
    return turn


def is_image(part: dict) -> bool:
    kind = part.get("type") or next((key for key in part if part[key] is not None), "")
    return kind in ("image", "image_url", "input_image")


def image_source(part):
    """What an image part holds: a path, an address, bytes, a struct; None if it only says where one is."""
    if not isinstance(part, dict) or part.get("bytes") is not None:
        return part
    source = first_of(part, "image", "image_url", "url", "path", "base64", "data", "content", "source")
    return image_source(source) if isinstance(source, dict) else source


def inline_images(text: str, sources: list) -> str:
    """The text with a mark for each <img>path</img> of old Qwen-VL data; the paths are added to `sources`."""
    sources += re.findall(r"<img>([^<\n]+)</img>", text)
    return re.sub(r"<img>[^<\n]+</img>", IMAGE_MARK, text)


def column_images(record: dict) -> list:
    """What the image column of a record holds, as a list."""
    found = first_of(record, "images", "image")
    if is_empty(found):
        return []
    return found if isinstance(found, list) else [found]


def fill_objects(turns: list[dict], objects) -> None:
    """Put ms-swift's objects, {"ref": ["sheep"], "bbox": [[90, 160, 135, 212]]}, into the texts."""
    if not isinstance(objects, dict):
        return
    words = {"<ref-object>": iter(objects.get("ref") or ()), "<bbox>": iter(objects.get("bbox") or ())}
    for turn in turns:
        for mark, values in words.items():
            while mark in turn["content"] and (value := next(values, None)) is not None:
                text = value if isinstance(value, str) else json.dumps(value)
                turn["content"] = turn["content"].replace(mark, text, 1)


# -----------------------------------------------------------------------------
# values
# -----------------------------------------------------------------------------


def column_value(record, dotted: str):
    """What "reward_model.ground_truth" or "conversations.1.value" names in a record; None if it is not there.

    A column whose own name has the dots comes first.
    """
    if isinstance(record, list):
        place, _, rest = dotted.partition(".")
        if not re.fullmatch(r"-?\d{1,9}", place) or not -len(record) <= int(place) < len(record):
            return None
        return column_value(record[int(place)], rest) if rest else record[int(place)]
    if not isinstance(record, dict):
        return None
    words = dotted.split(".")
    for length in range(len(words), 0, -1):
        name, rest = ".".join(words[:length]), ".".join(words[length:])
        if name in record:
            return column_value(record[name], rest) if rest else record[name]
    return None


def first_of(record: dict, *names: str):
    """The first of these that is there: a table gives every record all names, and None where it had none."""
    return next((record[name] for name in names if not is_empty(record.get(name))), None)
