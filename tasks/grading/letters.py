"""Stage 4, compare: the option letters that a text names: "B", "The answer is (B).", "B. red", "A and C"."""

import re
from difflib import SequenceMatcher

from tasks.grading.compare import same_math
from tasks.grading.patterns import ALPHABET, LATEX_COMMAND, WORDS, either
from tasks.grading.words import NEGATED, QUOTES, VERB, only_words, said, same_words, thing

# Words that may stand around an answer: "Therefore, the correct option is B."
FRAME_WORDS = """
    the so therefore thus hence then it its is are be would must should will have has to in my this that which
    correct right best final answer answers ans option options choice choices letter question one solution
    choose chose pick select think believe go with corresponds corresponding matches and both
    picture figure image diagram graph point piece shape path
    la el lo respuesta respuestas correcta correctas es son opción opciones alternativa letra por tanto elijo
    le réponse bonne correcte est donc lettre choix je choisis die der das richtige richtig korrekt antwort
    ist lautet also daher lösung ich wähle resposta correta correto é opção portanto
    risposta corretta giusta è opzione quindi het antwoord juiste odpowiedź prawidłowa poprawna jest
    ответ ответа правильный верный вариант буква это правильно верно відповідь cevap doğru
    đáp án là đúng câu trả lời chọn jawaban jawabannya yang adalah benar pilihan คำตอบ คำตอบคือ คือ
    الجواب الإجابة الصحيحة هي هو उत्तर सही विकल्प है η απάντηση είναι
"""
FRAME = set(FRAME_WORDS.split())
# ... and around several letters: "Statements B and E are true", "A, B und D sind richtig"
LETTER_WORDS = """
    statement statements answers letters items pictures figures images graphs claims true only
    exactly following und et y και и та ve và dan en og och i richtigen korrekten aussagen antworten
    optionen sind stimmen wahr die les lettres réponses propositions affirmations sont correctes
    bonnes justes vraies las los opciones respuestas letras afirmaciones alternativas son verdaderas
    respostas opções afirmações estão são corretas corretos certas verdadeiras le risposte opzioni
    lettere affermazioni sono corrette giuste vere ответы варианты буквы утверждения правильные
    правильны верны верные zijn antwoorden juist odpowiedzi są poprawne cevaplar doğrudur
"""
LETTER_FRAME = FRAME | set(LETTER_WORDS.split())
AND_LETTER = re.compile(r"(?<=\b[A-J]\b) [eyi] (?=[A-J]\b)")  # Portuguese, Spanish, Polish: "A e C"
NOT_THIS = re.compile(  # "It isn't B, it's A", "not B but A", "A, not B"
    either(
        r"^(?:it |it['’]s |the answer )?(?:is not|isn['’]t|not) (?:option )?(\(?[A-J]\)?)[,;.]? "
        r"(?=(?:but|it['’]s|it is|the answer is|the correct answer is|rather) )(?:but |rather )?",
        r"(?:,| and| but) not (?:option )?(\(?[A-J]\)?)$",
    ),
    re.IGNORECASE,
)
UNSPACED_FRAME = either(
    r"答えは?|解答は?|です|正解(?:は|で(?!す))?|選択肢|が(?=正)",  # 答えはBです
    r"정답은?|답은?|입니다",  # 정답은 B입니다
    r"[答案是为為正确確的选選择擇项項故所以因此应應该該本题題都]",  # 答案是B, 故选B
)
OPENING = re.compile(
    either(
        r"^(?:based on|looking at|according to|judging by|from|given) [^,]{1,80}, ",
        # words that are letters too: "I choose B", "A resposta é B"
        r"^(?:so,? |therefore,? )?i(?= (?:choose|chose|pick|select|think|believe|would|will|go)\b)",
        r"^as?(?= (?:respostas?|alternativas?|opção|opções|letras?|afirmações)\b)",
        r"(?<=\bé )a\b",
        rf"^{UNSPACED_FRAME}{{1,20}}",
    ),
    re.IGNORECASE,
)
SHORT_FORM = re.compile(r"(?<=[A-Za-z])['’](?:s|d|ll|m)\b|\b[CcLl]['’](?=[a-z])")  # It's, I'd, c'est


def without_frame(text: str, at_end: bool = True) -> str:
    """The text without the words of FRAME before it and behind it: "red" of "The answer is red"."""
    text = re.sub(r"(?<=[^\W\d_]{2}):(?=\S)", ": ", SHORT_FORM.sub("", text))  # Answer:B
    words = OPENING.sub("", text).split()
    while words and is_frame(words[0]):
        words.pop(0)
    while at_end and words and is_frame(words[-1]):
        words.pop()
    return " ".join(words).lstrip(" ,:;")


def is_frame(word: str) -> bool:
    """Is this a word that may stand around an answer, perhaps with a comma or a colon?"""
    word = word.strip(",.;:=-—")
    return word == "" or word.casefold() in FRAME


# -----------------------------------------------------------------------------
# letters alone
# -----------------------------------------------------------------------------

AND_UNSPACED = "[和与與及跟と와과]"  # A和C
BETWEEN_LETTERS = re.compile(
    either(
        r"[\s,;&/|.:()\[\]{}<>\"'`“”‘’*_#、!]",
        r"(?<!\S)[-—=](?!\S)",
        r"\+(?=\s?[A-J])",
        AND_UNSPACED,
        UNSPACED_FRAME,
    )
)


def read_letters(text: str, labels: set[str]) -> set[str]:
    """The letters of a text that names nothing else: "(B)", "The answer is B.", "A, C", "A and C", "AC"."""
    if len(text) > 200:
        return set()
    refused = NOT_THIS.search(text)
    if refused:
        rest = read_letters(NOT_THIS.sub("", text, count=1), labels)
        return rest - {(refused[1] or refused[2]).strip("()").upper()}
    text = AND_LETTER.sub(" and ", text)
    letters = ""
    for word in BETWEEN_LETTERS.split(OPENING.sub("", SHORT_FORM.sub("", text))):
        is_run = re.fullmatch("[A-J]{2,10}", word) and len(set(word)) == len(word)  # AC, but not II
        if is_run or re.fullmatch("[A-Za-z]", word):
            letters += word
        elif word and word.casefold() not in LETTER_FRAME:
            return set()
    if letters.islower() and "a" in letters and len(text.split()) > len(letters) and not text.endswith("a"):
        return set()  # "a correct choice"
    if not letters.isupper() and not letters.islower():
        return set()
    return set(letters.upper()) if labels >= set(letters.upper()) else set()


# -----------------------------------------------------------------------------
# letters with a text
# -----------------------------------------------------------------------------

# a letter before a text: "B. red", "(B) red", "[B] red", "B - red", "B, red", "B (red)", "B red"
LETTER_FIRST = re.compile(r"[(\[{<\"'`*]*([A-Za-z])([)\]}>\"'`*.:]*)(\s+[-—=:]\s+|\s*[,;、]\s*|\s*)(.+)")
# ... and behind one: "red (B)", "5 cm, which is option B"
LETTER_LAST = re.compile(r"(?:[(\[]|[,;:] ?|(?:option|choice|letter) \(?)([A-J])[)\]\"'`*]{0,3}$")


def letter_and_text(text: str, labels: set[str], known: bool) -> tuple[str, str]:
    """("B", "red") for "B. red", "The answer is B (red)" and "red (B)"; ("", text) if there is no letter.

    Where the options are not known, a capital before a blank is none: "A cat".
    """
    text = without_frame(text, at_end=False)
    first = LETTER_FIRST.match(text)
    if first:
        letter, mark, between, rest = first.groups()
        is_marked = re.search(r"[)\]}>.:]", mark) is not None
        if letter.islower():
            is_letter = is_marked and (between or text[0] == "(")  # b. red, but not i.e. red
        else:
            is_letter = is_marked or between.strip() or rest[0] in "([" or (between and known)
        if is_letter and letter.upper() in labels:
            return letter.upper(), rest
    last = LETTER_LAST.search(text)
    if last and last[1] in labels:
        return last[1], text[: last.start()]
    return "", text


def read_letter_with_text(text: str, options: dict[str, str]) -> set[str] | None:
    """{"B"} for "B. red" if B is red or the options are unknown; empty if there is no letter at all.

    None if the text is not that of the letter, which makes an answer to nothing.
    """
    letter, rest = letter_and_text(text, set(options or ALPHABET), known=bool(options))
    if letter == "":
        return set()
    if fits(rest, letter, options):
        return {letter}
    return set() if text.startswith("A ") else None  # "A cat" has an article and no letter


# why it is this option: "B. red, because ..."
REASON = re.compile(r"(?:^|[\s,;.(])(?:because|since|due to|as (?:it|the))\b.*", re.IGNORECASE)
TAKES_BACK = re.compile(
    r"\b(?:not|no|none|nor|or|cannot|never|neither|except|rather|instead|but|maybe|perhaps|wrong|incorrect"
    r"|false)\b|n['’]t\b|[≠¬?]",
    re.IGNORECASE,
)
OTHER_LETTER = re.compile(
    either(
        r"\([A-J]\)(?!\w)",
        r"\b(?:or|and) [A-Z]\b",
        r"(?:^|\s)[A-J][.:]\s",
        r"^[\s,;/&]*[A-Z]\b(?:$|[\s,;/&]+[A-Z]\b)",  # directly behind the first: "B. D", "B: C, D"
    )
)


BRACKETS = "()[]{}<>. "
AROUND_TEXT = " ,;-=()[]" + QUOTES


def fits(text: str, letter: str, options: dict[str, str]) -> bool:
    """Is this the text or value of the option, perhaps with a reason? Any text is, if that is unknown."""
    option = options.get(letter, "")
    if not option or picture(option):
        is_other = picture(text.strip("()[]")) not in ("", picture(option))
        return not is_other and not OTHER_LETTER.search(text) and not TAKES_BACK.search(text)
    if same_words(text, option):
        return True
    reason = REASON.search(text)
    reason = reason[0] if reason else ""
    if mentions_letter(reason, letter, options) or mentions_text(reason, letter, options):
        return False
    text = text[: len(text) - len(reason)].strip(AROUND_TEXT)
    for form in (text, without_frame(text).strip(AROUND_TEXT)):
        if not form or same_words(form, option):
            return True
        if begins_with_option(form, letter, options):
            return True
    if only_words(option):  # The ball is blue
        return thing(option) in said(form) and not mentions_text(form, letter, options)
    return is_copy(form, letter, options) or same_math(form, option)


def begins_with_option(text: str, letter: str, options: dict[str, str]) -> bool:
    """Does the text say more than its option, and nothing else: "Baroque style" for Baroque?"""
    start = re.match(rf"(?:the |an? )?{re.escape(options[letter])}(?!\w)", text, re.IGNORECASE)
    if not start or re.search(r"\d", text):
        return False
    rest = text[start.end() :]
    if TAKES_BACK.search(rest) or mentions_letter(rest, letter, options):
        return False
    return not mentions_text(text, letter, options)


def mentions_letter(text: str, letter: str, options: dict[str, str]) -> bool:
    """Does the letter of another option stand in the text?"""
    found = re.findall(r"(?<![\w'’])[A-J](?![\w'’])", text)
    return any(other in options and other != letter for other in found)


def mentions_text(text: str, letter: str, options: dict[str, str]) -> bool:
    """Does the text of another option stand in this one, and not within the option's own?"""
    own, whole = spaced(options[letter]), spaced(text)
    for label, option in options.items():
        other = spaced(option)
        where = whole if own in other else whole.replace(own, " ")
        if label != letter and other.strip() and other in where:
            return True
    return False


def spaced(text: str) -> str:
    """ " dark blue " of "Dark, blue!": whole words of it are found with blanks around them."""
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def is_copy(text: str, letter: str, options: dict[str, str]) -> bool:
    """Is this the long formula of the option with a slip of the pen, and nearer to it than to others?"""
    if len(options[letter]) < 40 or len(text) > 500 or "\\" not in options[letter]:
        return False
    given = signs(text)
    near = {label: SequenceMatcher(None, given, signs(option)).ratio() for label, option in options.items()}
    return near[letter] > max([0.7] + [value for label, value in near.items() if label != letter])


def signs(formula: str) -> str:
    """Its letters and digits without LaTeX commands: "k1k2" of "\\frac{k_1}{k_2}"."""
    return "".join(re.findall(r"[^\W_]+", LATEX_COMMAND.sub("", formula[:500])))


def read_sentence(text: str, options: dict[str, str]) -> set[str]:
    """{"A"} for "The arrow points to (A), the epidermis", which says another thing in front of the letter."""
    before, *behind = VERB.split(text, maxsplit=1)
    names_another = any(option and spaced(option) in spaced(before) for option in options.values())
    if not behind or NEGATED.search(before) or names_another or mentions_letter(before, "", options):
        return set()
    letter, rest = letter_and_text(behind[0].strip(), set(options), known=False)
    if letter == "":
        alone = behind[0].strip(BRACKETS)
        return {alone} & set(options)
    return {letter} if fits(rest, letter, options) else set()


def read_several(text: str, options: dict[str, str]) -> set[str]:
    """{"A", "C"} for "A. red; C. green" and for "red and green"; empty unless every part is one option."""
    if len(text) > 500:
        return set()
    lettered = re.split(r"[\s,;&]+(?:and )?(?=[(\[]?[A-J](?![\w'’]))", text)
    worded = re.split(r"[,;&]|\band\b", text)
    return union(lettered, options, read_lettered) or union(worded, options, read_worded)


def union(parts: list[str], options: dict[str, str], read) -> set[str]:
    """The options that the parts of a list mean, each part one of them; else empty."""
    found = [read(part.strip(" ,;"), options) for part in parts if part.strip(" ,;")]
    if len(found) < 2 or any(len(letters) != 1 for letters in found):
        return set()
    return set().union(*found)


def read_lettered(text: str, options: dict[str, str]) -> set[str]:
    """{"A"} for "(A)" and for "A. red"."""
    return read_letters(text, set(options or ALPHABET)) or read_letter_with_text(text, options) or set()


def read_worded(text: str, options: dict[str, str]) -> set[str]:
    """{"A"} for "the red"."""
    return {letter for letter, option in options.items() if same_words(text, option)}


# -----------------------------------------------------------------------------
# options that are pictures
# -----------------------------------------------------------------------------

ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
PICTURES = r"(?:picture|figure|image|diagram|graph|photo|panel|plot|fig\.?)"
PICTURE = re.compile(rf"<?{PICTURES} ?#?(\d{{1,2}})>?", re.IGNORECASE)
NTH_PICTURE = re.compile(
    rf"(?:(\d{{1,2}})(?:st|nd|rd|th)|({either(*ORDINALS[1:])}))(?: {PICTURES})?", re.IGNORECASE
)


def picture(text: str, bare: bool = False) -> str:
    """ "3" of "<image 3>", "Figure 3" and "the third image", and of a bare "3"; "" of anything else."""
    text = re.sub(r"^the ", "", text[:40], flags=re.IGNORECASE)
    numbered = PICTURE.fullmatch(text)
    if numbered:
        return numbered[1].lstrip("0")
    nth = NTH_PICTURE.fullmatch(text)
    if nth:
        return nth[1] or str(ORDINALS.index(nth[2].lower()))
    if bare and text.lower() in WORDS:
        return str(WORDS.index(text.lower()))
    return text if bare and re.fullmatch(r"\d{1,2}", text) else ""
