"""Stage 4, compare: is it the same option?

In three steps: which options there are; which of them the reference and the answer mean, a set of letters
each; whether the two sets are the same.
"""

import functools
import re

from tasks.grading.clean import clean
from tasks.grading.compare import same_math
from tasks.grading.letters import (
    BRACKETS,
    mentions_text,
    picture,
    read_letter_with_text,
    read_letters,
    read_sentence,
    read_several,
    without_frame,
)
from tasks.grading.patterns import ALPHABET, FUNCTIONS, NUMBER, OPTION_LETTERS
from tasks.grading.quantities import FACTOR, HEDGE, number
from tasks.grading.stages import by, note
from tasks.grading.words import QUOTES, names, only_words, said, same_words, thing


def same_choice(answer: str, solution: str, row: dict | None = None) -> bool:
    """The same option, or the same several, named by letters, texts or values: "B", "B. red", "red".

    An answer means no option if it is unclear: "B or C", "red because blue", "B. red" where B is blue.
    """
    options = options_of(row or {})
    wanted = meant(solution, options, row)
    if not wanted and re.fullmatch("[A-J]", clean(solution)):
        options = {}  # A, B and D in the problem: they are not all of them
        wanted = meant(solution, options)
    if not options and re.fullmatch("[A-J]{2,10}", solution) and solution != "".join(sorted(solution)):
        wanted = set()  # BAD, an angle or a word
    options = without_twins(options, wanted)
    given = meant(answer, options, row)
    note("means", " ".join(sorted(given)) or "no option", " ".join(sorted(wanted)) or "no option")
    if wanted:
        return by("the same options", given == wanted)
    if len(given) == 1:  # the reference is a text that no option has
        answer = options.get(*given, answer)
    return by("the same text or value", same_words(answer, solution) or same_math(answer, solution))


def option_letter(text: str) -> str | None:
    """The one option letter of a text: "B", "b)", "(B) red", "B. red", "option B"; None if not just one."""
    letters = meant(text, {})
    return letters.pop() if len(letters) == 1 else None


# -----------------------------------------------------------------------------
# which options there are
# -----------------------------------------------------------------------------


def options_of(row: dict) -> dict[str, str]:
    """{"A": "red", "B": "blue"}: the row's options, or else those in its problem; empty if none are known."""
    given = row.get("options")
    return labelled(tuple(map(str, given))) if given else offered(row.get("problem") or "")


@functools.lru_cache(maxsize=1024)  # in training a problem has many answers
def offered(problem: str) -> dict[str, str]:
    """The options that stand in a problem, with their letters."""
    return labelled(tuple(read_options(problem)))


@functools.lru_cache(maxsize=1024)
def labelled(options: tuple[str, ...]) -> dict[str, str]:
    """The options, cleaned, with their letters."""
    return {letter: clean(text) for letter, text in zip(ALPHABET, options, strict=False)}


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


def without_twins(options: dict[str, str], wanted: set[str]) -> dict[str, str]:
    """The options without those that read like a right one, so that its text means one option."""
    texts = [options.get(letter) for letter in wanted]
    return {letter: text for letter, text in options.items() if letter in wanted or text not in texts}


# -----------------------------------------------------------------------------
# which of them a text means
# -----------------------------------------------------------------------------

LOWER = list(ALPHABET.lower())


def meant(text: str, options: dict[str, str], row: dict | None = None) -> set[str]:
    """The letters of the options that an answer or a reference means; empty if none or unclear.

    A bare capital is a letter, whatever the options are called. Any other text is first compared with those
    of the options: "(b)" may be the text of E, and "C or D" the text of an option of its own.
    """
    text = text[:2000]
    plain = clean(text).strip(QUOTES)
    labels = set(options or ALPHABET)
    letters = literally(plain, options, labels)
    if letters:
        return letters
    alike = {letter for letter, option in options.items() if same_words(plain, option)}
    if alike:
        return alike if len(alike) == 1 else set()
    unframed = without_frame(plain)
    letters = literally(unframed, options, labels) if unframed != "a" else set()  # "It is a choice"
    if letters:
        return letters
    lines = clean(re.sub(r"\s*\n\s*", "; ", text.strip()))
    letters = read_letters(lines, labels)
    if len(letters) == 1:
        return letters
    lettered = read_letter_with_text(lines, options)
    letters = lettered or letters or read_several(lines, options) or read_sentence(lines, options)
    if letters or lettered is None or not options or len(text) > 500:  # None: "B. red" where B is blue
        return letters
    return read_text(text, options, row)


def literally(text: str, options: dict[str, str], labels: set[str]) -> set[str]:
    """{"B"} for "B", "(B)" and "b", but {"E"} for "(b)" and "b" if E is called (b)."""
    letter = text.strip(BRACKETS)
    if text in labels:
        return {text}
    for label, option in options.items():
        if text == option != "" or (letter == option.strip(BRACKETS) != "" and letter in LOWER):
            return {label}
    return {letter.upper()} if letter.upper() in labels else set()


# -----------------------------------------------------------------------------
# texts and values without a letter
# -----------------------------------------------------------------------------


def read_text(text: str, options: dict[str, str], row: dict | None) -> set[str]:
    """The one option that a text says, else the one whose value it is, else empty.

    In this order, because cos(π/5) is not the option cos(9π/5), although they are equal. "Red is blue" says
    nothing where both are options.
    """
    plain = without_frame(clean(text)).strip("()[]")
    said_words = [*said(text), thing(plain)]
    pictures = {picture(plain, bare=True), *map(picture, said(text))} - {""}
    rules = (
        lambda option: picture(option) in pictures,
        lambda option: thing(option) in said_words or names(text, option),
        lambda option: not only_words(option) and same_math(text, option, row),
        lambda option: is_amount(plain, option, options),
    )
    for rule in rules:
        chosen = [letter for letter, option in options.items() if option and rule(option)]
        if chosen:
            break
    if len(chosen) == 1 and not says_another(clean(text), chosen[0], options):
        return set(chosen)
    return set()


def says_another(text: str, letter: str, options: dict[str, str]) -> bool:
    """Does a text say another option too, as "Red is blue" and "12 is 13" do, but not "12 + 1 = 13"?"""
    others = {label: option for label, option in options.items() if label != letter}
    if any(
        same_words(side, other) for side in re.split(r"\bis\b|\bare\b|=", text) for other in others.values()
    ):
        return True
    if not only_words(options[letter]):  # a calculation of the value may hold other values
        others = {label: option for label, option in others.items() if only_words(option)}
    return mentions_text(text, letter, others | {letter: options[letter]})


# a number with its unit, in words of any kind: "250/100,000 person years", "12 cm"
AMOUNT = re.compile(rf"({NUMBER})(?: ?/ ?[\d,]{{1,12}})? ?([A-Za-z]{{2}}[A-Za-z /]*)")


def is_amount(text: str, option: str, options: dict[str, str]) -> bool:
    """Is the text the number of the option without its unit, "250" of "250/100,000 person years"?

    Not if the number stands in another option too, and not 3 of "3 million", "3 or 4" and "3 sin x".
    """
    amount = AMOUNT.fullmatch(option)
    value = number(text)
    if not amount or value is None or number(amount[1]) != value:
        return False
    unit = amount[2].replace("/", " ")
    if HEDGE.search(unit) or FACTOR.search(unit) or set(unit.split()) & set(FUNCTIONS):
        return False
    return sum(value in map(number, re.findall(NUMBER, other)) for other in options.values()) == 1
