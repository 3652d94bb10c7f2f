"""Traces: what does a teacher's answer conclude, is that right, and may its thinking be imitated? The rules of distill.py's filter.
And a teacher made of rules, for demos and tests.

A trace is kept if and only if its conclusion is the known answer (by grading.py, which also pays the policy) and a careful reader
would let it pass: begun and ended, at one with itself, no loop, no talk of instructions, and of an image rather than of a text.

>>> concluded("There are 7 objects, and **4** of them are cubes.\n\nFinal Count: 4", "4")
['4']
>>> as_image("The scene description lists a cube.")
'The image shows a cube.'
"""

import collections
import random
import re

from tasks import scenes
from tasks.grading import ANSWER, NUMBER, VERIFIERS, WORDS, last_boxed, last_value

# the label, at most 40 characters, "is", "should be" or a sign; "in total: 3 here, 2 there" is no label
LABEL = re.compile(
    r"(?:\b(?:answer|count|(?<!in )total|number of)\b[^.\n:=]{0,40}?(?:\bis\b|\bshould be\b|\bare\b|[:=])[ \t:]*"
    r"|^\W*final answer\W*$)\s*(\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
FIGURE = re.compile(
    rf"(?<![\w.,-])(?:{NUMBER}(?!\w)|(?:{'|'.join(WORDS)}|none|no(?= [a-z]))\b)", re.IGNORECASE
)
HEDGED = re.compile(
    r"\b(?:or|between|at (?:least|most)|about|approximately|around|maybe|perhaps|(?:more|less|fewer) than|not"
    r"|cannot)\b",
    re.IGNORECASE,
)


def split_thinking(reasoning: str | None, content: str) -> tuple[str, str] | None:
    """(thinking, what follows it); None unless the thinking has a beginning and an end. Several blocks become one."""
    blocks = [b.strip() for b in re.findall(r"<think>(.*?)</think>", content, re.DOTALL)]
    rest = re.sub(r"<think>.*?</think>", "", content, flags=re.DOTALL)
    if (
        not blocks and content.count("</think>") == 1 and "<think>" not in content
    ):  # some chat templates open the tag in the prompt
        thinking, _, rest = content.partition("</think>")
        blocks = [thinking.strip()]
    if "<think>" in rest or "</think>" in rest or not (blocks or reasoning):
        return None
    return "\n".join(filter(None, blocks)) or (reasoning or "").strip(), rest.strip()


def unmarked(text: str) -> str:
    """Without bold and italics; the stars of 2*3*4 stay."""
    return re.sub(
        r"(?<![\w*_])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?!\w)", r"\2", text.replace("**", "").replace("__", "")
    )


def concluded(text: str, answer: str) -> list[str]:
    """What a text comes to: the explicit conclusions (tag, box, label), which should agree, or else what its last lines imply.

    `answer` only tells what kind of thing to look for: a number, yes or no, or a word. [] if the text does not decide.
    """
    found = ANSWER.findall(text)
    found += [] if last_boxed(text) is None else [last_boxed(text)]
    labels = [
        m for m in LABEL.findall(re.sub(r"</?answer>", "", unmarked(text))) if not m.startswith("\\boxed")
    ]
    found += labels[-1:]
    if found:
        return found
    for line in [line for line in text.split("\n") if line.strip()][:-4:-1]:
        # "Metal: 4, rubber: 3. Hence 7." concludes in its last sentence
        line = re.split(
            r"(?<=[.!?;])\s+(?=(?:so|therefore|thus|hence|in total|altogether|in all)\b)",
            line,
            flags=re.IGNORECASE,
        )[-1]
        plain = unmarked(line)
        if answer.lower() in ("yes", "no"):
            said = re.search(
                r"^\W*(?:(?:so|therefore|thus|hence)\W+)?(yes|no)\b|\b(yes|no)\W*$", plain, re.IGNORECASE
            )
            said = said and (said[1] or said[2])
        elif answer.isdigit():
            lead = re.split(r"[:;(]\s?|, (?:namely|including)", plain.rpartition("=")[2])[
                0
            ]  # what follows is a list of parts
            lead = lead if FIGURE.search(lead) else plain
            bold = [b for b in re.findall(r"\*\*([^*]+)\*\*", line) if FIGURE.fullmatch(b.strip(" ."))]
            figures = FIGURE.findall(lead)
            if HEDGED.search(lead) and figures:
                return []
            said = figures[0] if len(figures) == 1 else bold[0] if len(bold) == 1 else None
            said = "0" if said and said.lower() in ("no", "none") else said
            if said is None and figures:
                return []  # several numbers, and no sign which of them is meant
        else:
            bold = re.findall(r"\*\*([^*]+)\*\*", line)
            said = (
                bold[0]
                if len(bold) == 1
                else last_value(plain) or (plain if len(plain.split()) < 4 else None)
            )
        if said:
            return [said]
    return []


def is_right(said: str, item: dict) -> bool:
    """By the verifier of the task; what follows a right answer ("3, namely ...", "3 (two cubes and a ball)") may explain it."""
    verify = VERIFIERS[item["task"]]
    said = re.sub(r"^[(\[]([^()\[\]]+)[)\]]\.?$", r"\1", said.strip())
    head, _, rest = re.sub(
        r"( \(|[,;] |\. |: |\b(?:because|since|namely)\b)", "\0\\1", said, count=1
    ).partition("\0")
    candidates = [said, re.sub(r"^(?:an?|the|made (?:out )?of) ", "", said, flags=re.IGNORECASE)]
    if item["task"] in ("count", "text") and not re.match(
        r"\W*(?:or|maybe|perhaps|possibly|and|no)\b", rest, re.IGNORECASE
    ):
        candidates.append(head)
    return any(
        verify(c, item["answer"], {"problem": item["question"], "options": item.get("options")})
        for c in candidates
    )


# "the scene description lists a cube" -> "the image shows a cube"
REWRITES = [
    (re.compile(pattern, re.IGNORECASE), new)
    for pattern, new in (
        (
            r"\b(fit|fits|fitting|match|matches|matching) (?:the|this|that) description\b",
            r"\1 the question",
        ),  # of an object
        (
            r"\b(?:the|this|that|your) (?:(?:given|provided|above|textual|original|full|whole|entire) )*(?:scene(?:['’]s)? )?description\b"
            r"(?: of the (?:scene|image)| provided| given)*",
            "the image",
        ),
        (
            r"\b(?:the|this|that) (?:(?:described|given|provided) scene|scene (?:described|given|provided))\b",
            "the image",
        ),
        (r"\ban? (?:(?:given|provided) )?scene description\b", "an image"),
        (r"\b(?:scene description|described scene)s?\b", "image"),
        (
            r"\bthe image (?:lists|mentions|says|states|specifies|describes|tells (?:me|us)|includes|contains)\b",
            "the image shows",
        ),
        (
            r"\bthe image (does(?:n't| not)) (?:list|mention|say|state|specify|describe|include|contain)\b",
            r"the image \1 show",
        ),
        (r"\b(?:described|listed|mentioned|stated|specified) in the image\b", "shown in the image"),
        (r"\b(is|are) described as\b", r"\1"),
        (r"\b(objects?|items?|things?|ones?) (?:described|listed|mentioned)\b", r"\1 shown"),
    )
]
ONLY_TEXT = re.compile(
    r"\bdescri(?:ption|ptions|bed)\b|\b(?:first|second|third|fourth|fifth|next|last|each|every|this|that) (?:line|entry|bullet)\b"
    r"|\b(?:line|entry|bullet) (?:\d|point)|\blines\b|\bto a line\b|\bentries\b|\bin words\b|\bwritten\b|\b(?:a|as|the|this|of|in) text\b"
    r"|\btextual\b|\b(?:can't|cannot|can not) (?:actually |really )?see (?:the|an|any) (?:image|picture)"
    r"|\bno (?:actual |real )?(?:image|picture)\b|\b(?:image|picture) (?:is not|isn't|was not|wasn't) (?:shown|given|provided|available)\b",
    re.IGNORECASE,
)
LEAK = re.compile(
    r"\binstruct(?:ed|ions?)\b|\bguidelines?\b|\bsystem (?:prompt|message)\b|\bthe prompt\b|\bas an? (?:ai|language model|assistant)\b"
    r"|\bdeepseek\b|\bopenai\b|\b(?:final|last) line\b|\bin bold\b|\bbold(?:ed|ing)\b|\bbold (?:it|the|text|type|font|letters|label)\b"
    # to be asked to count is the question, to be asked to end or to speak in a way is an instruction
    r"|\b(?:i was|i am|i'm|i have been|we were) (?:told|asked|required|supposed) to (?!count|find|determine|figure|answer|tell|identify)"
    r"|\b(?:i|we) (?:must|should|have to|need to|mustn't) (?:not )?(?:speak|mention|write|end|phrase|format|refer|present|put|respond)\b"
    r"|\bformat(?:ted|ting)? (?:the|my|of|it|is|require)|\bas requested\b|</?(?:think|answer|problem)>"
    r"|\b(?:known|expected|given|provided|reference|original|ground.truth) (?:answer|solution|truth)\b|\bground.truth\b",
    re.IGNORECASE,
)


def as_image(thinking: str) -> str:
    """The thinking of someone who was told a scene, as of someone who sees it, as far as words can be exchanged."""
    for pattern, new in REWRITES:
        # expanded first: \1; then the first letter as it was
        thinking = pattern.sub(
            lambda m, new=new: (lambda t: t[0].upper() + t[1:] if m[0][0].isupper() else t)(m.expand(new)),
            thinking,
        )
    return thinking


def loops(parts: list[str], copies: int, longest: int) -> bool:
    """Does a block of at most `longest` parts follow itself so often that it stands there `copies` times on end?"""
    for period in range(1, longest + 1):
        run = 0
        for a, b in zip(parts, parts[period:], strict=False):
            run = run + 1 if a == b else 0
            if run >= period * (copies - 1):
                return True
    return False


def repeats(text: str) -> bool:
    """Sentences four times on end, or a few words six times; going through equal objects one by one is no repetition."""
    sentences = [s.strip().lower() for s in re.split(r"[.!?\n]+", text) if s.strip()]
    return loops(sentences, 4, 20) or loops(text.lower().split(), 6, 12)


def judge(
    item: dict, answer: dict, route: str, limit: int, count_tokens
) -> tuple[dict | None, str, list[str]]:
    """(row, "", conclusions) of an answer that is kept, else (None, reason, conclusions). A careful reader's rules, in order."""
    if answer["finish"] == "length":
        return None, "cut off", []
    parts = split_thinking(answer.get("reasoning"), answer["content"])
    if parts is None:
        return None, "no thinking tags", []
    thinking, final = parts
    if not thinking:
        return None, "empty thinking", []
    question = item["question"]
    if route == "rewrite":
        posed = re.search(r"<problem>(.*?)</problem>", answer["content"], re.DOTALL)
        if not posed or not posed[1].strip():
            return None, "no question", []
        question, final = posed[1].strip(), re.sub(r"<problem>.*?</problem>", "", final, flags=re.DOTALL)
        shown = rf"(?<!\w){re.escape(item['answer'])}(?!\w)"
        if re.search(shown, question) and not re.search(shown, item["question"]):
            return None, "the question gives the answer away", []
    said = concluded(final, item["answer"])
    if not said:
        return None, "no conclusion", []
    right = [is_right(s, item) for s in said]
    if not all(right):
        return None, "contradicts itself" if any(right) else "wrong", said
    # the thinking is what will be imitated: it must not come to something else in its last sentence
    last = (re.split(r"(?<=[.!?])\s+|\n", thinking) or [""])[-1]
    own = (
        concluded(last, item["answer"])
        if re.search(r"\b(?:so|therefore|thus|hence|total|answer|in all)\b", last, re.IGNORECASE)
        else []
    )
    if (
        own
        and (item["answer"].isdigit() or own[0].strip(" .*").lower() in ("yes", "no"))
        and not any(is_right(s, item) for s in own)
    ):
        return None, "contradicts itself", own
    thinking = as_image(thinking)
    told = route == "scene"  # a teacher that saw the image may well speak of lines and of text in it
    for reason, found in (
        ("instructions leak", LEAK.search(thinking)),
        ("speaks of a text", told and ONLY_TEXT.search(thinking)),
        ("repeats", repeats(thinking) or repeats(final)),
        ("too long", count_tokens(thinking) > limit),
    ):
        if found:
            return None, reason, said
    return (
        {
            "split": item["split"],
            "image": item["image"],
            "problem": question,
            "thinking": thinking,
            "solution": item["answer"],
            "task": item["task"],
            "original_question": item["question"],
        },
        "",
        said,
    )


def best_of(kept: list[dict], per_pair: int, count_tokens) -> tuple[list[dict], list[tuple[dict, str]]]:
    """(rows that stay, [(row, reason)] that go): equal traces of a pair once, and if per_pair > 0 its shortest ones only."""
    stay, go, groups = [], [], collections.defaultdict(list)
    for row in kept:
        groups[row["key"]].append(row)
    for rows in groups.values():
        rows.sort(key=lambda r: (count_tokens(r["thinking"]), r["sample"]))
        seen = set()
        for row in rows:
            reason = (
                "same as another"
                if row["thinking"] in seen
                else "not the shortest"
                if per_pair and len(seen) >= per_pair
                else ""
            )
            seen.add(row["thinking"])
            if reason:
                go.append((row, reason))
            else:
                stay.append(row)
    return stay, go


# -----------------------------------------------------------------------------
# a teacher without a model
# -----------------------------------------------------------------------------

OBJECT = re.compile(
    r"^A (\w+) (\w+) (\w+) ([\w ]+?) rotated .* pixel coordinates \(([\d.]+), ([\d.]+), ", re.MULTILINE
)
VALUES = {
    "size": scenes.SIZES,
    "color": {**scenes.COLORS, **scenes.OOD_COLORS},
    "material": scenes.MATERIALS,
    "shape": scenes.MODELS,
}
MEANING = {word: (a, v) for a in VALUES for v in VALUES[a] for word in scenes.SYNONYMS.get(v, (v,))}


def script_answer(item: dict, rng: random.Random, miss: float, broken: float) -> dict:
    """A teacher made of rules, for demos and tests: reads the description, overlooks small objects, sometimes writes nonsense.

    It knows the description and the question, not the answer; it counts and says whether there is one, other questions it gives up.
    """
    seen = [
        dict(zip((*scenes.ATTRIBUTES, "x", "y"), m, strict=True)) for m in OBJECT.findall(item["description"])
    ]
    seen = [o for o in seen if not (o["size"] == "small" and rng.random() < miss)]
    seen.sort(
        key=lambda o: (float(o["y"]) // 28, float(o["x"]))
    )  # row by row, a row as high as a cell of the grid
    words = re.findall(r"[a-z]+", item["question"].lower())
    spec = dict(
        MEANING[s] for w in words for s in (w, w.removesuffix("s"), w.removesuffix("es")) if s in MEANING
    )
    found = [o for o in seen if all(o[a] == v for a, v in spec.items())]
    thinking = ", ".join(f"{o['color']} {o['shape']}" for o in seen) or "nothing"
    answer = str(len(found)) if words[0] in ("how", "what") else "yes" if found else "no"
    if (
        set(words) & {"left", "right", "front", "behind", "than", "same", "equal"}
        or words[0] == "what"
        and "number" not in words
    ):
        answer = None
    form = rng.choice(
        (
            "**The answer is:** {}",
            "The answer is: **{}**",
            "Answer: {}",
            "\\boxed{{{}}}",
            "<answer> {} </answer>",
        )
    )
    final = form.format(answer) if answer else "I am not sure."
    content = f"<think> {thinking} </think>\n\n{final}"
    if rng.random() < 0.1:
        content = content.replace(
            "<think> ", "<think> In the scene description: "
        )  # to be rewritten, not dropped
    if rng.random() < broken:
        content = rng.choice(
            (
                f"<think> {thinking}",
                final,
                f"<think> {thinking} </think>",
                f"<think> {', '.join([thinking] * 9)} </think>\n\n{final}",
                f"<think> The instructions ask for bold. {thinking} </think>\n\n{final}",
                f"<think> The first line says {thinking} </think>\n\n{final}",
            )
        )
    return {
        "reasoning": None,
        "content": content,
        "finish": "stop",
        "tokens_in": 0,
        "tokens_out": len(content) // 4,
        "attempts": 1,
        "seconds": 0.0,
    }
