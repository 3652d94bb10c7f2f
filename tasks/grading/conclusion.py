"""Stage 1, find: what a completion without tags concludes in plain words, for evaluation only.

Each rule is a function text -> answer; None: the next rule is asked; "": the text concludes nothing, and no
other rule is asked. A text that is cut off, that doubts or that lists has concluded nothing: what it holds
would be right by chance.
"""

import re

from tasks.grading.patterns import NUMBER, WORD, either

TAIL = 400  # characters: a conclusion stands at the end
MARKUP = re.compile(r"</?(?:think|answer)>|<[a-z/]{0,6}\s*$|<\|\w{1,20}\|>|\*\*|__", re.IGNORECASE)
DELIMITERS = re.compile(r"\\[\[\]()]|\$")


def lines_of(text: str) -> list[str]:
    """The last lines of a text, without tags and bold type; each formula begins and ends in its line."""
    tail = MARKUP.sub(" ", text[-TAIL:])
    tail = re.sub(r"\\\[\s{1,20}", r"\\[ ", tail)
    tail = re.sub(r"\s{1,20}\\\]", r" \\]", tail)
    return [line.strip() for line in tail.split("\n") if re.search(r"\w", line)]


def last_sentence(text: str) -> str:
    """The last sentence without $ and \\[; "AB is:" and the formula in the next line are one."""
    lines = lines_of(text)
    if len(lines) > 1 and lines[-2].endswith(":"):
        lines[-2:] = [" ".join(lines[-2:])]
    last_line = DELIMITERS.sub("", lines[-1]).strip() if lines else ""
    return re.split(r"(?<=[.!?])\s", last_line)[-1]


def last_clause(text: str) -> str:
    """What stands behind the last comma, stop or line end."""
    return re.split(r"[,;.!?:]\s|\n", text)[-1]


LOOP = re.compile(r"(.{1,60}?)\1{3,}.{0,60}$", re.DOTALL)  # the same 1 to 60 characters four times and more


def loops(text: str) -> str | None:
    """A text that goes round in circles concludes nothing."""
    return "" if LOOP.search("\n".join(lines_of(text))) else None


LIST_ITEM = re.compile(r"(?:\W{0,2}[A-Za-z0-9]{1,2}[.):]|[-*•])(?:\s|$)")  # "B. ", "(3) ", "- "
SUMS_UP = re.compile(r"\b(?:total|altogether|answer|final|so|therefore|thus|hence)\b", re.IGNORECASE)


def lists(text: str) -> str | None:
    """Nor does a list, whose last item is not the answer."""
    lines = lines_of(text)
    is_list = len(lines) > 1 and all(LIST_ITEM.match(line) for line in lines[-2:])
    return "" if is_list and not SUMS_UP.search(lines[-1]) else None


# "answer" in the languages in which models answer
ANSWER_NOUN = r"answer(?! (?:choice|option))|antwort|antwoord|respuesta|r[ée]ponse|risposta|resposta|ответ"
MODAL = "(?:must|should|would|will)"
SAYS_ANSWER = either(
    # the answer to the question is
    rf"\b(?:{ANSWER_NOUN})\b[^.\n:：=]{{0,40}}?\b(?:is|{MODAL} be|equals|ist|lautet|es|est|è|é)\b",
    rf"\b(?:{ANSWER_NOUN})\b(?:[^\w\n:：=]{{0,3}}|\s?\([^()\n]{{1,20}}\)\s?)[:：=]",  # Answer (in cm):
    r"\b(?:option|choice)(?: is\b|\s?[:=])",  # the correct option is
    r"\banswer\s*\n",  # ### Answer, and in the next line 5
    r"(?:答案|答え|正解)(?:应该)?[是为為は]?\s*[:：]?",  # 答案：5
    r"(?:정답|답)[은:：]",
)
STATED = re.compile(rf"{SAYS_ANSWER}(?: therefore| thus| then)?[\s:：]*(?=\S)", re.IGNORECASE)
# the end of a first sentence: "5. It", "a red cube. It", but not "B. Heparin"
FULL_STOP = re.compile(r"(?:(?<=[\d)\]}$°%])|(?<=[a-z]{4}))[.!?]\s+(?=[A-Z])|。")
DISPLAY = re.compile(r"\\[\[\]]")
LAST_WORDS = re.compile(r"(?:です|입니다)?[.!。！\s]{0,5}$")
DOUBT = re.compile(
    r"\b(?:if|whether|unless|suppose|assum\w{1,4}|not|never|cannot|maybe|perhaps|might|could)\b|n['’]t\b",
    re.IGNORECASE,
)
NOT_SAID = re.compile(r"(?:not|un(?:known|clear|certain))\b", re.IGNORECASE)


def stated(text: str) -> str | None:
    """5 of "The answer is 5. It ..."; of several such statements the last."""
    tail = "\n".join(lines_of(text))
    places = list(STATED.finditer(tail))
    if not places:
        return None
    lead = places[-1]
    said, line_ends, _ = tail[lead.end() :].partition("\n")
    if DOUBT.search(last_clause(tail[: lead.end()].rstrip(" :\n"))) or NOT_SAID.match(said):
        return ""
    if has_open_bracket(said) or (UNFINISHED.search(said) and not line_ends):
        return ""
    return LAST_WORDS.sub("", FULL_STOP.split(DISPLAY.sub("", said))[0]).strip()


ANSWER_FIRST = re.compile(r"\W*(?:the |my )?(?:final |correct |right )?answer(?: is|\W{0,3}:)", re.IGNORECASE)


def stated_first(text: str) -> str | None:
    """5 of "The answer is 5." in the first line, with an explanation of any length behind it."""
    first_line = text.strip()[:TAIL].partition("\n")[0]
    return stated(first_line) if ANSWER_FIRST.match(first_line) else None


RIGHT_LETTER = re.compile(r"(?<!\w)\(?([A-J])\)? is (?:the )?(?:correct|right|best)\b")


def right_letter(text: str) -> str | None:
    """B of "so (B) is correct."."""
    sentence = last_sentence(text)
    letter = RIGHT_LETTER.search(sentence)
    return letter[1] if letter and not DOUBT.search(sentence) else None


UNFINISHED = re.compile(
    either(
        r"[-+/=^<×÷(\[{,]|\s\*",  # 5 +
        r"\\(?:times|cdot|div|pm|approx|left|d?frac(?:\{[^{}]*\})?|sqrt|text|mathrm)",  # \frac{1}
        r"(?:approximately|about|\\approx|≈)\s*\d{1,9}\.",  # approximately 3.
        # z = 180 - 80
        r"(?:[=:]|\b(?:is|are))\s*[\d.]{1,20}°?(?:\s*(?:[-+*×÷]|\\times|\\cdot)\s*[\d.]{0,20}\d°?){1,9}",
    )
    + r"\s*$",
    re.IGNORECASE,
)
AMOUNT = re.compile(r"\s*\d[\d,.]*(?:[^\\=^_]|$)")  # the $ of "costs $5 a day" opens no formula


def has_open_bracket(text: str) -> bool:
    """Is a bracket, a formula or a piece of code still open at the end?"""
    if text.count("{") > text.count("}") or text.count("```") % 2:
        return True
    if text.rfind(r"\[") > text.rfind(r"\]") or text.rfind(r"\(") > text.rfind(r"\)"):
        return True
    if text.count("(") + text.count("[") > text.count(")") + text.count("]"):
        return True
    return text.count("$") % 2 == 1 and not AMOUNT.match(text.rpartition("$")[2])


def is_cut_off(text: str) -> bool:
    """Does the text end in mid-formula, or before the digits behind a decimal point?"""
    paragraph = MARKUP.sub(" ", text[-4000:]).strip().rpartition("\n\n")[2]
    if has_open_bracket(paragraph) or text.count("```") % 2:
        return True
    return UNFINISHED.search(paragraph) is not None


def breaks_off(text: str) -> str | None:
    """A text that was cut off in mid-formula concludes nothing."""
    return "" if is_cut_off(text) else None


SOME = rf"{NUMBER}|{WORD}"
HEDGED = either(
    r"about|approximately|around|roughly|nearly|almost|not|over|up to",
    r"at (?:least|most)|(?:more|less|fewer) than",
)
I_SEE = r"(?:there (?:are|is|were|was)|I (?:can )?(?:see|count))"
THERE_ARE = re.compile(
    rf"\b{I_SEE}(?: only| exactly| just| a total of)? (?:({HEDGED}) )?({SOME}|none|no)\b(.*)",
    re.IGNORECASE,
)
SUBORDINATE = re.compile(
    r"\b(?:when|since|because|as|although|though|while|which|where|given)\b", re.IGNORECASE
)
NO_COUNT = re.compile(  # behind the number
    either(
        r"^\s*(?:[-+*/×÷^%:–~]|\\times|\\cdot)",  # 3 + 2
        r"^\s*(?:or|to|more|fewer|less|times|out of|hundred|thousand|million|dozen)\b",  # 3 times as many
        rf"^\s*(?:(?:\w+ of|in) )?(?:{SOME})\b",  # 3 rows of 4, 1 in 4, twenty one
        rf"(?:,|\b(?:and|or))\s*(?:{SOME})\b",  # 3 cubes and 2 spheres
        r"\bfor (?:every|each)\b",
        r"\bin (?:a|an|one|every) (?:year|month|week|day|hour|minute|met(?:er|re)|dozen|circle|triangle)\b",
        r"\?$",
    ),
    re.IGNORECASE,
)
NOT_A_THING = re.compile(
    r"\s(?:way|need|doubt|information|answer|solution|option|choice|evidence)", re.IGNORECASE
)
TOTAL = re.compile(rf",.*\b(?:total|altogether|sum)\b.*\b(?:{SOME})\b", re.IGNORECASE)
SO = re.compile(r"[,;]\s*(?:and )?(?:so|thus|therefore|hence|but|giving|making)\b", re.IGNORECASE)


def there_are(text: str) -> str | None:
    """4 of "there are 4 cubes", 10 of "there are 4 + 6 = 10 cubes", in a main clause."""
    clause = SO.split(last_sentence(text))[-1]
    there = THERE_ARE.search(clause)
    if not there:
        return None
    hedge, count, rest = there.groups()
    before = last_clause(clause[: there.start()])
    if SUBORDINATE.search(before) or DOUBT.search(before):
        _, comma, main_clause = rest.partition(",")
        if not comma:
            return ""
        return there_are(main_clause)  # "Since there are 3 cubes, the total is 5"
    if TOTAL.search(rest):
        return None  # "there are 2 rows of 3, for a total of 6"
    if "=" in rest:
        result = re.match(rf"\s*({NUMBER})", rest.rpartition("=")[2])
        return result[1] if result else ""
    if hedge or NO_COUNT.search(rest):
        return ""
    if count.lower() in ("no", "none"):
        return "" if NOT_A_THING.match(rest) else "0"
    return count


NAME = r"(?<![A-Za-z])(?:[a-z]|[A-Z]{1,3})(?![A-Za-z])"  # x, AB
EQUATION = re.compile(rf"((?:{NAME}|[\d\s().+*/^-])+)=[^=]+$")
SOLUTIONS = re.compile(rf"({NAME})\s?=[^=]+(?:\bor {NAME}|(?:\band|,) \1)\s?=[^=]+$")  # x = 3 or x = 4


def equation(text: str) -> str | None:
    """The whole of "x + 3 = 5" at the end: 5 is not the answer, unless x + 3 was asked for."""
    sentence = last_sentence(text)
    several = SOLUTIONS.search(sentence)
    if several:
        return LAST_WORDS.sub("", several[0]).strip()
    found = EQUATION.search(sentence) if sentence.count("=") == 1 else None
    left = re.sub(r"(?<=\d)\s?x\s?(?=\d)", "*", found[1]) if found else ""  # 5 x 3
    if not re.search("[A-Za-z]", left) or not re.search(r"[-+*/^]|\d\s?[A-Za-z]", left):
        return None
    return LAST_WORDS.sub("", found[0]).strip()


CONCLUDES = re.compile(r"(?:so|therefore|thus|hence|in conclusion|finally)\b", re.IGNORECASE)


def concluded(text: str) -> str | None:
    """3.5 of a last sentence "Thus DE = 3.5", 24 of "6 * 4 = 24, so the area is 24"."""
    sentence = last_sentence(text)
    *before, clause = SO.split(sentence)
    if before and not DOUBT.search(clause):
        return last_value(clause)
    return last_value(sentence) if CONCLUDES.match(sentence) else None


FINAL = re.compile(rf"(?<![\w.,/^{{-])({SOME})\s*°?[.!]?$", re.IGNORECASE)
NOT_FINAL = re.compile(  # before the number
    either(
        r"(?:[-+*/^×÷<>≤≥±~]|\\times|\\cdot|\d[\s,:]{0,2}|\d to\b)\s*",  # 180 - 80
        rf"\b(?:{WORD}|or|and|than|least|most|(?<!total )of|by|per|about|not)\s",  # 2 and 3
        r"\b(?:steps?|figures?|pictures?|images?|case|page|equation|number)\s",  # Step 3
    )
    + "$",
    re.IGNORECASE,
)


def final_number(text: str) -> str | None:
    """3 of a text that ends in "... 3", or the option letter that is its last line."""
    lines = lines_of(text)
    last_line = DELIMITERS.sub("", lines[-1]) if lines else ""
    if re.fullmatch(r"\(?[A-J]\)?[.:]?", last_line):
        return last_line
    is_item = LIST_ITEM.match(last_line) and not re.search("[=:]", last_line)
    if "|" in last_line or (is_item and not SUMS_UP.search(last_line)):
        return None  # the row of a table, an item of a list
    sentence = last_sentence(text)
    number = FINAL.search(sentence)
    if not number:
        return None
    before = sentence[: number.start()]
    if NOT_FINAL.search(before) or DOUBT.search(last_clause(before)):
        return None
    return number[1].rstrip(".")


CAME = re.compile(
    rf"(?:so |thus )?(?:(?:approximately|about|exactly|only) )?({SOME})((?: [a-z]{{2,20}}){{1,4}})[.!]?$",
    re.IGNORECASE,
)


def things_at_last(text: str) -> str | None:
    """71 of a last clause "..., approximately 71 visitors came."."""
    sentence = last_sentence(text)
    came = CAME.match(last_clause(sentence))
    if not came or DOUBT.search(sentence) or SUBORDINATE.search(sentence) or NO_COUNT.search(came[2]):
        return None
    before = sentence[: -len(came[0])]
    has_others = re.search(rf"\b(?:{SOME})\b", before, re.IGNORECASE)
    return came[1] if before and not has_others else None


NO_REPLY = re.compile(r"<think>|[\\=?|\n]|\b(?:is|are|was|were|has|have|so|thus|answer)\b", re.IGNORECASE)


WHOLE_REPLY = re.compile(
    either(
        r"(?:it|this|that|he|she|they|the(?: \w+){1,6})(?: (?:is|are|was|were)|['’]s)"
        r"(?: (?:the|an?))?(?: [\w'-]+){1,2}",  # It is a lighthouse, but not "It is hard to say"
        r"(?:yes|no), [\w' ]+",  # Yes, it is
    )
    + r"\.?",
    re.IGNORECASE,
)


def bare_reply(text: str) -> str | None:
    """A whole text of a few words, "a red cube" of a model that answers and says nothing else."""
    reply = text.strip()
    is_short = len(reply) < 200 and len(reply.split()) <= 8
    if is_short and WHOLE_REPLY.fullmatch(reply) and not DOUBT.search(reply):
        return reply
    says_more = NO_REPLY.search(reply) or DOUBT.search(reply)
    return reply if is_short and not says_more else None


# in the order in which they are asked
CONCLUSIONS = (
    ("a loop, which concludes nothing", loops),
    ("'the answer is ...'", stated),
    ("'the answer is ...' in the first line", stated_first),
    ("a list, which concludes nothing", lists),
    ("'B is correct'", right_letter),
    ("cut off in mid-formula, which concludes nothing", breaks_off),
    ("'there are ...'", there_are),
    ("an equation at the end", equation),
    ("a last sentence with 'so' or 'therefore'", concluded),
    ("the number or letter at the end", final_number),
    ("a number of things in the last clause", things_at_last),
    ("a short reply, as it is", bare_reply),
)

# -----------------------------------------------------------------------------
# what a sentence says something is
# -----------------------------------------------------------------------------

SAYS = r"\b(?:is|are|was|were|equals|equal to|be|occurred|happened)\b|[=:]"
SAID = re.compile(rf"(?:{SAYS})\s*((?:(?!{SAYS}).)+)$")  # what stands behind the last of these words
LEAD_WORDS = either(
    r"approximately|about|around|roughly|exactly|only|just|\\approx",
    r"therefore:?|thus:?|then:?|likely:?",
    r"(?:located )?at (?=the |\(|\\)",  # at (2, 3)
    r"in (?:the year )?(?=\d{4}$)",  # in 1998
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
