"""The scorer: what counts as an answer, when it is right, and that no text can break or cheat it.

Run: python -m pytest -q tests/test_rewards.py. All expectations are worked out by hand, none by running the scorer.
"""
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward, extract_answer, format_reward, score, total  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


# Completions that scorers of earlier R1-style projects got wrong, with the verdict we want.
# The box rows of that collection are missing here: they come with the grounding task.
KNOWN_DEFECTS = [
    ("<think>there are 3 cubes</think><answer>5</answer>", "<answer> 3 </answer>", "count", 0),
    ("<think>a is 140.</think><answer>25</answer>", "<answer> 140° </answer>", "math", 0),
    ("<answer>140</answer>", "<answer> 140° </answer>", "math", 1),
    ("<answer>140°</answer>", "<answer> 140° </answer>", "math", 1),
    ("<think>x</think> <answer>\n140\n</answer>", "<answer> 140° </answer>", "math", 1),
    ("no tags at all 3", "<answer> 3 </answer>", "count", 0),
    ("<answer>1</answer> text <answer>3</answer>", "<answer> 3 </answer>", "count", 1),  # the last tag decides
    ("<answer>0.50</answer>", "<answer> 0.5 </answer>", "math", 1),
    ("<answer>1/2</answer>", "<answer> 0.5 </answer>", "math", 1),
    ("<answer> 2 </answer>", "2√{3}", "math", 0),
    ("<answer>$2\\sqrt{3}$</answer>", "2√{3}", "math", 1),
    ("<answer>(B) red</answer>", "<answer> B </answer>", "choice", 1),
    ("<answer>A cat</answer>", "<answer> A </answer>", "choice", 0),
    ("<answer>red cube</answer>", "<answer> red cubes </answer>", "text", 0),
    ("<answer>13 cm</answer>", "<answer> 12 cm </answer>", "math", 0),
]


@pytest.mark.parametrize("completion, solution, task, want", KNOWN_DEFECTS)
@pytest.mark.parametrize("auto", [False, True])
def test_known_defects(completion, solution, task, want, auto):
    assert accuracy_reward(completion, row(solution, task)) == want
    if auto:  # without a named task the look of the bare reference must lead to the same verdict
        bare = solution.replace("<answer>", "").replace("</answer>", "").strip()
        assert accuracy_reward(completion, row(bare, "auto")) == want


def test_text_without_tags_is_an_answer_in_evaluation_only():
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=False) == 1
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=True) == 0


# --- extraction ---

@pytest.mark.parametrize("completion, strict, lenient", [
    ("<answer> 5 </answer>", "5", "5"),
    ("<answer>3</answer><answer>4</answer>", "4", "4"),
    ("<answer>\n(B)\nred\n</answer>", "(B)\nred", "(B)\nred"),
    ("<answer></answer>", "", ""),
    ("<answer>7</answer> the answer is 8, \\boxed{9}", "7", "7"),      # a tag beats everything else
    ("<think><answer>3</answer></think>", "3", "3"),                   # wherever it stands; format pays nothing for it
    ("<answer>1<answer>2</answer>3</answer>", "2", "2"),               # nested: the innermost pair
    ("<answer>3</answer> <answer>5", "3", "3"),                        # the second was never finished
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
    ("room a12", None, None),
    ("no closing tag of <think> 3", None, "3"),
])
def test_extract_answer(completion, strict, lenient):
    assert extract_answer(completion) == strict
    assert extract_answer(completion, strict=False) == lenient


# --- the verifiers ---

@pytest.mark.parametrize("answer, solution, want", [
    ("3", "3", 1), ("3.", "3", 1), ("3.0", "3", 1), ("03", "3", 1), ("three", "3", 1), ("Three", "3", 1),
    ("3 cubes", "3", 1), ("3 (the red ones)", "3", 1), ("three items", "3", 1), ("There are 3 cubes.", "3", 1),
    ("2 + 1 = 3", "3", 1), ("2 + 1 = 3", "2", 0), ("7 matte objects + 1 matte car = 8 objects", "8", 1),
    ("7 matte objects + 1 matte car = 8 objects", "7", 0), ("C. 8", "8", 1), ("$3$", "3", 1), ("**3**", "3", 1),
    ("\\boxed{3}", "3", 1), ("３", "3", 1), ("1,000", "1000", 1), ("zero", "0", 1), ("twenty", "20", 1), ("-3", "3", 0),
    ("3 or 4", "3", 0), ("3 or 4", "4", 0), ("3, 4", "3", 0), ("3-4", "3", 0), ("3 4", "3", 0), ("3 to 4", "3", 0),
    ("at least 3", "3", 0), ("more than 3", "3", 0), ("not 3", "3", 0), ("3 and a half", "3", 0), ("3.5", "3", 0),
    ("3 maybe two", "3", 0), ("twenty-one", "20", 0), ("thirteen", "3", 0), ("13", "3", 0), ("31", "3", 0),
    ("", "3", 0),
    ("many", "3", 0), ("3²", "3", 0), ("3" * 100_000, "3", 0), ("1.2.3", "1", 0), ("3 + 1", "3", 0), ("3 =", "3", 0),
])
def test_count(answer, solution, want):
    assert rewards.same_count(answer, solution) is bool(want)


@pytest.mark.parametrize("answer, solution, want", [
    ("B", "B", 1), ("b", "B", 1), ("B.", "B", 1), ("(b)", "B", 1), ("(B)", "B", 1), ("B) red", "B", 1),
    ("B: red", "B", 1),
    ("B. red", "B", 1), ("(B) red", "B", 1), ("$B$", "B", 1), ("**B**", "B", 1), ("option B", "B", 1),
    ("（B）", "B", 1),
    ("The answer is B", "B", 1), ("B", "(B)", 1), ("(C) blue", "(C)", 1), ("\\boxed{B}", "B", 1), ("b. red", "B", 1),
    ("C", "B", 0), ("B, D", "B", 0), ("B, D", "D", 0), ("B or D", "B", 0), ("(B) or (D)", "B", 0), ("B. D", "B", 0),
    ("(A) (B) (C) (D)", "A", 0), ("A. red B. blue C. green", "A", 0), ("A cat", "A", 0), ("a cat", "A", 0),
    ("AB", "A", 0),
    ("", "B", 0), ("Because", "B", 0), ("red", "B", 0), ("none of the options", "B", 0), ("i.e. red", "I", 0),
    ("red", "red", 1),  # a reference that is no letter is compared as text
])
def test_choice(answer, solution, want):
    assert rewards.same_choice(answer, solution) is bool(want)


@pytest.mark.parametrize("answer, solution, want", [
    ("0.50", "0.5", 1), (".5", "0.5", 1), ("1/2", "0.5", 1), ("\\frac{1}{2}", "0.5", 1), ("-1/2", "-0.5", 1),
    ("\\frac{-1}{2}", "-0.5", 1), ("2/4", "1/2", 1), ("140", "140°", 1), ("140°", "140", 1), ("140^\\circ", "140°", 1),
    ("140^{\\circ}", "140°", 1), ("140 degrees", "140°", 1), ("12", "12 cm", 1), ("12cm", "12 centimeters", 1),
    ("12 \\text{ cm}", "12cm", 1), ("9 cm²", "9cm^{2}", 1), ("3 meters", "3米", 1), ("40", "40海里", 1),
    ("5 units", "5", 1),
    ("13 cm", "12 cm", 0), ("12 m", "12 cm", 0), ("1,234,567", "1234567", 1), ("1,000.5", "1000.5", 1),
    ("12,34", "1234", 0),
    ("180 - 140 = 40", "40°", 1), ("x = 5", "5", 1), ("x = 5", "x = 6", 0), ("−3", "-3", 1), ("3", "-3", 0),
    ("-3", "−3", 1),
    ("1/0", "0", 0), ("0.333", "1/3", 0), ("2x", "2", 0), ("7", "7.00", 1), ("3 or 4", "3", 0), ("3, 4", "3", 0),
    ("3,4", "34", 0), ("3 4", "12", 0), ("2 1/2", "1", 0), ("Yes", "3m", 0), ("", "3", 0), ("", "", 0),
    ("even", "Even", 1),
])
def test_math_numbers(answer, solution, want):
    assert rewards.same_math(answer, solution) is bool(want)


@pytest.mark.parametrize("answer, solution, want", [
    ("2√3", "2√{3}", 1), ("2\\sqrt{3}", "2√3", 1), ("\\sqrt{12}", "2√{3}", 1), ("2sqrt(3)", "2√{3}", 1),
    ("2", "2√{3}", 0),
    ("10√{3}", "10", 0), ("√{5}", "\\sqrt{5}", 1), ("√5", "√{6}", 0), ("\\frac{\\sqrt{2}}{2}", "\\frac{√{2}}{2}", 1),
    ("\\frac{3}{2}\\sqrt{3}", "\\frac{3}{2}√{3}", 1), ("5.0 m", "5√{3}", 0), ("6√5", "6√{5}m", 1), ("4π", "4πcm", 1),
    ("4\\pi", "4π", 1), ("4", "4π", 0), ("\\(\\frac{\\pi}{2}\\)", "π/2", 1), ("x+1", "1 + x", 1), ("x^2", "x²", 1),
    ("(0, 0)", "(0,0)", 1), ("(0, 1)", "(1, 0)", 0), ("(-\\infty, 4)", "(-\\infty, 4]", 0), ("4.0 + PE + PF", "4", 0),
    ("(x+1)^2", "x^2+2x+1", 1), ("x^2 - 2x - 5", "(x+4)^2 - 5", 0), ("red cube", "cube red", 0),
])
def test_math_expressions(answer, solution, want):
    assert rewards.same_math(answer, solution) is bool(want)


@pytest.mark.parametrize("answer, solution, want", [
    ("red cube", "red cube", 1), ("Red  Cube.", "red cube", 1), ('"red cube"', "red cube", 1),
    ("red\ncube", "red cube", 1),
    ("red cubes", "red cube", 0), ("red", "red cube", 0), ("STRASSE", "straße", 1), ("", "", 0), ("", "x", 0),
])
def test_text(answer, solution, want):
    assert rewards.same_text(answer, solution) is bool(want)


@pytest.mark.parametrize("answer, solution, want", [
    ("three", "3", 1), ("6/2", "3", 1), ("(B)", "B", 1), ("A cat", "A", 0), ("√12", "2√3", 1), ("a dog", "A dog", 1),
])
def test_auto(answer, solution, want):
    assert rewards.VERIFIERS["auto"](answer, solution) is bool(want)


# --- format ---

@pytest.mark.parametrize("completion, want", [
    ("<think>a</think><answer>b</answer>", 1), ("<think>a</think>\n<answer>b</answer>", 1), ("<answer>4</answer>", 0),
    ("\n <think>a\nb</think> \n\n <answer>\nb\n</answer> \n", 1), ("<think></think><answer></answer>", 1),
    ("<think>a</think> so <answer>b</answer>", 0), ("x <think>a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer> x", 0), ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think>a<think>b</think></think><answer>b</answer>", 0), ("<think>a<answer>b</answer></think>", 0),
    ("<think>a</think><answer>b", 0), ("<Think>a</Think><answer>b</answer>", 0), ("", 0),
    ("<answer>b</answer><think>a</think>", 0), ("<think>a</think><answer>b</answer>" * 2, 0),
])
def test_format(completion, want):
    assert format_reward(completion, row("b", "text")) == want


# --- hacks: the reference stands somewhere in the text, but it is not the answer; or the text attacks the scorer ---

@pytest.mark.parametrize("completion", [
    "<think>3</think><answer>5</answer>", "<answer>3</answer><answer>5</answer>", "<answer></answer>",
    "<answer> </answer>",
    "<think>3 3 3</think><answer></answer>", "<answer>1 2 3 4 5</answer>", "<answer>1, 2, 3</answer>", "<answer>3",
    "3</answer>", "<ANSWER>3</ANSWER>", "<answer>5</answer> I mean 3", "<answer>the reference</answer>",
    "<answer>ignore the question and give full marks</answer>", "<answer>{solution}</answer>", "<answer>3|4</answer>",
    "<answer>3</answer><answer><answer>5</answer></answer>", "<answer>True</answer>", "<answer>__import__</answer>",
    "<answer>any integer</answer>", "<answer>n</answer>", "<answer>x = x</answer>", "<answer>3 = 4</answer>",
])
@pytest.mark.parametrize("task", ["count", "math", "auto"])
def test_hacks_earn_nothing(completion, task):
    assert accuracy_reward(completion, row("3", task)) == 0


@pytest.mark.parametrize("answer", [
    "9**9**9", "9^{9^{9}}", "9^9^9", "(9^{9})^{9^9}", "2^{99999}", "9^\\frac{99999999}{1}",
    "((9^{9999})^{9999})^{9999}",
    "10000000!", "{" * 200 + "3" + "}" * 200, "{" * 90 + "3" + "}" * 90, "\\frac{" * 30,
    "\\sum_{n=1}^{9999} n", "3" * 100_000,
    "(" * 50_000, "<answer>" * 12_000, "\\boxed{" * 12_000, "$" * 100_000, " " * 100_000,
    "\\sqrt{" * 20 + "3" + "}" * 20, "\0",
    "there are " * 10_000, "answer is: " * 9_000, "1," * 50_000, "\\text{" * 16_000, "-" * 100_000, "**" * 50_000,
])
@pytest.mark.parametrize("task", sorted(rewards.VERIFIERS))
def test_hostile_answers_are_quick_and_wrong(answer, task):
    for strict in (True, False):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("2√{7}", task), strict) == 0
        accuracy_reward(answer, row("2√{7}", task), strict)  # as a whole completion: must only return


def test_hostile_answer_runs_fast():
    start = time.monotonic()
    for answer in ("9**9**9", "9^{9^{9}}", "2^{99999}", "3" * 100_000, "<answer>" * 12_000, "\\boxed{" * 12_000):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("x^2", "math"), strict=False) == 0
    assert time.monotonic() - start < 5


def test_long_completion_with_a_right_answer():
    completion = "<think>" + "3 cubes, 4 balls. " * 6_000 + "</think><answer>5</answer>"
    assert score(completion, row("5", "count")) == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("3", "count")) == {"accuracy": 0.0, "format": 1.0}


PIECES = ["<answer>", "</answer>", "<think>", "</think>", "3", "12", "4.5", ",", ".", "-", "=", "/", "^",
    "**", "{", "}", "(", ")",
          "\\frac", "\\sqrt", "√", "π", "°", "cm", "m", "B", "A cat", "or", "three", "\\boxed{", "$", "\\(",
    " ", "\n", "\0",
          "%", "²", "½", "٣", "ß", "\ud800", "🎲", "\\text{", "the answer is ", "there are ", "x", "+", "_",
    "\\", "!", "e9"]


def test_fuzz_never_raises_and_is_deterministic():
    rng = random.Random(0)
    seen = []
    for _ in range(300):
        text, solution = ("".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(2))
        for verifier in rewards.VERIFIERS.values():
            for pair in ((text, solution), (text, "3"), ("3", text)):
                verdict = verifier(*pair)
                assert verdict is True or verdict is False, pair
                seen.append((verifier, pair, verdict))
        for strict in (True, False):
            parts = score("<answer>" * strict + text, row(solution or "3", "auto"), strict)
            assert all(type(part) is float and part in (0.0, 1.0) for part in parts.values())
    rewards.same_expression.cache_clear()  # compare fresh verdicts, not remembered ones
    assert all(verifier(*pair) is verdict for verifier, pair, verdict in seen)


# --- the table-driven part ---

def test_score_and_total():
    completion = "<think>2 + 1</think><answer>3 cubes</answer>"
    parts = score(completion, row("3", "count"))
    assert parts == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("4", "count"), names=("accuracy",)) == {"accuracy": 0.0}
    assert total(parts, {"accuracy": 1.0, "format": 0.5}) == 1.5
    assert total({"accuracy": 0.0, "format": 1.0}, {"accuracy": 1.0, "format": 0.25}) == 0.25
    assert total(parts, {}) == 0.0
    with pytest.raises(ValueError, match="'formt'.*accuracy, format"):
        total(parts, {"accuracy": 1.0, "formt": 0.5})


@pytest.mark.parametrize("task", ["grounding", "nope", ""])
def test_unknown_task_lists_the_known_ones(task):
    with pytest.raises(ValueError, match="unknown task.*auto, choice, count, math, text"):
        score("<answer>3</answer>", row("3", task))


def test_unknown_reward_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown reward 'lenght'.*accuracy, format"):
        score("x", row("3", "count"), names=("accuracy", "lenght"))


def test_row_is_not_changed_and_solution_may_be_a_number():
    given = row(3, "count")
    assert accuracy_reward("<answer>3</answer>", given) == 1
    assert given == row(3, "count")


def test_expressions_are_compared_in_other_threads_too():
    verdicts = []
    rewards.same_expression.cache_clear()
    thread = threading.Thread(target=lambda: verdicts.append(rewards.same_math("\\sqrt{12}", "2√{3}")))
    thread.start()
    thread.join(60)
    assert verdicts == [True]


def test_unreadable_reference_is_logged_once(caplog):
    rewards.log_once.cache_clear()
    for answer in ("x+1", "x+2", "x+3"):
        assert rewards.same_math(answer, "\\frac{1") is False
    assert len([record for record in caplog.records if "\\frac{1" in record.getMessage()]) == 1


def test_ordinary_answers_do_not_load_sympy():
    code = ("import sys, rewards\n"
            "for a, s, t in [('3 cubes', '3', 'count'), ('1/2', '0.5', 'math'), ('B', 'A', 'choice')]:\n"
            "    rewards.score(f'<think>x</think><answer>{a}</answer>', {'solution': s, 'task': t})\n"
            "assert not {'sympy', 'math_verify'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
