"""Stage 4, compare: words."""

import re

from tasks.grading.clean import FILLER, clean
from tasks.grading.patterns import FUNCTIONS, WORDS, either
from tasks.grading.stages import by

QUOTES = "\"'`“”‘’「」 "
# "the Severn" and "a cube", but not "A major", "A positive" and "A b"
ARTICLE = re.compile(
    r"^(?:the|an?) (?=[\w(]{2})(?!(?:major|minor|flat|sharp|plus|minus|positive|negative)\b)", re.IGNORECASE
)


def same_words(answer: str, option: str) -> bool:
    """Equal as texts but for case, articles and punctuation behind a word: "The Red." for red."""
    a, o = plain_words(answer), plain_words(option)
    if a == o:
        return a != ""
    return len(o) > 2 and without_markup(a) == without_markup(o) != ""


def plain_words(text: str) -> str:
    """ "dark blue" of "The dark blue.", "`Dark blue`" and "a dark blue!"."""
    text = clean(text[:1000]).replace("’", "'").lstrip(QUOTES)
    text = ARTICLE.sub("", text)  # first, because of "A. cat"
    return re.sub(r"[\"'`“”‘’.,;:!?]+(?=\s|$)", "", text).casefold().strip()


def without_markup(text: str) -> str:
    """CH3COOH for CH_3COOH, Delta T for \\Delta T, without blanks except those between digits."""
    return re.sub(r"[_{}\\]|(?<!\d) +| +(?!\d)", "", text)


NEGATED = re.compile(
    r"\b(?:not|no|none|nor|or|and|cannot|fails?|never|neither|except|without|rather|instead|but|than|while"
    r"|whereas|closest|either|both|maybe|perhaps|unless|if|whether|doubt\w*|wonder\w*|nobody|nothing|wrong"
    r"|false|den(?:y|ies)|hardly|unlikely|unclear|impossible|suppose|pretend)\b|n['’]t\b",
    re.IGNORECASE,
)
NEITHER = re.compile(r"(?:.* is )?neither(?: (?:even )?n?or odd| odd n?or even| even n?or odd)?")
YES_OR_NO = ("yes", "no", "true", "false")
AGREES = {"yes": {"yes", "true"}, "no": {"no", "false"}, "true": {"true"}, "false": {"false"}}
BEHIND_YES = r"\s*(?:[,.;:]|$)|\s(?=(?:it|there|they|he|she|this|that|i) )"  # "Yes, ..." and "Yes it is"
TAKEN_BACK = re.compile(r"\b(?:but|however|or|maybe|perhaps|although|though|unless|partly)\b")


def names(answer: str, words: str) -> bool:
    """Does a short sentence say `words`, a reference of letters only? "The ball is red" says red.

    What it says is read before the reference is looked at, so that no sentence says two words. With yes, no,
    true and false it may also begin ("No, because ..."), if no other of these follows.
    """
    answer, words = clean(answer[:400]).casefold().rstrip(".!"), words.casefold()
    if words == "neither":  # "neither even nor odd"
        return NEITHER.fullmatch(answer) is not None
    if words in YES_OR_NO:
        begins = re.match(rf"{words}(?:{BEHIND_YES})", answer) and not TAKEN_BACK.search(answer)
        mentioned = set(re.findall(rf"\b{either(*YES_OR_NO)}\b", answer))
        if begins:  # "No, that is false" says no
            return mentioned <= AGREES[words]
        return mentioned == {words} and words in said(answer)
    return only_words(words) and thing(words) in said(answer)


def only_words(text: str) -> bool:
    """Is this a word or a few, which have no value? Not "three", "sin x", "ABC" or a list."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,60}", text) or re.fullmatch("[A-Z]{3,4}", text):
        return False
    return not {*WORDS, *FUNCTIONS, "and", "or"} & set(text.casefold().split())


IS = r"(?:is|are|was|were|will|would|must|should)(?: most)?(?: likely| probably)?(?: be)?"
VERBS = either(
    rf"\b{IS} (?:pointing(?: to)?|belonging to)\b",  # the arrow is pointing to
    rf"\b{IS} (?:made (?:out )?of|called|named|known as|painted|colou?red)\b",  # the vase is made of
    rf"\b{IS}\b:?",
    r"\b(?:belongs? to|points? (?:to|at))\b",
    r"\b(?:points|faces)\b(?= \w+$)",  # the arrow points north
    r"\b(?:shows|depicts|represents|indicates|says|reads)\b",
    r"\b(?:occurs|occurred|happened|began|ended)\b(?= in )",  # the peak occurred in 1998
    r"\b(?:looks|seems|appears)(?: to be)?\b",
    r":",  # colour: red
)
# the first verb that is not one of a relative clause: "the ball that is left is red"
VERB = re.compile(rf"(?<!\bthat )(?<!\bwhich )(?<!\bwho ){VERBS}")
SHORT_IS = re.compile(r"\b(it|that|this|there|he|she|answer)['’]s\b")
CHOSEN = re.compile(
    either(
        r"(?:the )?(?:correct|right|best)",  # red is correct
        r"(?:the|my) (?:(?:correct|right|best|final) )?(?:answer|option|choice)",  # red is the answer
    )
)
# what is said of the one who was asked for: "Clara is the tallest", "Bob has the most apples"
SINGLED_OUT = re.compile(
    r"(.{2,60}?) (?:is|are|was|were|has|have|had) (the (?:\w{2,12}est|most|least|only)\b.*)"
)
PRONOUN = re.compile(r"(?:it|this|that|there|here|he|she|they|the answer|answer)$")


def said(sentence: str) -> list[str]:
    """What a sentence says, as plain words: ["red"] for "The ball is red."; [] if nothing, or too much.

    "Red is the answer" says red, "Clara is the tallest" says who it is. No sentence says more than one thing:
    "red or blue" and "is red is blue" say nothing.
    """
    return [thing(text) for text in spoken(sentence)]


# a question, or an answer to one of yes and no
QUESTION = re.compile(r"(?:what|which|who|whose|where|when|why|how|does|do|did|can|could|yes|no)\b(?=.* )")
# "in 1998", "at 5", "in Paris"
PLACE = re.compile(r"^(?:(?:in|at|on)(?: the year)? (?=\d)|in (?=\w))")


def spoken(sentence: str) -> list[str]:
    """What a sentence says, as it is written: ["the red one"] for "It is the red one."."""
    text = SHORT_IS.sub(r"\1 is", clean(sentence[:400]).casefold().rstrip(".!"))
    text = re.sub(r"^(?:so|thus|hence|therefore) ", "", FILLER.sub("", text))
    if len(text.split()) > 25 or re.search(r"[\n,;?]|[.!]\s|\bvs\b", text):
        return []
    parts = [part.strip() for part in VERB.split(text)]
    single = SINGLED_OUT.fullmatch(text)
    if single and len(parts) <= 2 and not NEGATED.search(text) and not PRONOUN.match(single[1]):
        return [single[1]]
    if len(parts) > 2 or QUESTION.match(text) or (len(parts) == 2 and NEGATED.search(parts[0])):
        return []
    if len(parts) == 2 and CHOSEN.fullmatch(parts[1]) and not PRONOUN.match(parts[0]):
        return [parts[0]]
    return [parts[-1]]


# what it is besides, which says no more: "embryonic stage of pregnancy", "odd function", "the red one"
SORT = re.compile(
    r"(?<=\w) (?:ones?|stage|phase|period|style|function|shape|colou?r|cells?|tissue|type|object|congruence)"
    r"(?: of \w+)?$"
)


def thing(text: str) -> str:
    """ "red" of "the red one", "spleen" of "most likely the spleen"."""
    text = re.sub(r"^(?:(?:most )?likely|probably) ", "", text.strip(), flags=re.IGNORECASE)
    return SORT.sub("", place(text))


# "3 cubes are red" says how many: for the task "auto" it would be both 3 and red
A_COUNT = re.compile(
    rf"^one\b|(?<![\w.])(?:\d{{1,3}}|{either(*(word for word in WORDS if word != 'one'))})(?!\w)",
    re.IGNORECASE,
)


def same_text(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal but for case, blanks, an article, quotes, math delimiters, a final full stop; or a sentence.

    "It is the Severn." says Severn. Nothing is fuzzy: "red cubes" is not red cube.
    """
    if plain_text(answer) == plain_text(solution) != "":
        return by("the same text", True)
    wanted = clean(solution)
    if wanted.casefold() in YES_OR_NO:
        return by("a sentence that says yes or no", names(answer, wanted))
    if not (only_words(wanted) or re.fullmatch(r"\d{1,9}", wanted)):
        return by("the same text", False)
    if only_words(wanted) and A_COUNT.search(clean(answer[:400])):
        return by("a sentence that says a number", False)
    return by("a sentence that says the reference", place(wanted) in map(place, spoken(answer)))


def place(text: str) -> str:
    """ "paris" of "in Paris", "1998" of "in 1998"."""
    return PLACE.sub("", plain_words(text))


def plain_text(text: str) -> str:
    """ "severn" of '"The Severn."'."""
    text = clean(clean(text).strip(QUOTES)).strip(QUOTES)
    return ARTICLE.sub("", text).casefold()
