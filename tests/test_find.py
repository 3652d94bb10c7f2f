"""What counts as the answer of a completion. All expectations are worked out by hand."""

import sys
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import results  # noqa: E402
from rewards import accuracy_reward, format_reward, score  # noqa: E402
from tasks.grading.find import extract_answer  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


def test_text_without_tags_is_an_answer_in_evaluation_only():
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=False) == 1
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=True) == 0


@pytest.mark.parametrize(
    "completion, strict, lenient",
    [
        ("<answer> 5 </answer>", "5", "5"),
        ("<answer>3</answer><answer>4</answer>", "4", "4"),
        ("<answer>\n(B)\nred\n</answer>", "(B)\nred", "(B)\nred"),
        ("<answer></answer>", "", ""),
        ("<answer>7</answer> the answer is 8, \\boxed{9}", "7", "7"),  # a tag beats everything else
        ("<think><answer>3</answer></think>", "3", "3"),  # wherever it stands; format pays nothing for it
        ("<answer>1<answer>2</answer>3</answer>", "2", "2"),  # nested: the innermost pair
        ("<answer>3</answer> <answer>5", "3", "3"),  # the second was never finished
        ("</answer>5<answer>", None, "5"),  # an empty last tag: what stands before it
        ("<answer>5", None, "5"),
        ("<answer>5</ans", None, "5"),
        ("There are 4 cubes.\n</think>\n<answer>\n", None, "4"),
        ("so \\boxed{\\frac{1}{2}} or \\boxed{x^{2}}.", None, "x^{2}"),
        ("\\boxed{5", None, None),
        ("\\boxed{1} and \\boxed{5", None, "1"),
        ("Therefore, the answer is 80.", None, "80"),
        ("... 3 of 4.\n**Final Answer:** B", None, "B"),
        ("I count them: there are 4 big cubes to the left", None, "4"),
        ("there are seven of them", None, "seven"),
        ("It is hard to say.", None, None),
        ("", None, None),
        ("room a12", None, "room a12"),  # a reply of a few words is the answer
        ("no closing tag of <think> 3", None, "3"),
        ("We add them.\nTherefore, the radius equals 12.", None, "12"),
        ("Thus DE = 3.5.", None, "3.5"),
        ("So it is not known", None, "not known"),  # said in words, and wrong
        ("There are no cubes.", None, "0"),
        ("3 and then 4 " * 20, None, None),  # a loop has not concluded
        ("Which?\nA. 3\nB. 4\nC. 5", None, None),  # nor has a list of options
    ],
)
def test_extract_answer(completion, strict, lenient):
    assert extract_answer(completion) == strict
    assert extract_answer(completion, strict=False) == lenient


# -----------------------------------------------------------------------------
# tags
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, want",
    [
        ("<ANSWER>5</ANSWER>", "5"),
        ("<Answer >5</ answer>", "5"),
        ("< answer>5< /Answer >", "5"),
        ("<answer>3</answer><ANSWER>5</ANSWER>", "5"),  # another case is no way to hide a last tag
        ("<answer>1<ANSWER>2</ANSWER>3</answer>", "2"),
        ("<answer>a < b <i>x</i></answer>", "a < b <i>x</i>"),
        ("<answers>5</answers>", None),
        ("<answer     >5</answer>", None),
        ("<answer>\\boxed{5}</answer>", "\\boxed{5}"),  # stage 2 cleans it
        ("＜answer＞5＜/answer＞", None),
    ],
)
def test_tags_in_any_case(completion, want):
    assert extract_answer(completion) == want


def test_the_format_is_paid_for_in_lower_case_only():
    text = "<think>x</think> <answer>5</answer>"
    assert format_reward(text, row("5", "count")) == 1
    assert format_reward(text.upper(), row("5", "count")) == 0
    assert score(text.upper(), row("5", "count")) == {"accuracy": 1, "format": 0}


# -----------------------------------------------------------------------------
# evaluation: what a text without tags concludes
# -----------------------------------------------------------------------------

CONCLUSIONS = [
    # cut off in mid-formula
    (r"\[ a = \sqrt{6.0^2 - 8.", None),
    (r"\[ z = 180 - 80", None),
    ("\\[\nz = 180 - 80", None),
    ("z = 180 - 80", None),
    ("So z = 180 - 80", None),
    ("So z = 180 - 80 = 100", "100"),
    ("So the angle is 180° - 70°", None),
    ("So the angle is 180° - 70°.", "180° - 70°"),
    ("So the total is 4 + 4", None),
    ("The sum is $4 + 4", None),
    ("So y = 2x - 1", "2x - 1"),
    ("So y = (x - 2)^2 + 3", "(x - 2)^2 + 3"),
    (r"So the value is \frac{1}{", None),
    (r"So x = \frac{1}", None),
    (r"So x = \frac{1}{2}", r"\frac{1}{2}"),
    (r"So x = 2 \times", None),
    ("x = 5 +", None),
    ("So x = 5 +", None),
    ("So the point is (2, 3", None),
    ("So the point is (2, 3).", "(2, 3)"),
    ("So the interval is (0, 4].", "(0, 4]"),
    ("So it is $a + b", None),
    ("So it is $a + b$", "a + b"),
    ("The price is $12.", "12"),
    (r"So it is \( a", None),
    ("The area is approximately 3.", None),
    ("The area is approximately 3.14.", "3.14"),
    ("```python\nx = 5", None),
    (r"The answer is \frac{1}{", None),
    ("The answer is 5 +", None),
    ("The answer is:\n\\[\nz = \\sqrt{4", None),
    ("<answer>\\frac{1}{", None),
    # what is said in the line of the answer is complete, whatever follows
    ("Answer: 5\nBecause: \\[ a = \\sqrt{", "5"),
    # there are
    ("So there are 4 + 4 + 2 = 10 flocks of that size.", "10"),
    ("With two equal groups, there are 4/2 = 2 dots in each group.", "2"),
    ("there are 4 + 4", None),
    ("The ratio is 1:2, which means there is one of these for every two of those.", None),
    ("There is one for every two.", None),
    ("there are 3 times as many", None),
    ("There are 3 more red cubes than blue ones.", None),
    ("So there are 3 or 4.", None),
    ("So there are 3-4 of them.", None),
    ("There are 3 red cubes and 2 blue cubes.", None),
    ("There are 3 cubes, 2 spheres.", None),
    ("There are about 3 cubes.", None),
    ("there are about 3", None),
    ("There are at least 3 cubes.", None),
    ("There are not 3.", None),
    ("if there are 3", None),
    ("Since there are 3 cats.", None),
    ("Since there are 3 cats and 2 dogs, the total is 5.", "5"),
    ("If we remove them, there are 4 left.", "4"),
    ("there are 12 months in a year, so 36", "36"),
    ("We can see that there are 4 cubes.", "4"),
    ("There are $3$ cubes.", "3"),
    (r"There are \(3\) cubes.", "3"),
    ("There is no way to know.", None),
    ("There are none.", "0"),
    ("There are 2 rows of 3 cubes.", None),
    ("There are 2 rows of 3 cubes, for a total of 6.", "6"),
    ("There is a 1 in 4 chance, and there is 1 in 4.", None),
    ("There are twenty one cubes.", None),
    ("There are 3 hundred cubes.", None),
    ("There are 60 minutes in an hour.", None),
    ("There are 3 cubes?", None),
    # an equation is not solved yet
    ("So x + 3 = 5.", "x + 3 = 5"),
    ("So we get 2x = 10", "2x = 10"),
    ("AB + CD = 5", "AB + CD = 5"),
    ("So x = 5.", "5"),
    ("So x = 3 or x = 4.", "x = 3 or x = 4"),
    ("We get x = 3, x = 4", "x = 3, x = 4"),
    ("Since AB = 3, AC = 5.", "5"),
    ("So x = 3 or 4.", "3 or 4"),
    ("So we have 5 x 3 = 15.", "15"),
    ("So AB = 2 * AC = 10cm.", "10cm"),
    ("So 3 + 2 = 5.", "5"),
    # lists
    ("- cubes: 3\n- spheres: 2", None),
    ("- cubes: 3\n- spheres: 2\n- total: 5", "5"),
    ("1. We add 2 and 3.\n2. So the answer is 5.", "5"),
    # languages
    ("Antwort: 5", "5"),
    ("Die Antwort ist 5.", "5"),
    ("La respuesta es 5", "5"),
    ("La réponse est 5.", "5"),
    ("A resposta é 5.", "5"),
    ("Ответ: 5", "5"),
    ("答案：5", "5"),
    ("所以答案是 5。", "5"),
    ("答えは5です。", "5"),
    ("정답은 5입니다.", "5"),
    # wordings
    ("Final answer\n\n5", "5"),
    ("### Answer\n\n**5**", "5"),
    ("**Answer:** 5", "5"),
    ("We look.\nFinal Answer\n\na red cube", "a red cube"),
    ("Answer = 5", "5"),
    ("The final answer is $\\boxed{5}$", "5"),
    ("The answer is 5. It has 2 + 1 = 3 red ones.", "5"),
    ("The answer is B. Heparin", "B. Heparin"),
    ("The answer is 4. No wait, the answer is 5.", "5"),
    ("The answer must be 5.", "5"),
    ("Answer (in cm): 5", "5"),
    ("**Answer**: 5", "5"),
    ("The answer to this question is: 5", "5"),
    ("The answer can be found as follows: we count the cubes one by one.\nSo there are 5.", "5"),
    ("To answer the question: we count.\n" + "One cube stands here, another there. " * 3 + "x " * 200, None),
    ("The answer is not 5.", None),
    ("The answer cannot be 5.", None),
    ("If the answer is 5", None),
    ("I am not sure if the answer is 5.", None),
    ("The answer is B.\nBecause " + " ".join(map(str, range(200))) + " and more.", "B"),
    ("**Answer:** B\n\nBecause " + " ".join(map(str, range(200))) + " and more.", "B"),
    ("We look at it.\nThe answer is B.\nBecause " + " ".join(map(str, range(200))) + " and more.", None),
    ("The answer is option B: piece 2.", "option B: piece 2"),
    ("The correct option is (B).", "(B)"),
    ("Thus (B) is correct.", "B"),
    ("I doubt it. It isn't so that B is correct.", None),
    (
        "Final Answer: None of the options (A, B, C, D) is correct.",
        "None of the options (A, B, C, D) is correct",
    ),
    # the end
    ("We add them.\n\n$$5$$", "5"),
    ("We add them.\n\n$$\n5\n$$", "5"),
    ("Therefore, the area is:\n\\[\n12\\text{ cm}\n\\]", r"12\text{ cm}"),
    ("EC is equal to 2.0.", "2.0"),
    ("It lies between 3 and 4 of the bars that can be seen here.", None),
    ("It lies somewhere in this picture between 3 and 4", None),
    ("We see this in the third picture, Figure 3.", None),
    ("It is 5 and not 3.", None),
    ("We add them.\n\nB", "B"),
    ("We add them.\n\n$B$", "B"),
    ("We add them.\n\n(B).", "(B)."),
    ("A. 3\nB. 4", None),
    ("A. 3\nB.", None),
    ("| shape | number |\n| cubes | 3", None),
    # short replies
    ("a red cube", "a red cube"),
    ("B blue", "B blue"),
    ("A. 3", "A. 3"),
    ("3 or 4", "3 or 4"),  # no rule pays for that
    ("not 3", None),
    ("Is it red?", None),
    ("a red and a blue and a green", "a red and a blue and a green"),
    ("a red and a blue and a green cube", None),
    ("one two three", "one two three"),  # no number, and no rule pays for that
    ("a\nred cube", None),
    ("<think>a red cube", None),
    # tags that nobody closed
    ("<answer>3 <answer>5", "5"),
    (
        "<ANSWER>a red cube that stands there to the left of all",
        "a red cube that stands there to the left of all",
    ),
    ("<answer>5</ANS", "5"),
    ("<answer>a red <", "a red"),
    # thinking is no conclusion if there is text behind it
    ("<think>so it is 3</think> The answer is 6.", "6"),
    ("<think>\\boxed{5}</think> I do not know.", None),
    ("<think>The answer is 5.</think> <answer>", "5"),
    ("<think>The answer is 5.", "5"),
    ("<think><answer>5</think> The answer is 6.", "6"),
    ("The sides are 6 and 4. 6 × 4 = 24, so the area is 24 cm².", "24 cm²"),
    ("6 × 4 = 24, so the area might be 24.", None),
    ("On Monday, approximately 71 visitors came.", "71"),
    ("Of the 80 people who were invited, 71 visitors came.", None),
    ("Of the ten or so people who were invited, 71 visitors came.", None),
    ("If it rains, 71 visitors came.", None),
    ("Since there are 48 seats in 8 rows, there are 48 ÷ 8 = 6 seats in each row.", "6"),
    ("Since there are 48 seats, it is full.", None),
    ("In total, there were 9 ships.", "9"),
    ("I can see 4 boats on the lake.", "4"),
    ("I can see 4 boats or 5.", None),
    ("It is a lighthouse.", "It is a lighthouse."),
    ("The building in the picture is a lighthouse", "The building in the picture is a lighthouse"),
    ("It is hard to say.", None),
    ("It might be a lighthouse.", None),
    ("Yes, it is.", "Yes, it is."),
    ("The peak was in 1998.", "1998"),
]


@pytest.mark.parametrize("completion, want", CONCLUSIONS)
def test_conclusions(completion, want):
    assert extract_answer(completion, strict=False) == want
    assert extract_answer(completion, strict=True) is None


EACH_WORD = [  # a sentence, the words that may stand in it, what it concludes with any of them
    ("The {} is 5 cm.", "answer|correct option|best choice", "5 cm"),
    (
        "{} 5 cm",
        "Antwort:|Antwoord:|Respuesta:|Réponse:|Reponse:|Risposta:|Resposta:|ОТВЕТ:|정답:|답은",
        "5 cm",
    ),
    (
        "The answer {} 5 cm.",
        "is|equals|must be|should be|would be|will be|is therefore|is thus|is then",
        "5 cm",
    ),
    ("{} 5 cm.", "Die Antwort ist|Die Antwort lautet|La respuesta es|La réponse est|La risposta è", "5 cm"),
    ("The answer is {}.", "not 5|unknown|unclear|uncertain", None),
    ("{} the answer is 5.", "If|Whether|Unless|Suppose|Assume|Assuming|Maybe|Perhaps|He never said", None),
    ("The answer {} be 5.", "might|could", None),
    ("They are shown. Answer {}: 3 5", "choices|options", None),
    (
        "{} B, as the following long explanation shows.\nAnd more.",
        "The answer is|My final answer:|Correct answer:",
        "*",
    ),
    ("We see that B is {}.", "correct|right|best|the best|the correct option", "B"),
    (r"So the value is 5 \{}", "times|cdot|div|pm|approx|left|sqrt|text|mathrm|frac|dfrac", None),
    ("It is {} 3.", r"approximately|about|\approx|≈", None),
    (r"x = 3 {} 5", r"+|-|*|×|÷|\times|\cdot", None),
    ("It shows 3 {} 5 cubes there, that is 3 {} 5", "or|out of", None),
    ("{} 5", "정답:|정답은|답은|답:", "5"),
    ("We have got in all 3 {} 5", r"+|-|*|×|÷|\times|\cdot|or|and|to|<|,", None),
    ("There are {} 5 big cubes.", "only|exactly|just|a total of", "5"),
    ("There are {} 5", "about|approximately|around|roughly|nearly|almost|not|over|up to", None),
    ("There are {} 5", "at least|at most|more than|less than|fewer than", None),
    (
        "{} there are 5 cubes",
        "When|Because|As|Although|Though|While|By which|Where|Given that|Since|If",
        None,
    ),
    (
        "There are 5 {} 6 cubes.",
        r"or|to|more than|fewer than|less than|times|out of|hundred|thousand|+|\times",
        None,
    ),
    ("There are 5 {} cubes.", "million|dozen|rows of 6|%", None),
    ("There are 5 red {} six blue cubes.", "and|or|cubes,", None),
    ("There is one cube for {} of the spheres.", "every|each", None),
    (
        "There are 7 of them in {}.",
        "a week|one week|every day|an hour|a metre|a meter|a dozen|a triangle",
        None,
    ),
    ("There is no {}.", "way|need|doubt|information|answer|solution|option|choice|evidence", None),
    ("There are no {}.", "cubes|red ones", "0"),
    ("There are 2 rows of 3, {}.", "6 altogether: 6|a total of 6|that sums to the sum 6", "6"),
    ("There are 2 cats{} 8", ", so|, thus|, therefore|; hence|, but|, giving|, and so|, making", "8"),
    ("{}, the radius of it is 5 cm.", "So|Therefore|Thus|Hence|In conclusion|Finally", "5 cm"),
    ("It can be seen in this one here, {} 3.", "step|figure|picture|image|case|page|equation|number", None),
    (
        "It must certainly somehow be {} 3 cubes or {} 3",
        "more than|at least|at most|divided by|per|about|not",
        None,
    ),
    ("5 {} red", "is|are|was|were|has|have|so|thus|answer", None),
    ("1. red cube\n2. {} 5", "total:|altogether:|the final one:|so|thus|therefore|hence", "5"),
]


@pytest.mark.parametrize(
    "completion, want",
    [(text.replace("{}", word), want) for text, words, want in EACH_WORD for word in words.split("|")],
)
def test_each_word_of_a_rule_counts(completion, want):
    found = extract_answer(completion, strict=False)
    assert found == want or (want == "*" and found.startswith("B, as"))


def test_a_box_is_read_from_plain_text_for_the_task_grounding():
    text = "The dog is at [41, 19, 153, 132]."
    assert "[41, 19, 153, 132]" in extract_answer(text, strict=False, task="grounding")
    assert extract_answer(text, strict=False) != extract_answer(text, strict=False, task="grounding")
    assert extract_answer(text, strict=True, task="grounding") is None
    assert extract_answer("<answer>[1, 2, 3, 4]</answer> [5, 6, 7, 8]", False, "grounding") == "[1, 2, 3, 4]"


@pytest.mark.parametrize("task", ["grounding", "auto"])
def test_rewards_and_results_look_for_a_box_where_the_reference_is_one(task):
    asked = row("[40, 20, 150, 130]", task)
    text = "Here it stands at the left: [41, 19, 153, 132] is its box in the picture that I was given."
    assert accuracy_reward(text, asked, strict=False) == 1
    assert accuracy_reward(text, asked, strict=True) == 0
    assert score(text, asked, strict=False, names=("iou",))["iou"] > 0.9
    graded = results.grade({**asked, "outputs": [{"text": text}]})["outputs"][0]
    assert (graded["accuracy"], graded["lenient"]) == (0, 1)
    assert "[41, 19, 153, 132]" in graded["answer"]


HOSTILE = [
    "<answer>" * 20_000,
    "<answer>" + "<" * 100_000,
    "\\boxed{" * 20_000,
    "there are 3 " * 9_000,
    "the answer is " * 9_000,
    "answer" + " x" * 50_000,
    "$" * 100_000,
    "(" * 100_000,
    " " * 100_000,
    "\n" * 100_000,
    "<answer" + " " * 100_000 + ">",
    "=1+1" * 30_000,
    "</think>" * 20_000,
    "so " + "is " * 40_000,
    "the " + "a " * 90,
    "since there are 3, " * 9_000,
    ", 71 " + "a " * 190,
    "yes, " * 30,
    "1" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("task", ["auto", "grounding"])
def test_hostile_texts_are_read_within_milliseconds(text, task):
    before = time.process_time()
    extract_answer(text, strict=False, task=task)
    assert time.process_time() - before < 0.2
