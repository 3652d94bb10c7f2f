"""Stage 1, find: the answer in a completion."""

import re

from tasks.grading.patterns import NUMBER, WORD, either

# no tag inside: of nested tags the innermost pair is the answer, and the search stays linear on hostile input
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
# what closes or cuts off an answer at the length limit: "</ans"
CUT_TAG = re.compile(r"(?:</?[a-z]{0,6}>?|\\end\{answer\})\s*$")


def extract_answer(completion: str, strict: bool = True) -> str | None:
    """The content of the last <answer>...</answer>, stripped, wherever it stands; None if there is none.

    strict=True (training) accepts nothing else, so an unclosed tag is no answer. strict=False (evaluation,
    where models never saw the tags) falls back, in this order, to an unclosed last tag, the last
    \\boxed{...}, and a conclusion in plain words at the end of the text ("the answer is 5", "Answer: B",
    "there are 5 cubes", a final bare number).
    """
    tagged = ANSWER.findall(completion)
    if tagged:
        return tagged[-1].strip()
    if strict:
        return None
    if "<answer>" in completion:
        completion, _, unclosed = completion.rpartition("<answer>")
        unclosed = CUT_TAG.sub("", unclosed[-4000:]).strip()
        if unclosed:
            return unclosed
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    return conclusion(completion)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, or None."""
    starts = [match.end() for match in re.finditer(r"\\boxed\s*\{", text)]
    for start in reversed(starts[-8:]):  # a bound: every unbalanced start costs a walk to the end of the text
        depth = 1
        for i in range(start, len(text)):
            if text[i] == "{":
                depth += 1
            elif text[i] == "}":
                depth -= 1
                if depth == 0:
                    return text[start:i].strip()
    return None


MARKUP = re.compile(r"</?(?:think|answer)>|<[a-z/]{0,6}\s*$|\*\*")
STATED_HERE = (  # "the answer is 5", "Option: B"
    r"\b(?:answer|option|choice)\b[^.\n:=]{0,40}?(?:\bis\b|:|=)"
    r"(?: therefore| thus| then)?[ \t:]*([^\s:][^\n]*)"
)
STATED_BELOW = r"\banswer(?: is)?\s*:?\s*\n\s*(?:\\\[\s*)?([^\n]+)"  # on the next line
STATED_IN_CHINESE = r"答案[是为]?[:：]?\s*([^\n]+)"
STATED = re.compile(either(STATED_HERE, STATED_IN_CHINESE, STATED_BELOW), re.IGNORECASE)
THERE_ARE = re.compile(
    rf"\bthere (?:are|is)(?: only| exactly| a total of)? ({NUMBER}|no|{WORD})\b", re.IGNORECASE
)
CONCLUDES = re.compile(r"(?:so|therefore|thus|hence|in conclusion|finally)\b", re.IGNORECASE)
FINAL_NUMBER = re.compile(rf"(?<![\w.,/^{{-])({NUMBER}|{WORD})\s*°?[.!]?$", re.IGNORECASE)


def conclusion(text: str) -> str | None:
    """An answer stated in words in the last 400 characters, or None; for evaluation only."""
    tail = MARKUP.sub(" ", text[-400:]).strip()
    lines = [line.strip() for line in tail.split("\n") if line.strip()]
    if never_ends(tail, lines):
        return None
    stated = STATED.findall(tail)
    if stated:
        said = "".join(stated[-1])  # one group for each wording; the others are empty
        return said.strip().rstrip(".").strip()
    last_line = lines[-1] if lines else ""
    sentence = re.split(r"\n|(?<=[.!?])\s", last_line)[-1]
    there = THERE_ARE.search(sentence)
    if there:
        return "0" if there[1].lower() == "no" else there[1]
    if CONCLUDES.match(sentence):
        said = last_value(sentence)
        if said:
            return said
    bare = FINAL_NUMBER.search(sentence)
    return bare[1] if bare else None


LOOP = re.compile(r"(.{1,60}?)\1{3,}.{0,60}$", re.DOTALL)  # the same 1 to 60 characters four times and more
LIST_ITEM = re.compile(r"\W{0,2}[A-Za-z0-9]{1,2}[.):]\s")  # "B. ", "(3) "


def never_ends(tail: str, lines: list[str]) -> bool:
    """Is it a loop or a list of options without end? What such a text ends with was not concluded."""
    if LOOP.search(tail):
        return True
    return len(lines) > 2 and all(LIST_ITEM.match(line) for line in lines[-2:])


SAYS = r"\b(?:is|are|equals|equal to|be)\b|[=:]"
SAID = re.compile(rf"(?:{SAYS})\s*((?:(?!{SAYS}).)+)$")  # what stands behind the last of these words
LEAD_WORDS = either(
    r"approximately|about|around|roughly|exactly|only|just|\\approx",
    r"therefore:?|thus:?|then:?|likely:?",
    r"(?:located )?at (?=the |\(|\\)",  # at (2, 3)
    # the point (2, 3), the function f
    r"(?:the )?(?:points?|coordinates?|interval|equation|line|function|value)(?= [^a-z]| [xyf]\b)",
)
LEAD = re.compile(rf"^(?:{LEAD_WORDS}\s*)+", re.IGNORECASE)


def last_value(sentence: str) -> str | None:
    """What a sentence says something is: "3.5" of "The length of NC is 3.5."; None if it does not say so."""
    said = SAID.search(sentence)
    if not said:
        return None
    value = LEAD.sub("", said[1].strip()).rstrip(".").strip()
    return value or None
