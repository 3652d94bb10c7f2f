r"""Traces: what does a teacher's answer conclude, is that right, and may its thinking be imitated?

How distill.py reads what a server sends, the rules of its filter, and a teacher made of rules, for demos and
tests.

A trace is kept if and only if its conclusion is the known answer (by grading.py, which also pays the policy)
and a careful reader would let it pass: begun and ended, at one with itself, no loop, no talk of instructions,
and of an image rather than of a text.

>>> concluded("There are 7 objects, and **4** of them are cubes.\n\nFinal Count: 4", "4")
['4']
>>> as_image("The scene description lists a cube.")
'The image shows a cube.'
"""

import collections
import json
import random
import re
from typing import NamedTuple

from tasks import scenes
from tasks.grading import VERIFIERS
from tasks.grading.conclusion import last_value
from tasks.grading.find import ANSWER, last_boxed
from tasks.grading.patterns import NUMBER, WORDS

# -----------------------------------------------------------------------------
# what a server sends
# -----------------------------------------------------------------------------

# Where the text stands in a part of a content, and the reasoning in a message, by the server:
TEXT = ("text", "content", "thinking", "reasoning", "thought", "steps", "summary", "refusal", "value")
REASONING = (
    "reasoning_content",  # DeepSeek
    "reasoning",  # vLLM, OpenRouter
    "reasoning_details",  # OpenRouter: a list
    "thinking",  # Ollama
    "thinking_blocks",  # LiteLLM: a list
    "reasoning_text",
    "thinking_content",
    "thoughts",
)


class Reply(NamedTuple):
    """What is in the body of a response."""

    answer: dict | None  # {"reasoning", "content", "refusal", "finish"}; "others": further choices, if any
    tokens: dict  # {"tokens_in", "tokens_out"}: numbers, or None where the server gives none
    code: int  # the HTTP status that an error inside the body names, or 0
    error: str  # the error inside the body, as JSON, or ''
    problem: str  # why there is no answer, or ''


def read_reply(body: str) -> Reply:
    """What a chat server sent: a completion, an error, the events of a stream, a page, half of something.

    Raises nothing: whatever it is, it may have been paid for.
    """
    reply = {}
    try:
        reply = parse_body(body)
        error = reply.get("error") or next(
            (c["error"] for c in dicts(reply, "choices") if c.get("error")), None
        )
        if error is None and "choices" not in reply:
            error = reply.get("detail") or reply.get("message") or reply.get("msg")
        if error:
            code = number((error if isinstance(error, dict) else reply).get("code")) or 0
            text = json.dumps(error, ensure_ascii=False)
            return Reply(None, tokens_of(reply), code if 400 <= code < 600 else 0, text, brief(text))
        answer = read_choices(reply)
        return Reply(answer, tokens_of(reply), 0, "", "" if answer else "an empty answer")
    except (ValueError, RecursionError) as error:
        problem = f"no chat completion ({error}): {brief(body)}" if body.strip() else "an empty body"
        return Reply(None, tokens_of(reply), 0, "", problem)


def parse_body(body: str) -> dict:
    """The JSON object of a body; the events of a stream are put together. Raises ValueError."""
    if re.match(r"\s*(?::|data:|event:|id:|retry:)", body):
        return join_events(body)
    reply = json.loads(body)
    if isinstance(reply, list) and reply:  # Google puts its errors into a list
        reply = reply[0]
    if not isinstance(reply, dict):
        raise ValueError("no JSON object")
    return reply


def join_events(body: str) -> dict:
    """The completion of a stream, which some servers send unasked. Raises ValueError if it breaks off."""
    reply = {}
    choices = {}
    ended = False
    for line in body.split("\n"):
        field, _, value = line.partition(":")
        if field != "data":
            continue
        if value.strip() == "[DONE]":
            ended = True
            continue
        event = json.loads(value)
        if not isinstance(event, dict):
            raise ValueError("an event that is no JSON object")
        reply |= {name: event[name] for name in ("usage", "error") if event.get(name)}
        for choice in dicts(event, "choices"):
            whole = choices.setdefault(str(choice.get("index")), {"message": collections.defaultdict(str)})
            for name, text in read_message(choice.get("delta") or choice.get("message")).items():
                whole["message"][name] += text
            whole["finish_reason"] = choice.get("finish_reason") or whole.get("finish_reason")
            ended = ended or bool(whole["finish_reason"])
    if not ended and "error" not in reply:
        raise ValueError("the stream breaks off")
    return reply | {"choices": list(choices.values())}


def read_choices(reply: dict) -> dict | None:
    """The answer in the choices of a completion, None if they hold none."""
    answers = []
    for choice in dicts(reply, "choices"):
        answer = read_message(choice.get("message") or choice.get("delta") or choice.get("text"))
        finish = choice.get("finish_reason")
        word = str(finish).lower()
        if re.search("length|max_tokens", word):
            finish = "length"
        elif re.search("filter|safety|sensitive|prohibited|blocklist", word):
            finish = "content_filter"
        if any(text.strip() for text in answer.values()) or finish in ("length", "content_filter"):
            answers.append(answer | {"finish": finish})
    if not answers:
        return None
    first, *others = answers
    return first | ({"others": others} if others else {})


def read_message(message) -> dict[str, str]:
    """{"reasoning", "content", "refusal"} of a message, or of its content alone."""
    if not isinstance(message, dict):
        message = {"content": message}
    found = {"reasoning": "", "content": "", "refusal": text_of(message.get("refusal"))}
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if "think" in kind or "reason" in kind:
            found["reasoning"] += text_of(part)
        else:
            found["refusal" if kind == "refusal" else "content"] += text_of(part)
    for name in REASONING:
        found["reasoning"] = found["reasoning"] or text_of(message.get(name))
    return found


def text_of(value) -> str:
    """The text in a value: a string, a list of parts, or a dict around one of these."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(filter(None, map(text_of, value)))
    if isinstance(value, dict):
        return next(filter(None, (text_of(value.get(name)) for name in TEXT)), "")
    return ""


def tokens_of(reply: dict) -> dict:
    """{"tokens_in", "tokens_out"} of a completion, None where its server gives no number."""
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    sent, made, total = (
        next((n for n in map(number, map(usage.get, names)) if n is not None), None)
        for names in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens",),
        )
    )
    if total is not None:
        if sent is None and made is not None:
            sent = max(0, total - made)
        made = max(made or 0, total - (sent or 0))  # some leave the reasoning out of completion_tokens
    return {"tokens_in": sent, "tokens_out": made}


def number(value) -> int | None:
    """12 of 12, 12.0 and "12"; None of what is no number."""
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return None


def dicts(record: dict, name: str) -> list[dict]:
    """The dicts in a list of a record; [] if that is no list."""
    value = record.get(name)
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def brief(text: str) -> str:
    """The first words of a text or of a web page, in one line."""
    return " ".join(re.sub(r"<[^<>]*>", " ", text[:3000]).split())[:300]


def outcome(answer: dict) -> str:
    """Why an answer holds nothing to learn from, as far as the server says so; '' if it may."""
    finish = answer.get("finish")
    if finish == "content_filter":
        return "content filter"
    if answer.get("refusal") or finish == "refusal":
        return "refused"
    if finish in ("length", "abort", "error", "insufficient_system_resource"):
        text = answer.get("reasoning") or answer["content"].strip()
        return "cut off" if text else "cut off before any text"
    return ""


# -----------------------------------------------------------------------------
# what an answer comes to
# -----------------------------------------------------------------------------

# Thinking in other marks: <thinking>, <thought>, <reasoning>, Mistral's [THINK], Kimi's ◁think▷. What is
# opened by one name and closed by another is malformed.
OTHER_TAGS = re.compile(
    r"([<\[◁])(think|thinking|thoughts?|reasoning|seed:think)([>\]▷])((?:(?!\1\2\3).)*?)\1/\2\3",
    re.DOTALL | re.IGNORECASE,
)
# Channels of OpenAI's harmony format, with its special tokens or with what is left when those are taken out.
CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(\w+)[^<]*<\|message\|>"
    r"((?:(?!<\|(?:end|return|start|channel)\|>).)*)"
    r"(?:<\|(?:end|return)\|>)?",
    re.DOTALL,
)
BARE_CHANNELS = re.compile(r"\Aanalysis(?=[A-Z])(.*?)assistantfinal(.*)\Z", re.DOTALL)
THINKING = re.compile(r"<think>((?:(?!<think>).)*?)</think>", re.DOTALL)
POSED = re.compile(r"<problem>((?:(?!<problem>).)*?)</problem>", re.DOTALL)
BOLD = re.compile(r"\*\*([^*]+)\*\*")
# "final count: 4": the label, at most 40 characters, "is", "should be" or a sign, and then what is concluded.
# "in total: 3 here, 2 there" is no label.
LABEL = re.compile(
    r"(?:\b(?:answer|count|(?<!in )total|number of)\b[^.\n:=]{0,40}?"
    r"(?:\bis\b|\bshould be\b|\bare\b|[:=])[ \t:]*"
    r"|^\W*final answer\W*$)\s*(\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
# a number in digits or in words; "no" only before a word, as in "no cubes"
FIGURE = re.compile(
    rf"(?<![\w.,-])(?:{NUMBER}(?!\w)|(?:{'|'.join(WORDS)}|none|no(?= [a-z]))\b)", re.IGNORECASE
)
HEDGED = re.compile(
    r"\b(?:or|between|at (?:least|most)|about|approximately|around|maybe|perhaps|(?:more|less|fewer) than|not"
    r"|cannot)\b",
    re.IGNORECASE,
)
# before the sentence that closes a line: "Metal: 4, rubber: 3. Hence 7." concludes 7
CLOSING = re.compile(
    r"(?<=[.!?;])\s+(?=(?:so|therefore|thus|hence|in total|altogether|in all)\b)", re.IGNORECASE
)
YES_OR_NO = re.compile(r"^\W*(?:(?:so|therefore|thus|hence)\W+)?(yes|no)\b|\b(yes|no)\W*$", re.IGNORECASE)


def plain_tags(content: str) -> str:
    """The content with <think> and </think> around its thinking, whatever marks the teacher uses."""
    content = BARE_CHANNELS.sub(r"<think>\1</think>\2", content)
    content = CHANNEL.sub(lambda m: m[2] if m[1] == "final" else f"<think>{m[2]}</think>", content)
    return OTHER_TAGS.sub(r"<think>\4</think>", content)


def split_thinking(reasoning: str | None, content: str) -> tuple[str, str] | None:
    """(thinking, what follows it); None unless the thinking has a beginning and an end.

    reasoning: what the server separated from the answer, if it did. Several blocks in the content become one.
    """
    content = plain_tags(content)
    blocks = [block.strip() for block in THINKING.findall(content)]
    rest = THINKING.sub("", content)
    if not blocks and content.count("</think>") == 1 and "<think>" not in content:
        # some chat templates open the tag in the prompt
        opening, _, rest = content.partition("</think>")
        blocks = [opening.strip()]
    if "<think>" in rest or "</think>" in rest:
        return None
    if not blocks and not reasoning:
        return None
    thinking = "\n".join(block for block in blocks if block)
    if not thinking and reasoning:
        thinking = re.sub(r"\A\s*<think>|</think>\s*\Z", "", plain_tags(reasoning)).strip()
    return thinking, rest.strip()


def unmarked(text: str) -> str:
    """Without bold and italics; the stars of 2*3*4 stay."""
    text = text.replace("**", "").replace("__", "")
    return re.sub(r"(?<![\w*_])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?!\w)", r"\2", text)


def concluded(text: str, answer: str) -> list[str]:
    """What a text comes to. [] if it does not decide.

    The explicit conclusions (tag, box, label), which should agree, or else what its last lines imply.
    `answer` only tells what kind of thing to look for: a number, yes or no, or a word.
    """
    explicit = ANSWER.findall(text)
    boxed = last_boxed(text)
    if boxed is not None:
        explicit.append(boxed)
    labelled = LABEL.findall(re.sub(r"</?answer>", "", unmarked(text)))
    labelled = [label for label in labelled if not label.startswith("\\boxed")]
    explicit += labelled[-1:]
    if explicit:
        return explicit

    lines = [line for line in text.split("\n") if line.strip()]
    for line in reversed(lines[-3:]):
        implied = implied_by(line, answer)
        if implied is not None:
            return implied
    return []


def implied_by(line: str, answer: str) -> list[str] | None:
    """[what a line implies], [] if it leaves open which of several, None if it says nothing of the kind."""
    sentence = CLOSING.split(line)[-1]
    plain = unmarked(sentence)
    if answer.isdigit():
        return implied_number(sentence, plain)
    if answer.lower() in ("yes", "no"):
        found = YES_OR_NO.search(plain)
        return [found[1] or found[2]] if found else None
    bold = BOLD.findall(sentence)
    if len(bold) == 1:
        return bold
    word = last_value(plain)
    if not word and len(plain.split()) < 4:
        word = plain
    return [word] if word else None


def implied_number(sentence: str, plain: str) -> list[str] | None:
    """As implied_by, of a sentence with its bold and of the same sentence without."""
    # the result stands behind "=", and what follows a colon or a bracket is a list of its parts
    lead = re.split(r"[:;(]\s?|, (?:namely|including)", plain.rpartition("=")[2])[0]
    if not FIGURE.search(lead):
        lead = plain
    figures = FIGURE.findall(lead)
    bold = [words for words in BOLD.findall(sentence) if FIGURE.fullmatch(words.strip(" ."))]
    if figures and HEDGED.search(lead):
        return []
    if len(figures) == 1:
        number = figures[0]
    elif len(bold) == 1:
        number = bold[0]
    elif figures:
        return []  # several numbers, and no sign which of them is meant
    else:
        return None
    return ["0"] if number.lower() in ("no", "none") else [number]


# what explains an answer, as in "3, namely ..." and "3 (two cubes and a ball)"
EXPLANATION = re.compile(r" \(|[,;] |\. |: |\b(?:because|since|namely)\b")
# what takes it back, as in "3, or maybe 4"
DOUBT = re.compile(r"\W*(?:or|maybe|perhaps|possibly|and|no)\b", re.IGNORECASE)


def is_right(said: str, item: dict) -> bool:
    """By the verifier of the task; what follows a right answer may explain it."""
    said = re.sub(r"^[(\[]([^()\[\]]+)[)\]]\.?$", r"\1", said.strip())  # (3) is 3
    candidates = [said, re.sub(r"^(?:an?|the|made (?:out )?of) ", "", said, flags=re.IGNORECASE)]
    explanation = EXPLANATION.search(said)
    if explanation and item["task"] in ("count", "text"):
        start = explanation.start()
        if not DOUBT.match(said[start:]):
            candidates.append(said[:start])
    verify = VERIFIERS[item["task"]]
    row = {"problem": item["question"], "options": item.get("options")}
    return any(verify(candidate, item["answer"], row) for candidate in candidates)


# -----------------------------------------------------------------------------
# may the thinking be imitated?
# -----------------------------------------------------------------------------

# In this order: a description becomes the image, and then what it was said to do becomes "shows".
REWRITES = (
    # of an object: "the cubes that fit the description"
    (r"\b(fit|fits|fitting|match|matches|matching) (?:the|this|that) description\b", r"\1 the question"),
    (
        r"\b(?:the|this|that|your) (?:(?:given|provided|above|textual|original|full|whole|entire) )*"
        r"(?:scene(?:['’]s)? )?description\b(?: of the (?:scene|image)| provided| given)*",
        "the image",
    ),
    (
        r"\b(?:the|this|that) "
        r"(?:(?:described|given|provided) scene|scene (?:described|given|provided))\b",
        "the image",
    ),
    (r"\ban? (?:(?:given|provided) )?scene description\b", "an image"),
    (r"\b(?:scene description|described scene)s?\b", "image"),
    (
        r"\bthe image "
        r"(?:lists|mentions|says|states|specifies|describes|tells (?:me|us)|includes|contains)\b",
        "the image shows",
    ),
    (
        r"\bthe image (does(?:n't| not)) "
        r"(?:list|mention|say|state|specify|describe|include|contain)\b",
        r"the image \1 show",
    ),
    (r"\b(?:described|listed|mentioned|stated|specified) in the image\b", "shown in the image"),
    (r"\b(is|are) described as\b", r"\1"),
    (r"\b(objects?|items?|things?|ones?) (?:described|listed|mentioned)\b", r"\1 shown"),
)


def as_image(thinking: str) -> str:
    """The thinking of someone who was told a scene, as of someone who sees it, as far as words will do."""
    for pattern, new in REWRITES:

        def reworded(match: re.Match) -> str:
            text = match.expand(new)
            if match[0][0].isupper():
                text = text[0].upper() + text[1:]
            return text

        thinking = re.sub(pattern, reworded, thinking, flags=re.IGNORECASE)
    return thinking


# what only a reader of the scene in words would say
ONLY_TEXT = re.compile(
    r"\bdescri(?:ption|ptions|bed)\b"
    r"|\b(?:first|second|third|fourth|fifth|next|last|each|every|this|that) (?:line|entry|bullet)\b"
    r"|\b(?:line|entry|bullet) (?:\d|point)|\blines\b|\bto a line\b|\bentries\b"
    r"|\bin words\b|\bwritten\b|\b(?:a|as|the|this|of|in) text\b|\btextual\b"
    r"|\b(?:can't|cannot|can not) (?:actually |really )?see (?:the|an|any) (?:image|picture)"
    r"|\bno (?:actual |real )?(?:image|picture)\b"
    r"|\b(?:image|picture) (?:is not|isn't|was not|wasn't) (?:shown|given|provided|available)\b",
    re.IGNORECASE,
)
# what only somebody with instructions, or with the known answer, would say
LEAK = re.compile(
    r"\binstruct(?:ed|ions?)\b|\bguidelines?\b|\bsystem (?:prompt|message)\b|\bthe prompt\b"
    r"|\bas an? (?:ai|language model|assistant)\b|\bdeepseek\b|\bopenai\b"
    r"|\b(?:final|last) line\b"
    r"|\bin bold\b|\bbold(?:ed|ing)\b|\bbold (?:it|the|text|type|font|letters|label)\b"
    # to be asked to count is the question, to be asked to end or to speak in a way is an instruction
    r"|\b(?:i was|i am|i'm|i have been|we were) (?:told|asked|required|supposed) to "
    r"(?!count|find|determine|figure|answer|tell|identify)"
    r"|\b(?:i|we) (?:must|should|have to|need to|mustn't) (?:not )?"
    r"(?:speak|mention|write|end|phrase|format|refer|present|put|respond)\b"
    r"|\bformat(?:ted|ting)? (?:the|my|of|it|is|require)|\bas requested\b"
    r"|</?(?:think|thinking|answer|problem)>"
    r"|\b(?:known|expected|given|provided|reference|original|ground.truth) (?:answer|solution|truth)\b"
    r"|\bground.truth\b",
    re.IGNORECASE,
)
# control characters, and what stands for a character that could not be read
BROKEN = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffd]")
CONCLUDES = re.compile(r"\b(?:so|therefore|thus|hence|total|answer|in all)\b", re.IGNORECASE)


def loops(parts: list[str], copies: int, longest: int) -> bool:
    """Does a block of at most `longest` parts stand there `copies` times on end?"""
    for period in range(1, longest + 1):
        run = 0  # parts on end that are the same as the one a period later
        for part, later in zip(parts, parts[period:], strict=False):
            run = run + 1 if part == later else 0
            if run >= period * (copies - 1):
                return True
    return False


def repeats(text: str) -> bool:
    """Sentences four times on end, or a few words six times.

    Going through equal objects one by one is no repetition.
    """
    sentences = [part.strip().lower() for part in re.split(r"[.!?\n]+", text) if part.strip()]
    words = text.lower().split()
    return loops(sentences, copies=4, longest=20) or loops(words, copies=6, longest=12)


def own_conclusion(thinking: str, answer: str) -> list[str]:
    """What the last sentence of the thinking comes to; [] if it concludes nothing that can be compared."""
    last = re.split(r"(?<=[.!?])\s+|\n", thinking)[-1]
    if not CONCLUDES.search(last):
        return []
    own = concluded(last, answer)
    comparable = answer.isdigit() or (own and own[0].strip(" .*").lower() in ("yes", "no"))
    return own if comparable else []


class Verdict(NamedTuple):
    row: dict | None  # what is written to kept.jsonl; None: rejected
    reason: str  # why it is rejected, '' if it is kept
    said: list[str]  # its conclusions, as far as they were read


def judge(item: dict, answer: dict, route: str, limit: int, count_tokens) -> Verdict:
    """The verdict on one answer to the pair `item`: a careful reader's rules, in order.

    route: 'scene' or 'rewrite', as in distill.py. limit: of the thinking, in tokens by count_tokens(text).
    """
    reason = outcome(answer)
    length = len(answer["content"]) + len(answer.get("reasoning") or "")
    if not reason and length > 100 * limit:  # no token is so long; megabytes would keep the rules busy
        reason = "too long"
    if reason:
        return Verdict(None, reason, [])
    parts = split_thinking(answer.get("reasoning"), answer["content"])
    if parts is None:
        return Verdict(None, "no thinking tags", [])
    thinking, final = parts
    if not thinking:
        return Verdict(None, "empty thinking", [])
    if BROKEN.search(thinking + final):
        return Verdict(None, "broken characters", [])

    question = item["question"]
    if route == "rewrite":
        posed = POSED.search(answer["content"])
        if not posed or not posed[1].strip():
            return Verdict(None, "no question", [])
        question = posed[1].strip()
        final = POSED.sub("", final)
        shown = rf"(?<!\w){re.escape(item['answer'])}(?!\w)"
        if re.search(shown, question) and not re.search(shown, item["question"]):
            return Verdict(None, "the question gives the answer away", [])

    said = concluded(final, item["answer"])
    if not said:
        return Verdict(None, "no conclusion", [])
    right = [is_right(conclusion, item) for conclusion in said]
    if not any(right):
        return Verdict(None, "wrong", said)
    if not all(right):
        return Verdict(None, "contradicts itself", said)
    # the thinking is what will be imitated: it must not come to something else in its last sentence
    own = own_conclusion(thinking, item["answer"])
    if own and not any(is_right(conclusion, item) for conclusion in own):
        return Verdict(None, "contradicts itself", own)

    thinking = as_image(thinking)
    if LEAK.search(thinking):
        return Verdict(None, "instructions leak", said)
    # a teacher that saw the image may well speak of lines and of text in it
    if route == "scene" and ONLY_TEXT.search(thinking):
        return Verdict(None, "speaks of a text", said)
    if repeats(thinking) or repeats(final):
        return Verdict(None, "repeats", said)
    if count_tokens(thinking) > limit:
        return Verdict(None, "too long", said)
    row = {
        "split": item["split"],
        "image": item["image"],
        "problem": question,
        "thinking": thinking,
        "solution": item["answer"],
        "task": item["task"],
        "original_question": item["question"],
    }
    return Verdict(row, "", said)


def best_of(kept: list[dict], per_pair: int, count_tokens) -> tuple[list[dict], list[tuple[dict, str]]]:
    """(rows that stay, [(row, reason)] that go).

    Of equal traces of a pair one stays, and if per_pair > 0 only so many of a pair, the shortest ones.
    """
    by_pair = collections.defaultdict(list)
    for row in kept:
        by_pair[row["key"]].append(row)
    stay, go = [], []
    for rows in by_pair.values():
        rows.sort(key=lambda row: (count_tokens(row["thinking"]), row["sample"]))
        seen = set()
        for row in rows:
            if row["thinking"] in seen:
                go.append((row, "same as another"))
            elif per_pair and len(seen) >= per_pair:
                go.append((row, "not the shortest"))
            else:
                stay.append(row)
            seen.add(row["thinking"])
    return stay, go


# -----------------------------------------------------------------------------
# a teacher without a model
# -----------------------------------------------------------------------------

OBJECT = re.compile(
    r"^A (\w+) (\w+) (\w+) ([\w ]+?) rotated .* pixel coordinates \(([\d.]+), ([\d.]+), ", re.MULTILINE
)
VALUES = {
    "size": scenes.SIZES,
    "color": scenes.COLORS | scenes.OOD_COLORS,
    "material": scenes.MATERIALS,
    "shape": scenes.MODELS,
}


def word_meanings() -> dict[str, tuple[str, str]]:
    """{"ball": ("shape", "sphere"), ...}: every word for an attribute, with the attribute and its value."""
    meanings = {}
    for attribute, values in VALUES.items():
        for value in values:
            for word in scenes.SYNONYMS.get(value, (value,)):
                meanings[word] = (attribute, value)
    return meanings


MEANINGS = word_meanings()
FINAL_FORMS = (
    "**The answer is:** {}",
    "The answer is: **{}**",
    "Answer: {}",
    "\\boxed{{{}}}",
    "<answer> {} </answer>",
)
TOO_HARD = {"left", "right", "front", "behind", "than", "same", "equal"}


def wanted_attributes(words: list[str]) -> dict[str, str]:
    """{"color": "red", "shape": "cube"} of the words of "How many red cubes are there?"."""
    wanted = {}
    for word in words:
        for singular in (word, word.removesuffix("s"), word.removesuffix("es")):
            if singular in MEANINGS:
                attribute, value = MEANINGS[singular]
                wanted[attribute] = value
    return wanted


def script_answer(item: dict, rng: random.Random, miss: float, broken: float) -> dict:
    """A teacher made of rules, for demos and tests, in the form of ask_server's answers in distill.py.

    It reads the description, overlooks each small object with probability `miss`, and writes nonsense with
    probability `broken`. It knows the description and the question, not the answer; it counts and says
    whether there is one, other questions it gives up.
    """
    seen = []
    for match in OBJECT.findall(item["description"]):
        thing = dict(zip((*scenes.ATTRIBUTES, "x", "y"), match, strict=True))
        if thing["size"] == "small" and rng.random() < miss:
            continue
        seen.append(thing)
    # row by row, a row as high as a cell of the grid
    seen.sort(key=lambda thing: (float(thing["y"]) // 28, float(thing["x"])))
    thinking = ", ".join(f"{thing['color']} {thing['shape']}" for thing in seen) or "nothing"

    words = re.findall(r"[a-z]+", item["question"].lower())
    wanted = wanted_attributes(words).items()
    found = [thing for thing in seen if wanted <= thing.items()]
    if TOO_HARD & set(words) or (words[0] == "what" and "number" not in words):
        answer = None
    elif words[0] in ("how", "what"):
        answer = str(len(found))
    else:
        answer = "yes" if found else "no"

    form = rng.choice(FINAL_FORMS)
    final = form.format(answer) if answer else "I am not sure."
    content = f"<think> {thinking} </think>\n\n{final}"
    if rng.random() < 0.1:  # to be rewritten by as_image, not dropped
        content = content.replace("<think> ", "<think> In the scene description: ")
    if rng.random() < broken:
        nonsense = (
            f"<think> {thinking}",
            final,
            f"<think> {thinking} </think>",
            f"<think> {', '.join([thinking] * 9)} </think>\n\n{final}",
            f"<think> The instructions ask for bold. {thinking} </think>\n\n{final}",
            f"<think> The first line says {thinking} </think>\n\n{final}",
        )
        content = rng.choice(nonsense)
    return {
        "reasoning": None,
        "content": content,
        "finish": "stop",
        "tokens_in": 0,
        "tokens_out": len(content) // 4,
        "attempts": 1,
        "seconds": 0.0,
    }
