"""Options: which one an answer names. All expectations are worked out by hand."""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
from tasks.grading import choices  # noqa: E402


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("B", "B", 1),
        ("b", "B", 1),
        ("B.", "B", 1),
        ("(b)", "B", 1),
        ("(B)", "B", 1),
        ("B) red", "B", 1),
        ("B: red", "B", 1),
        ("B. red", "B", 1),
        ("(B) red", "B", 1),
        ("$B$", "B", 1),
        ("**B**", "B", 1),
        ("option B", "B", 1),
        ("（B）", "B", 1),
        ("The answer is B", "B", 1),
        ("B", "(B)", 1),
        ("(C) blue", "(C)", 1),
        ("\\boxed{B}", "B", 1),
        ("b. red", "B", 1),
        ("C", "B", 0),
        ("B, D", "B", 0),
        ("B, D", "D", 0),
        ("B or D", "B", 0),
        ("(B) or (D)", "B", 0),
        ("B. D", "B", 0),
        ("(A) (B) (C) (D)", "A", 0),
        ("A. red B. blue C. green", "A", 0),
        ("A cat", "A", 0),
        ("a cat", "A", 0),
        ("AB", "A", 0),
        ("", "B", 0),
        ("Because", "B", 0),
        ("red", "B", 0),
        ("none of the options", "B", 0),
        ("i.e. red", "I", 0),
        ("red", "red", 1),  # a reference that is no letter is compared as text
        ("Early Renaissance (C)", "C", 1),
        ("\\text{B}", "B", 1),
        ("\\boxed{\\text{(B)}}", "B", 1),
        ("C or D", "C", 0),
        ("A. Dish rack\nD. Countertop", "D", 0),
        ("A. Dish rack\nD. Countertop", "A", 0),
        ("the figure B", "B", 1),
        ("Picture (B)", "B", 1),
        ("the figure B", "C", 0),
        ("5 cm, which is option C", "C", 1),
        ("5 cm, which is not option C", "C", 0),
        ("B is the right choice", "B", 1),
    ],
)
def test_choice(answer, solution, want):
    assert choices.same_choice(answer, solution) is bool(want)


COLOURS = (
    "Which colour?\n<image1>\n(A) red\n(B) dark blue\n(C) green\n(D) none of them\n"
    "(E) the last one, of B and C"
)
ANGLES = "As shown in the figure, the angle AOB is ()\nChoices:\nA:35°\nB:70°\nC:105°\nD:\\frac{7}{2}√{3}m"
INLINE = "What is the p-value? Choices: A. 0.05\nB. 0.025\nC. $3,100,000\nD. -4 \\leq g(x) \\leq 9"
LETTERS = "Which piece fits?\n(A) D\n(B) P and R\n(C) cos(π/5)\n(D) cos(9π/5)"
LENGTHS = (
    "How long are the pieces?\n(A) $2 \\mathrm{~cm}, 3 \\mathrm{~cm}, 5 \\mathrm{~cm}$\n"
    + "(B) $1 \\mathrm{~cm}, 4 \\mathrm{~cm}, 5 \\mathrm{~cm}$"
)


@pytest.mark.parametrize(
    "problem, answer, solution, want",
    [
        (COLOURS, "red", "A", 1),
        (COLOURS, "Dark blue.", "B", 1),
        (COLOURS, "blue", "B", 0),
        (COLOURS, "red", "B", 0),
        (COLOURS, "(A) red", "A", 1),
        (COLOURS, "None of the options", "D", 0),
        (COLOURS, "none of them", "D", 1),
        (COLOURS, "B", "B", 1),
        (COLOURS, "The ball is red", "A", 1),  # says the option's words ...
        (COLOURS, "The ball is not red", "A", 0),
        (COLOURS, "The ball is red or green", "A", 0),
        (COLOURS, "E. the last one, of B and C", "E", 1),  # letters within the option's own text are no hedge
        (ANGLES, "70", "B", 1),
        (ANGLES, "70^\\circ", "B", 1),
        (ANGLES, "B: 70°", "B", 1),
        (ANGLES, "105°", "B", 0),
        (ANGLES, "\\frac{7\\sqrt{3}}{2}", "D", 1),
        (ANGLES, "None of the given choices", "B", 0),
        (ANGLES, "71", "B", 0),
        (INLINE, "0.025", "B", 1),
        (INLINE, "3,100,000", "C", 1),
        (INLINE, "$3,100,000", "C", 1),
        (INLINE, "[-4, 9]", "D", 1),
        (INLINE, "(-4, 9]", "D", 0),
        (INLINE, "0.05", "B", 0),
        (LETTERS, "P and R", "B", 1),
        (LETTERS, "(B) P and R", "B", 1),
        (LETTERS, "D", "D", 1),
        (LETTERS, "cos(π/5)", "C", 1),
        (LETTERS, "cos(9π/5)", "C", 0),  # equal values, but the option is the form
        (LENGTHS, "2 cm, 5 cm, 3 cm", "A", 1),
        (LENGTHS, "5, 1, 4", "B", 1),
        (LENGTHS, "2, 5, 3", "B", 0),
        (LENGTHS, "2, 3", "A", 0),
        ("True or False?\nChoice:\nA. False\nB. True", "A. False", "False", 1),
        ("True or False?\nChoice:\nA. False\nB. True", "B", "False", 0),
        ("True or False?\nChoice:\nA. False\nB. True", "A", "False", 1),
    ],
)
def test_choice_by_the_options_in_the_problem(problem, answer, solution, want):
    assert choices.same_choice(answer, solution, {"problem": problem}) is bool(want)


def test_options_of_the_row_come_first():
    given = {"problem": "Which? (A) x (B) y", "options": ["cat", "dog"]}
    assert choices.same_choice("dog", "B", given) and not choices.same_choice("y", "B", given)


def test_ten_options_and_a_letter_behind_them():
    """A to J are all there is: the mark of a further letter is text of the last option, not an error."""
    problem = "Which one?\n" + "\n".join(f"({letter}) word {letter}" for letter in "ABCDEFGHIJ")
    assert choices.read_options(problem) == [f"word {letter}" for letter in "ABCDEFGHIJ"]
    assert choices.read_options(problem + "\n(B) again")[9] == "word J\n(B) again"
    assert choices.same_choice("word C", "C", {"problem": problem + "\n(B) again"})


# -----------------------------------------------------------------------------
# a letter, with its text or without
# -----------------------------------------------------------------------------

PLAIN = {"problem": "Which colour?\nA. red\nB. blue\nC. green\nD. yellow"}
SAYS_B = """
B|b|(B)|B.|B)|b)|[B]|{B}|<B>|`B`|"B"|'B'|“B”|(B|B:|**B**|*B*|B..|"B."|(B).|B。|（B）|\\(B\\)|\\mathbf{B}
\\text{(B) blue}
B (blue)|B, blue|B - blue|B – blue|B — blue|B blue|**B** blue|**B** (blue)|**B. blue**|B: blue|B. Blue.
(B) Blue
[B] blue|B = blue|B is blue|b. blue|(b) blue|b) blue|B (the blue one)|B) blue ball|(B) It is blue
B. The ball is blue
Option B|option b|Option (B)|Option B (blue)|option B: blue|letter B|Choice (B)|The letter B|Figure B
B is the answer|B is correct|(B) is correct|b is correct|B is the correct option.|B (blue) is correct
Option B is correct|Option B is the correct answer|B would be correct|B, blue, is the answer
Option B is correct because it is blue
Therefore, B|So B|Hence B|Thus, the answer is B|So the answer is B (blue).|So, it's option B.
The correct option is: B|The correct answer is (B)|The correct option is B. blue
The correct answer is **B**.
The best answer is B|The right choice is B|The answer must be B|The answer to this question is B: blue.
I choose B|I choose B (blue)|I would choose option B|I think it is B|I'd pick B|My answer is B|It is B
It's B
Final answer: B|Final Answer: (B) blue|Answer: B|Answer:B|Answer - B|Answer: **B. blue**|**Answer:** B
Correct answer: B
The final answer is $\\boxed{B}$|The final answer is $\\boxed{\\text{B. blue}}$|\\boxed{B. blue}
Looking at the picture, B|Based on the image, the answer is B
blue (B)|blue, B|blue, option B|blue, which is option B
B. blue, because it is not visible|B, because it looks like it
blue|Blue!|"blue"|(blue)|the blue one|It is blue|It's blue.|The ball is blue.|the ball is a blue one
The answer is blue|Therefore, blue|I choose blue|blue is the answer|Blue is correct|Colour: blue
答案是B|答案：B|答案为B。|选B|选 B|选项 B|故选：B|正确答案是B|应选B|答案是（B）|答案是 B. blue
因此，答案是B|B、blue|B是正确的
Antwort: B|Die richtige Antwort ist B|La respuesta es B|La respuesta correcta es la B
La opción correcta es B) blue
La réponse est B|Réponse : B|C'est B|Ответ: B|Правильный ответ: B|答えは B|答えはBです|正解はBです
정답: B|정답은 B입니다
A resposta é B|A alternativa correta é a B|La risposta è B|Đáp án: B|Jawaban: B|उत्तर: B|الجواب: B
Odpowiedź: B|Cevap: B
"""
SAYS_NOTHING = """
B (red)|B - red|B red|B: red|B. red|(B) red|B (turquoise)|B. turquoise|red (B)|red, which is option B
B because it is red
B. red is blue|B. is red is blue|B. The ball is red
B. because red|B. dark blue|B. blue or red|B. blue is not the answer|B. not blue|B. blue, not red
B or C|(B) or (D)|not B|It is not B|The answer is not B|B is not correct|B is wrong|neither B nor C
B, or D|B, maybe D|B? D
B if red|B=C|B vs C|E|E. blue|A cat|Because|Blue cheese Brie|bad|No idea|none|All of the above|i.e. blue
II
is red is blue is green is yellow|is blue is green|red blue|red/blue|red because blue|both red and blue
blue; or red
Red is the answer, or blue|red or blue|red is blue|blue is red|blue not red|The blue or the red|not blue
Maybe blue
不是B|答案不是B|B不对|no es B|nicht B|La respuesta no es B|Не B|¬B|-B|blue red|It is blue. Or red.
blue? yes
"""
SEVERAL = """
B, red|B/C|B, C|B and C|B C|BC|B. D|B. blue, C|B (blue), C (green)|A B C D|ABCD|red, blue|red and blue|BAD
"""


def split(table: str) -> list[str]:
    return [answer for line in table.strip().split("\n") for answer in line.split("|")]


@pytest.mark.parametrize("answer", split(SAYS_B))
def test_letter_with_its_text_in_any_manner(answer):
    right = [letter for letter in "ABCD" if choices.same_choice(answer, letter, PLAIN)]
    assert right == ["B"]
    right = [text for text in ("red", "blue", "green", "yellow") if choices.same_choice(answer, text, PLAIN)]
    assert right == ["blue"]


@pytest.mark.parametrize("answer", [*split(SAYS_NOTHING), *split(SEVERAL), "blue\nC", "red\nB"])
def test_unclear_answers_earn_nothing(answer):
    for solution in ("A", "B", "C", "D", "red", "blue", "green", "yellow"):
        assert not choices.same_choice(answer, solution, PLAIN), solution


def test_letters_above_or_below_their_text():
    for answer in ("B\nblue", "blue\nB", "B\n\\boxed{B}", "The answer is:\nB", "B\n\n(blue)"):
        assert choices.same_choice(answer, "B", PLAIN) and not choices.same_choice(answer, "A", PLAIN), answer


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("B (blue)", "B", 1),
        ("B, blue", "B", 1),
        ("B - blue", "B", 1),
        ("blue (B)", "B", 1),
        ("Option B (blue)", "B", 1),
        ("B. blue", "B", 1),
        ("B. the one of vitamin D", "B", 1),
        ("B (not sure)", "B", 0),
        ("B (or D)", "B", 0),
        ("B - D", "B", 0),
        ("B blue", "B", 0),  # nobody knows that B is blue
        ("a correct choice", "A", 0),
        ("It is a choice", "A", 0),
        ("I", "I", 1),
        ("I, B", "B", 0),
        ("b)red", "B", 0),
    ],
)
def test_letters_where_the_options_are_unknown(answer, solution, want):
    assert choices.same_choice(answer, solution, {"problem": "Which one?"}) is bool(want)


# -----------------------------------------------------------------------------
# references that are texts
# -----------------------------------------------------------------------------

CLOCK = ["half", "quarter", "o'clock", "quarter to", "quarter past"]
GRAPHS = ["(c)", "(a)", "(e)", "(d)", "(b)"]
PERMUTED = ["A", "C", "B", "D"]
NOTES = ["C", "D", "E", "F"]
VITAMINS = ["vitamin A", "vitamin C", "vitamin D", "vitamin K"]
BLOOD = ["A", "B", "AB", "O"]
KEYS = ["A major", "A minor", "C major", "F major"]
GENES = ["AA", "Aa", "aa", "AB"]
ARROWS = ["left", "right", "up", "a point"]


@pytest.mark.parametrize(
    "options, answer, solution, want",
    [
        (CLOCK, "quarter", "quarter", 1),
        (CLOCK, "B", "quarter", 1),
        (CLOCK, "Quarter.", "quarter", 1),
        (CLOCK, "B. quarter", "quarter", 1),
        (CLOCK, "It is a quarter", "quarter", 1),
        (CLOCK, "quarter past", "quarter", 0),
        (CLOCK, "quarter to", "quarter", 0),
        (CLOCK, "D", "quarter", 0),
        (CLOCK, "B. quarter past", "quarter", 0),
        (CLOCK, "It is quarter past", "quarter", 0),
        (CLOCK, "It is quarter past", "quarter past", 1),
        (CLOCK, "The clock shows quarter to", "quarter to", 1),
        (CLOCK, "quarter past ten", "quarter", 0),
        (CLOCK, "quarter", "quarter past", 0),
        (CLOCK, "half past", "half", 0),
        (CLOCK, "o’clock", "o'clock", 1),
        (GRAPHS, "E", "(b)", 1),
        (GRAPHS, "B", "(b)", 0),
        (GRAPHS, "(b)", "(b)", 1),
        (GRAPHS, "b", "(b)", 1),
        (GRAPHS, "Graph (b)", "(b)", 1),
        (GRAPHS, "(E) (b)", "(b)", 1),
        (GRAPHS, "E. (b)", "(b)", 1),
        (GRAPHS, "B. (b)", "(b)", 0),
        (GRAPHS, "B. (a)", "(b)", 0),
        (GRAPHS, "(B)", "(b)", 0),
        (GRAPHS, "(B)", "(a)", 1),
        (GRAPHS, "(b)", "E", 1),
        (GRAPHS, "(b)", "B", 0),
        (PERMUTED, "B", "B", 1),  # a bare capital is a letter, as the reference of a loaded row is
        (PERMUTED, "(B)", "B", 1),
        (PERMUTED, "C", "B", 0),
        (PERMUTED, "B. C", "B", 1),
        (NOTES, "C", "E", 1),  # no option has the letter E, so that it is the note
        (NOTES, "E", "C", 1),
        (NOTES, "The answer is F", "D", 1),
        (NOTES, "F", "E", 0),
        (VITAMINS, "C", "vitamin D", 1),
        (VITAMINS, "vitamin D", "C", 1),
        (VITAMINS, "vitamin C", "C", 0),
        (VITAMINS, "Vitamin C", "B", 1),
        (VITAMINS, "C. vitamin C", "C", 0),
        (BLOOD, "AB", "C", 1),
        (BLOOD, "C", "AB", 1),
        (BLOOD, "The answer is AB", "AB", 1),
        (BLOOD, "O", "D", 1),
        (BLOOD, "BA", "AB", 0),
        (KEYS, "A major", "A", 1),
        (KEYS, "A minor", "A", 0),
        (KEYS, "major", "A", 0),
        (GENES, "Aa", "B", 1),
        (GENES, "aa", "B", 0),
        (GENES, "AA", "A", 1),
        (GENES, "aA", "A", 0),
        (ARROWS, "right", "B", 1),
        (ARROWS, "It is right", "B", 1),
        (ARROWS, "left", "B", 0),
        (ARROWS, "point", "D", 1),
        (ARROWS, "A point", "D", 1),
        (ARROWS, "A point", "A", 0),
        (["52", "38", "52"], "52", "C", 1),  # options that read the same
        (["52", "38", "52"], "A", "C", 0),
        (["", "", ""], "B", "B", 1),
        (["", "", ""], "A", "B", 0),
        (["<image>", "<image>", "<image>"], "<image>", "B", 1),
        (["<image>", "<image>", "<image>"], "A, B, C", "B", 0),
        (["1/2", "1/3"], "0.5", "A", 1),
        (["1/2", "1/3"], "A", "0.5", 1),
        (["1/2", "1/3"], "B", "0.5", 0),
        (["cat", "dog"], "horse", "horse", 1),  # the reference is no option at all
        (["cat", "dog"], "cat", "horse", 0),
        (["cat", "dog"], "A", "horse", 0),
    ],
)
def test_references_that_are_texts_or_look_like_letters(options, answer, solution, want):
    row = {"problem": "Which?", "options": options}
    assert choices.same_choice(answer, solution, row) is bool(want)
    if answer not in options and solution not in options:  # (A) A is no mark that can be told from its text
        lines = "\n".join(f"({letter}) {text}" for letter, text in zip("ABCDE", options, strict=False))
        assert choices.same_choice(answer, solution, {"problem": f"Which?\n{lines}"}) is bool(want)


# -----------------------------------------------------------------------------
# several right options
# -----------------------------------------------------------------------------

TWO = {"problem": "Choose 2 answers:\nChoices:\nA:red\nB:blue\nC:green\nD:pink"}
SAYS_A_AND_C = """
A,C|A, C|C, A|AC|CA|A C|A and C|A & C|A/C|A;C|A|C|(A), (C)|(A)(C)|[A, C]|A+C|A、C|A, C.|答案是AC|**A, C**
\\text{A, C}
A and C are correct|The answers are A and C|Both A and C|A. red, C. green|A (red) and C (green)
A: red; C: green|A red, C green
red and green|green, red|the red and the green
"""
NOT_A_AND_C = """
A|C|B|A, B|A, B, C|ABC|ABCD|A or C|A and not C|A, C or D|all but B|A, E, C|A. red, C. pink
A. green, C. red|red|red and pink
red or green|A, red|A cat|ACE|
"""


@pytest.mark.parametrize(
    "solution",
    ["A,C", "C\nA", "A C", "AC", "A and C", "A;C", "(A), (C)", "A. red\nC. green", "red and green"],
)
def test_several_right_options(solution):
    for answer in [
        *split(SAYS_A_AND_C.replace("A|C|", "")),
        "A\nC",
        "- A\n- C",
        "A. red\nC. green",
        "red\ngreen",
    ]:
        assert choices.same_choice(answer, solution, TWO), answer
    for answer in split(NOT_A_AND_C):
        assert not choices.same_choice(answer, solution, TWO), answer


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("A, C", "A\nC", 1),
        ("C and A", "A\nC", 1),
        ("CA", "A,C", 1),
        ("A. Dish rack\nC. Counter", "A,C", 1),
        ("C", "A\nC", 0),
        ("B", "A B", 0),
        ("A, B, C", "A,C", 0),
        ("BAD", "BAD", 1),
        ("ABD", "BAD", 0),  # words and names of angles
        ("A, B, D", "BAD", 0),
        ("A, B, D", "ABD", 1),
        ("A", "CAD", 0),
        ("II", "I", 0),
        ("I and II", "I and II", 1),
        ("I", "I and II", 0),
    ],
)
def test_several_right_letters_of_unknown_options(answer, solution, want):
    assert choices.same_choice(answer, solution, {"problem": "Choose two."}) is bool(want)


# -----------------------------------------------------------------------------
# pictures and amounts
# -----------------------------------------------------------------------------

PICTURES = ["<image 1>", "<image 2>", "<image 3>"]
FIGURES = ["Figure 2", "Figure 1", "Figure 10", "none of them"]
RISKS = ["250/100,000 person years", "90/100,000 person years"]
SIZES = ["12 small cubes", "13 small cubes", "140 small cubes"]
MIXED = ["12 small cubes", "12 large cubes", "14 small cubes"]
ODD = ["3 million people", "3/4 cups", "2 sin x", "5 or 6 cars", "4 dogs and 7 cats", "8 half turns"]


@pytest.mark.parametrize(
    "options, answer, solution, want",
    [
        (PICTURES, "3", "C", 1),
        (PICTURES, "(3)", "C", 1),
        (PICTURES, "three", "C", 1),
        (PICTURES, "image 3", "C", 1),
        (PICTURES, "Image 3.", "C", 1),
        (PICTURES, "<image 3>", "C", 1),
        (PICTURES, "figure 3", "C", 1),
        (PICTURES, "the third image", "C", 1),
        (PICTURES, "third", "C", 1),
        (PICTURES, "the 3rd picture", "C", 1),
        (PICTURES, "The answer is image 3", "C", 1),
        (PICTURES, "C (image 3)", "C", 1),
        (PICTURES, "C. the round one", "C", 1),  # what it shows is not known
        (PICTURES, "C. image 2", "C", 0),
        (PICTURES, "C. image 2", "B", 0),
        (PICTURES, "2", "C", 0),
        (PICTURES, "2 or 3", "C", 0),
        (PICTURES, "image 2 and 3", "C", 0),
        (PICTURES, "13", "C", 0),
        (PICTURES, "0", "C", 0),
        (FIGURES, "2", "A", 1),
        (FIGURES, "the second figure", "A", 1),
        (FIGURES, "the second figure", "B", 0),
        (FIGURES, "1", "B", 1),
        (FIGURES, "10", "C", 1),
        (FIGURES, "1", "C", 0),
        (RISKS, "250", "A", 1),
        (RISKS, "$250$", "A", 1),
        (RISKS, "250", "B", 0),
        (RISKS, "90", "B", 1),
        (RISKS, "25", "A", 0),
        (RISKS, "100,000", "A", 0),
        (SIZES, "12", "A", 1),
        (SIZES, "14", "C", 0),
        (MIXED, "12", "A", 0),
        (MIXED, "12", "B", 0),
        (MIXED, "14", "C", 1),
        (ODD, "3", "A", 0),
        (ODD, "3", "B", 0),
        (ODD, "2", "C", 0),
        (ODD, "5", "D", 0),
        (ODD, "4", "E", 0),
        (ODD, "8", "F", 0),
    ],
)
def test_pictures_by_number_and_amounts_without_unit(options, answer, solution, want):
    assert choices.same_choice(answer, solution, {"problem": "?", "options": options}) is bool(want)


# -----------------------------------------------------------------------------
# what holds of all options
# -----------------------------------------------------------------------------

TEXTS = [
    "red",
    "dark red",
    "blue",
    "12 cm",
    "13 cm",
    "3/4",
    "2√3",
    "none of these",
    "left",
    "the third one",
    "AC",
]
MANNERS = [
    *(
        "{letter}",
        "({letter})",
        "{letter}. {text}",
        "({letter}) {text}",
        "{letter} ({text})",
        "{text} ({letter})",
    ),
    *(
        "{text}",
        "The answer is {letter}",
        "The answer is {text}.",
        "Option {letter}: {text}",
        "{letter}, {text}",
    ),
    *(
        "Therefore, {letter}",
        "{letter} is correct",
        "{letter}. {text}, because I see it",
        "{text}, option {letter}",
    ),
    *(
        "{letter}\n{text}",
        "答案是{letter}",
        "I choose {letter} ({text})",
        "{text} {other}",
        "{letter}. {other}",
    ),
    *("{text} or {other}", "{text}, {other}", "is {text} is {other}", "{text} because {other}", "not {text}"),
    *("{letter}. {text} or {other}", "{text} is {other}", "{other} ({letter})", "{text} not {other}"),
]
WORTHLESS = MANNERS[MANNERS.index("{text} {other}") :]  # of these two options, or of none
DECORATIONS = [
    "{}",
    " {} ",
    "{}.",
    "**{}**",
    "${}$",
    "$ {} $",
    "\\boxed{{{}}}",
    "\\text{{{}}}",
    "\n{}\n",
    '"{}"',
    "`{}`",
]
options_of_a_problem = st.lists(st.sampled_from(TEXTS), min_size=3, max_size=6, unique=True)


def earned(answer: str, options: list[str]) -> list[str]:
    """The options that an answer earns accuracy for, where each of them is the reference in turn."""
    row = {"problem": "?", "options": options}
    return [
        text
        for letter, text in zip("ABCDEFGH", options, strict=False)
        if choices.same_choice(answer, letter, row)
    ]


def written(manner: str, options: list[str], text: str, other: str) -> str:
    return manner.format(letter="ABCDEFGH"[options.index(text)], text=text, other=other)


@settings(max_examples=150, deadline=None)
@given(options_of_a_problem, st.sampled_from(MANNERS), st.data())
def test_no_answer_is_right_for_two_options_and_their_order_does_not_matter(options, manner, data):
    text, other = data.draw(st.permutations(options))[:2]
    right = earned(written(manner, options, text, other), options)
    assert right in ([], [text], [other])
    if manner in WORTHLESS:
        assert right == []
    else:
        assert right == [text]
    permuted = data.draw(st.permutations(options))
    assert earned(written(manner, permuted, text, other), permuted) == right


@settings(max_examples=100, deadline=None)
@given(options_of_a_problem, st.sampled_from(MANNERS[:7]), st.sampled_from(DECORATIONS), st.data())
def test_decoration_changes_no_verdict(options, manner, decoration, data):
    text, other = data.draw(st.permutations(options))[:2]
    answer = written(manner, options, text, other)
    assert earned(decoration.format(answer), options) == earned(answer, options) == [text]


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from("ABCD"), min_size=1), st.sets(st.sampled_from("ABCD"), min_size=1), st.data())
def test_several_letters_are_right_if_they_are_all_and_only_those(given_letters, wanted, data):
    separators = st.sampled_from([",", ", ", " ", " and ", ";", "\n", "", " & ", "/"])
    answer = data.draw(separators).join(data.draw(st.permutations(sorted(given_letters))))
    solution = data.draw(separators).join(sorted(wanted))
    for row in (PLAIN, {"problem": "Which of them?"}):
        assert choices.same_choice(answer, solution, row) is (given_letters == wanted)


@pytest.mark.parametrize(
    "text", ["a", "A ", "B, ", "(B", "B. red ", "is red ", "答案", "the ", "- ", "I'd ", "1 ", "{", "A and "]
)
def test_long_answers_are_read_in_no_time(text):
    start = time.perf_counter()
    for answer in (text * 20_000, "B. " + text * 20_000, text * 200 + "B", "B (" + text * 150):
        choices.same_choice(answer, "B", PLAIN)
        choices.same_choice(answer, "B", {})
        choices.same_choice("B", answer, PLAIN)
    assert time.perf_counter() - start < 1


FIVE = {"problem": "Which?\nA. red\nB. blue\nC. green\nD. yellow\nE. white"}
SAYS_A_AND_C = """
A and C|A, C|A & C|A和C|A 和 C|A、C|A, and C|(A) and (C)|Both A and C are correct.|Only A and C are true.
Statements A and C are true.|The correct statements are (A) and (C).|The answers are A and C.|Options A and C
答案是A和C。|选项A和C都正确|选A、C|AとCが正解です。|정답은 A와 C입니다
A und C sind richtig.|Die richtigen Antworten sind A und C.|Las respuestas correctas son A y C.
A en C zijn juist
Les réponses A et C sont correctes.|As alternativas A e C estão corretas.|Le risposte corrette sono A e C.
Правильные ответы: A и C|Poprawne odpowiedzi to A i C|Doğru cevaplar A ve C
"""
SAYS_OTHERS = """
A or C|A o C|A ou C|A oder C|A或C|A 或 C|A и/или C|A and C, or B|A and C are not correct|neither A nor C
A, not C|A e|A as C|A und C oder B|A and B and C|ABC|A is true and C is false|A only or C only|A? C
"""


@pytest.mark.parametrize("answer", split(SAYS_A_AND_C))
def test_several_letters_in_sentences(answer):
    wanted = ["A", "B", "C", "AB", "AC", "BC", "ABC", "ACE", "ABCDE"]
    assert [letters for letters in wanted if choices.same_choice(answer, letters, FIVE)] == ["AC"]


@pytest.mark.parametrize("answer", split(SAYS_OTHERS))
def test_these_do_not_say_a_and_c(answer):
    assert not choices.same_choice(answer, "AC", FIVE)


@pytest.mark.parametrize(
    "answer, want",
    [
        ("It isn't B, it's A.", "A"),
        ("It's not B. It's A.", "A"),
        ("not B but A", "A"),
        ("The answer is A, not B.", "A"),
        ("It isn't A, it's A", ""),
        ("not A", ""),
        ("not A, B", ""),
        ("It isn't A, B, C", ""),
        ("not A but B or C", ""),
        ("The arrow points to (A), the red.", "A"),
        ("The arrow points to B.", "B"),
        ("The arrow points at option B, the blue.", "B"),
        ("The part shown is (B) blue", "B"),
        ("The arrow points to (A), the blue.", ""),
        ("The arrow points to (A) red or blue", ""),
        ("The arrow does not point to B.", ""),
        ("The red one is (B), blue", ""),
        ("The red is B", ""),
        ("選択肢Bが正解です。", "B"),
        ("Правильный ответ: D", "D"),
    ],
)
def test_one_letter_in_a_sentence(answer, want):
    right = [letter for letter in "ABCDE" if choices.same_choice(answer, letter, FIVE)]
    assert right == list(want)


def test_a_letter_beyond_the_options_that_could_be_read():
    gap = {"problem": "Какое животное?\nA. собака\nB. кошка\nD. лошадь"}
    assert choices.same_choice("Правильный ответ: D", "D", gap)
    assert not choices.same_choice("Правильный ответ: B", "D", gap)
    assert not choices.same_choice("лошадь или D", "D", gap)


def test_a_picture_in_a_sentence():
    pictures = {"problem": "Which?\n(A) <image 2>\n(B) <image 3>\n(C) <image 4>"}
    for answer, want in [
        ("The next drawing is image 4.", ["C"]),
        ("It should be <image 4>", ["C"]),
        ("It is image 2 image 4", []),
        ("The next image is not image 4", []),
        ("image 3 or image 4", []),
    ]:
        right = [letter for letter in "ABC" if choices.same_choice(answer, letter, pictures)]
        assert right == want, answer
