"""Stage 4, compare: words."""

import re

from tasks.grading.clean import clean


def same_words(answer: str, option: str) -> bool:
    """Equal as texts but for case, articles and punctuation behind a word."""
    a, o = plain_words(answer), plain_words(option)
    if a == o:
        return a != ""
    return len(o) > 2 and without_markup(a) == without_markup(o) != ""


def plain_words(text: str) -> str:
    text = clean(text[:1000]).casefold()
    return re.sub(r"^(?:the|an?) |[\"'`“”‘’.,;:!?]+(?=\s|$)", "", text).strip()


def without_markup(text: str) -> str:
    """CH3COOH for CH_3COOH, Delta T for \\Delta T, without blanks except those between digits."""
    return re.sub(r"[_{}\\]|(?<!\d) +| +(?!\d)", "", text)


NEGATED = re.compile(
    r"\b(?:not|no|none|nor|or|and|cannot|fails?|never|neither|except|without|rather|instead|but|than|while"
    r"|whereas|closest|either|both|maybe|perhaps|unless|if)\b|n['’]t\b",
    re.IGNORECASE,
)
NEITHER = re.compile(r"(?:.* is )?neither(?: (?:even )?n?or odd| odd n?or even| even n?or odd)?")
VERBS = r"is|are|was|were|be|will|would|belongs? to|point(?:s|ing) to|shows?|depicts?|represents?|indicates?"
ENDS_IN_VERB = re.compile(rf"(?:^|:|\b(?:{VERBS})) ?$")


def names(answer: str, words: str) -> bool:
    """Does a short sentence say `words`, a reference of letters only? "Clara is the tallest" says Clara.

    Of yes, no, true and false the sentence begins with the right one ("No, because ..."). Neither "not" nor
    "or" may be in it.
    """
    answer = clean(answer[:400]).casefold().rstrip(".!")
    words = words.casefold()
    if words == "neither":  # "neither even nor odd"
        return NEITHER.fullmatch(answer) is not None
    if words in ("yes", "no", "true", "false"):
        begins = re.match(rf"{words}\s*(?:[,.;:]|$)", answer)
        hedged = re.search(r"\b(?:but|however|or)\b", answer)
        verdicts = re.findall(r"\b(?:yes|no|true|false)\b", answer)
        return bool(begins) and not hedged and set(verdicts) == {words}
    if not re.fullmatch(r"[a-z][a-z' -]{2,60}", words):
        return False
    if len(answer.split()) > 25 or re.search(r"[\n,;]|[.!?]\s|\bvs\b", answer):
        return False
    found = re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", answer)
    if not found:
        return False
    before, after = answer[: found.start()], answer[found.end() :]
    if NEGATED.search(before + after):
        return False
    before = re.sub(r"(?:(?:most )?likely )?(?:the |an? )?$", "", before)
    return ENDS_IN_VERB.search(before) is not None


def same_text(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal but for case, blanks, quotes, math delimiters and a final full stop; nothing fuzzy."""
    answer = clean(answer).strip("\"'`“”").casefold()
    solution = clean(solution).strip("\"'`“”").casefold()
    return answer == solution != ""
