"""What a record says is right: its reference answer, its options, its texts, made plain and checked.

reference      4 of 4, "4", "<answer> 4 </answer>", "so \\boxed{4}", "1 + 3\\n#### 4", {"role", "content"}
reasoning      what stands before such an answer, or in <think> tags
options        a list, {"A": "red"}, {"label": [...], "text": [...]}, [{"label", "text"}], any of them as a
               text, lines "A. red"; the letters are taken off, and what is absent at the end is left out
letters        the reference of a choice may be a letter, a label of the options, their text, or an index

Nothing here knows of rows: what is wrong is a ValueError in words, to which data.py adds the row's name.
"""

import ast
import decimal
import json
import math
import re

from tasks.adapters import bare, reference_box
from tasks.grading.choices import option_letter
from tasks.grading.find import last_boxed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Keys under which dicts around an answer or an option hold its text, and options their letters.
TEXT_KEYS = ("text", "content", "value", "answer", "ground_truth", "option", "choice")
LABEL_KEYS = ("label", "labels", "key", "id", "letter", "option")
# A derivation is longer than this, or has several lines.
SHORT = 80
# "Answer: B" and "..., so the answer is 12." at the end of a text: how some sets write every reference.
SAID = re.compile(
    r"(?:^|(?<=[.:;!?\n])|\b(?:so|thus|hence|therefore),?)\s*(?:the\s+)?(?:final\s+|correct\s+)?"
    r"answer\s*(?:is\b\s*:?|:)\s*(\S[^\n]{0,60}?)\s*\.?$",
    re.IGNORECASE,
)

# -----------------------------------------------------------------------------
# values of any kind
# -----------------------------------------------------------------------------


def plain(value):
    """The value without numpy: a scalar as Python's own, an array as a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_absent(value) -> bool:
    """None, or the NaN that pandas writes where there is none."""
    return value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value))


def is_empty(value) -> bool:
    """Is nothing there: absent, or a text or list without content?"""
    value = plain(value)
    return is_absent(value) or (isinstance(value, str | list | tuple) and len(value) == 0)


def text_of(value, what: str, number: bool = False) -> str:
    """A text of a record, "" if it is absent; `number`: a number will do as well.

    Raises ValueError, which calls it `what`, for values of another kind, and for a text that no file or
    tokenizer takes.
    """
    value = plain(value)
    if is_absent(value):
        return ""
    if number and isinstance(value, int | float | decimal.Decimal):
        # no answer or name has more digits; Python refuses to write a whole number of 4,300
        if not abs(value) < 1e100:
            raise ValueError(f"the {what} is infinite or has more than 100 digits")
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the {what} is a {type(value).__name__} where a text is meant")
    if re.search(r"[\0\ud800-\udfff]", value):
        raise ValueError(f"the {what} holds a NUL or half a character (a lone surrogate)")
    return value


def literal(text: str):
    """The list or dict that a text holds, as JSON or Python writes it; the text itself if it holds none."""
    if text.strip()[:1] not in ("[", "{", "("):
        return text
    if re.fullmatch(r"\s*\[\s*(?:'[^']*'\s+)+'[^']*'\s*\]\s*", text):  # ['a' 'b'], as numpy writes it
        text = re.sub(r"'\s+'", "', '", text)
    for read in (json.loads, ast.literal_eval):  # literals only, nothing is run
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | tuple | dict):
            return value
    return text


def label_texts(labels) -> dict[str, str]:
    """The labels that have a value, as texts. Raises ValueError for what cannot be written to a file."""
    if not isinstance(labels, dict):
        return {}
    there = {name: plain(value) for name, value in labels.items() if not is_absent(plain(value))}
    return {text_of(str(name), "label"): text_of(str(value), "label") for name, value in there.items()}


# -----------------------------------------------------------------------------
# the reference
# -----------------------------------------------------------------------------


def read_solution(given, task: str, short=None) -> tuple[str, str]:
    """(bare answer, the reasoning that stands with it), each "" if there is none.

    A list is several accepted answers, a point, or a box as JSON. `short`: the answer in a column of its own
    where the solutions are derivations; it is the reference unless the derivation marks one. Raises
    ValueError for what is no answer (text_of), or no box where the task is grounding.
    """
    given, short = in_dict(given), in_dict(short)
    if is_empty(given) and not is_empty(short):
        given, short = short, None
    if is_empty(given):
        return "", ""
    if isinstance(given, str):
        answer, reasoning = split_solution(text_of(given, "solution"))
        if not is_empty(short) and not reasoning and answer == given.strip():  # nothing marks an answer in it
            return read_solution(short, task)[0], answer
        if task == "grounding":
            answer = json.dumps(reference_box(answer))
        return answer, reasoning
    if task == "grounding":
        return json.dumps(reference_box(given)), ""
    if isinstance(given, list | tuple):
        answers = [text_of(in_dict(answer), "solution", number=True) for answer in given]
        if "" in answers:
            raise ValueError("one of the accepted answers is empty")
        return str([in_dict(answer) for answer in given]), ""
    return text_of(given, "solution", number=True), ""


def in_dict(value):
    """The answer in a dict around it, with its unit: {"role", "content"}, {"value": 4, "unit": "m"}.

    Of a list of chat messages it is the last one's; any other value is left alone.
    """
    value = plain(value)
    if isinstance(value, list | tuple) and value and isinstance(value[-1], dict) and "role" in value[-1]:
        value = value[-1]
    if not isinstance(value, dict):
        return value
    key = next((key for key in TEXT_KEYS if not is_empty(value.get(key))), None)
    if key is None:
        return value
    unit = value.get("unit")
    inside = plain(value[key])
    return f"{inside} {unit}" if isinstance(unit, str) and unit and not isinstance(inside, list) else inside


def split_solution(text: str) -> tuple[str, str]:
    """(answer, reasoning) of a solution: by its tags, \\boxed{...}, a last line ####, or "the answer is ...".

    Without any of them all is answer.
    """
    before, closing, behind = text.rpartition("</think>")
    reasoning = before.rpartition("<think>")[2].strip() if closing else ""
    answer = bare(text)
    if answer == text.strip() and behind.strip():  # without <answer> tags
        answer = behind.strip()
    boxed = last_boxed(answer)
    hashed = re.search(r"####[ \t]*(\S[^\n]*)$", answer)  # GSM8K; not a heading further up
    if boxed is not None:
        is_prose = len(answer.split()) > len(boxed.split()) + 1
        return boxed, reasoning or (answer if is_prose else "")
    if hashed:
        return hashed[1], reasoning or answer[: hashed.start()].strip()
    said = SAID.search(answer)
    if said:
        return said[1], reasoning or answer[: said.start()].strip()
    return answer, reasoning


def is_derivation(solution, short) -> bool:
    """Does a solution work out what the column beside it says in `short`?"""
    solution, short = in_dict(solution), in_dict(short)
    if not isinstance(solution, str) or is_empty(short) or len(str(short)) >= len(solution):
        return False
    if len(str(short).split()) == 1 and len(solution.split()) > 3:  # an index or a letter beside a sentence
        return True
    is_long = len(solution) > SHORT or "\n" in solution.strip() or split_solution(solution)[1]
    return bool(is_long)


# -----------------------------------------------------------------------------
# options
# -----------------------------------------------------------------------------


def read_options(options, published: bool = False) -> tuple[list[str] | None, list[str]]:
    """(the texts of the options in order, their labels): (["cat", "dog"], ["A", "B"]); None without options.

    Letters in front are taken off, and options that are nothing else mean that the choices are drawn in the
    picture; those of a `published` set stay as they are.
    Raises ValueError for a gap, for more options than letters, and for what is no list or no text (text_of).
    """
    options = plain(options)
    if isinstance(options, str):
        options = listed(options)
    if is_empty(options) or options == {}:
        return None, []
    labels = []
    if isinstance(options, dict):
        texts, labels = columns_of(options)
    elif isinstance(options, list | tuple):
        texts = list(options)
        if all(isinstance(option, dict) for option in texts):
            pairs = [text_and_label(option) for option in texts]
            texts = [text for text, _ in pairs]
            labels = [str(label) for _, label in pairs if not is_empty(label)]
    else:
        raise ValueError(f"the options are a {type(options).__name__} where a list is meant")
    while texts and is_empty(texts[-1]):
        texts.pop()  # parquet gives all rows the keys A to E, and null where there are fewer options
    if len(texts) > len(LETTERS):
        raise ValueError(f"{len(texts)} options, more than there are letters")
    if any(map(is_empty, texts)):
        raise ValueError("an option before the last is missing")
    texts = [text_of(text, "option", number=True) for text in texts]
    if not published:
        texts = without_letters(texts)
        if texts == list(LETTERS[: len(texts)]):
            return None, []
    if len(labels) < len(texts):
        labels = list(LETTERS)
    return texts, labels[: len(texts)]


def listed(text: str):
    """The options in a text: a list or dict as JSON or Python writes it, lines, or "A. red B. blue".

    None if it is blank. Raises ValueError for other texts.
    """
    value = literal(text)
    if value is not text:
        return value
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    marks = list(re.finditer(r"(?:^|(?<=\s))\(?([A-Z])[).:．、]\s*", text))  # A. red B. blue
    if len(marks) > 1 and "".join(mark[1] for mark in marks) == LETTERS[: len(marks)]:
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        return [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    if text.strip():
        raise ValueError(
            f"the options are the text '{text[:60]}', in which no list is found "
            "(--columns=options= leaves the column out)"
        )
    return None


def columns_of(options: dict) -> tuple[list, list[str]]:
    """(texts, labels) of {"A": "red", "B": "blue"}, or of a struct {"label": ["A", "B"], "text": [...]}."""
    lists = {key: plain(value) for key, value in options.items() if isinstance(plain(value), list | tuple)}
    if not lists:
        names = list(options)
        return [options[name] for name in names], [str(name) for name in names]
    texts = next((lists[key] for key in (*TEXT_KEYS, "texts", "options", "choices") if key in lists), None)
    if texts is None:
        raise ValueError(f"the options are a dict of {', '.join(map(str, options))}: which is the text?")
    labels = next((lists[key] for key in LABEL_KEYS if key in lists), ())
    return list(texts), [str(label) for label in labels]


def text_and_label(option: dict) -> tuple:
    """(text, label) of one option that is a dict: {"label": "A", "text": "red"} or {"A": "red"}."""
    if len(option) == 1 and not set(option) & set(TEXT_KEYS):
        label, text = next(iter(option.items()))
        return text, label
    key = next((key for key in TEXT_KEYS if not is_absent(option.get(key))), None)
    label = next((option[name] for name in LABEL_KEYS if name != key and not is_empty(option.get(name))), "")
    return option.get(key), label


def without_letters(texts: list[str]) -> list[str]:
    """The options without "A. " or "(a) " before them if all have theirs, in order."""
    found = [re.fullmatch(r"\s*\(?([A-Za-z])\s?[).:．、]\s*(\S.*?)\s*", text, re.DOTALL) for text in texts]
    letters = "".join(match[1].upper() for match in found if match)
    if texts and letters == LETTERS[: len(texts)]:
        return [match[2] for match in found]
    return texts


def with_options(problem: str, options: list[str] | None) -> str:
    """The problem with its choices below, unless they stand there already with their letters."""
    if not options:
        return problem
    first_choice = r"(?:^|[\s*(\[])[Aa]\s?[])*:.．、：]+\s*" + re.escape(options[0].strip())
    if re.search(first_choice, problem):
        return problem
    return problem + "".join(f"\n({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))


def as_letter(solution: str, options: list[str], labels: list[str], base: int | None) -> str:
    """The reference of a choice: a letter where it is a label or an index (from `base`), else as it is.

    Raises ValueError for a letter or an index that no option has.
    """
    letter = option_letter(solution)
    if solution in labels:
        return LETTERS[labels.index(solution)]
    if letter and solution in options:  # a text that looks like a letter: "Y" of ["X", "Y"]
        return LETTERS[options.index(solution)]
    names = [label.strip().casefold() for label in labels]
    if solution.casefold() in names:
        return LETTERS[names.index(solution.casefold())]
    number = whole_number(solution)
    if base is not None and number is not None:
        if not 0 <= number - base < len(options):
            raise ValueError(f"the answer {number} is the index of none of {len(options)} options")
        return LETTERS[number - base]
    if letter and LETTERS.index(letter) >= len(options):
        raise ValueError(f"the answer {solution[:40]} is the letter of none of {len(options)} options")
    return solution


def whole_number(text: str) -> int | None:
    """3 of "3" and of "3.0", as a table with gaps has it; None for other texts."""
    match = re.fullmatch(r"([0-9]{1,9})(?:\.0)?", text)
    return int(match[1]) if match else None


def index_base(answers: list[tuple[str, list[str], list[str]]]) -> int | None:
    """Do the references of choices count the options from 0 or from 1? None: they are no indexes.

    `answers`: (solution, options, labels) of the first rows that have options. From 0 if a 0 is among them,
    from 1 if one is the number of its options. Numbers that all stand among the texts of their options are
    those texts, labels are labels, and a number beyond the options is none of both. Raises ValueError if
    neither or both are there.
    """
    numbers = []
    for solution, options, labels in answers:
        number = whole_number(solution)
        if number is not None and number <= len(options) > 1 and solution not in labels:
            numbers.append((number, options))
    if len(numbers) * 2 < len(answers) or not numbers:
        return None
    if all(str(number) in options for number, options in numbers):
        return None
    has_zero = any(number == 0 for number, _ in numbers)
    has_last = any(number == len(options) for number, options in numbers)
    if has_zero == has_last:
        number, options = numbers[0]
        raise ValueError(
            f"the answers of choices are numbers, such as {number} of {len(options)} options, "
            "and it cannot be told whether they count from 0 or from 1"
        )
    return 0 if has_zero else 1
