"""Stage 4, compare: is it the same option?"""

import re

from tasks.grading.clean import clean
from tasks.grading.compare import same_math
from tasks.grading.patterns import ALPHABET, OPTION_LETTERS, either
from tasks.grading.words import NEGATED, names, same_words

OPTION_LEAD = re.compile(
    r"^(?:the )?(?:correct |final |best )?(?:answer|option|choice)(?: is)?\s*:?\s+", re.IGNORECASE
)
OPTION_FRAME = re.compile(
    either(
        r"^(?:option|choice)\s+(?=\(?[a-z]\b)",  # option B
        r"(?<=[A-Za-z)]) is (?:the )?(?:correct|right|best)(?: \w+)?$",  # B is the right choice
    ),
    re.IGNORECASE,
)
LETTER_FIRST = re.compile(
    either(
        r"\(([A-Za-z])\)(.*)",  # (B) red
        r"([A-Z])[).:](.*)",  # B. red
        r"([a-z])[).:](?=\s)(.*)",  # b. red, but not i.e.
        r"([A-Za-z])$",  # B, but not "A cat": a letter before words is English
        r"([a-z])[).:]$",  # b)
    )
)
LETTER_LAST = re.compile(r".+ \(([A-J])\)")  # Early Renaissance (C)
OPTION = r"(?:option|choice) \(?"
LETTER_NAMED = re.compile(rf"(?:(?!\b{OPTION}[A-J]\b).)+ {OPTION}([A-J])\)?")  # 5 cm, which is option C
OTHER_LETTER = re.compile(
    either(
        r"\([A-J]\)(?!\w)",
        r"\b(?:or|and) [A-Z]\b",
        r"(?:^|\s)[A-J][.:]\s",
        r"^[\s,/&]*[A-Z]\b(?:$|[\s,/&]+[A-Z]\b)",  # directly behind the first: "B. D", "B: C, D"
    )
)


def option_letter(text: str) -> str | None:
    """The one option letter of a text: "B", "b)", "(B) red", "B. red", "option B"; None if not just one."""
    text = OPTION_LEAD.sub("", clean(text[:2000]))
    text = OPTION_FRAME.sub("", text)
    match = LETTER_FIRST.match(text) or LETTER_LAST.fullmatch(text)
    if not match and not NEGATED.search(text):
        match = LETTER_NAMED.fullmatch(text)
    if not match:
        return None
    letter, *rest = [group for group in match.groups() if group is not None]
    if rest and OTHER_LETTER.search(rest[0]):
        return None
    return letter.upper()


OPTION_MARK = re.compile(r"(?:^|(?<=\s))(?:\(([A-J])\)|([A-J])\s?([.:)]))\s*")  # (A), A., A: or A)


def read_options(problem: str) -> list[str]:
    """The options of a problem, in order: "A: 35°", "(A) red", "A. true", in one line or several.

    [] if there are none.
    """
    problem = problem[-6000:]
    runs = []  # of marks A, B, C ... in one style; every A starts another one
    for mark in OPTION_MARK.finditer(problem):
        letter = mark[1] or mark[2]
        style = mark[3]
        if letter == "A":
            runs.append([mark])
        elif runs:
            run = runs[-1]
            is_next = letter == OPTION_LETTERS[len(run) : len(run) + 1]
            if is_next and style == run[0][3]:
                run.append(mark)
    runs = [run for run in runs if len(run) > 1]
    if not runs:
        return []
    marks = runs[-1]  # the last run, because the question may have letters too
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    return [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]


PICTURE = r"(?i:the )?(?i:picture|figure|image|diagram|graph|point|piece|shape|path)"
PICTURED = re.compile(rf"{PICTURE} \(?([A-Z])\)?")  # the figure B
LETTER_WITH_TEXT = re.compile(r"(?:.*\b(?:answer|option|choice)(?: is|:)?\s+)?\(?([A-J])[).:]{1,2}\s*(.+)$")


def same_choice(answer: str, solution: str, row: dict | None = None) -> bool:
    """The same option, named by its letter, or by its text or value without the letter."""
    row = row or {}
    options = row.get("options") or read_options(row.get("problem") or "")
    offered = dict(zip(OPTION_LETTERS, options, strict=False))  # {"A": "red", ...}; empty if nothing is known
    letters = list(offered or ALPHABET)
    wanted, given = option_letter(solution), option_letter(answer)
    pictured = PICTURED.fullmatch(clean(answer[:100]))
    if pictured and given is None:
        given = answer = pictured[1]
    named = LETTER_WITH_TEXT.match(clean(answer[:1000]))
    if named and named[1] in offered and same_words(named[2], offered[named[1]]):
        given = named[1]  # "(E) P, Q and R": letters of the option's own text are no hedge
    if wanted is None:  # the reference is the text of an option
        answer = offered.get(given, answer)
        return same_words(answer, solution) or same_math(answer, solution)
    if given in letters:
        return given == wanted
    if wanted not in offered or len(answer) > 500:
        return False
    # an answer that is the value of several options has chosen none, unless they read the same
    text = offered[wanted]
    chosen = chosen_options(answer, options, row)
    return text in chosen and all(same_words(other, text) for other in chosen)


def chosen_options(answer: str, options: list[str], row: dict) -> list[str]:
    """The options that an answer without a letter means: by their text, else by their value.

    In this order, because cos(π/5) is not the option cos(9π/5), although they are equal.
    """
    alike = [option for option in options if same_words(answer, option)]
    if alike:
        return alike
    said = [option for option in options if names(answer, clean(option))]
    if len(said) == 1 and len(options) == len(set(options)):
        return said
    return [option for option in options if same_math(answer, option, row)]
