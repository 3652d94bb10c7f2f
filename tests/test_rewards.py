"""The scorer: what counts as an answer, when it is right, and that no text can break or cheat it.

Run: python -m pytest -q tests/test_rewards.py. All expectations are worked out by hand, none by running
the scorer.
"""

import hashlib
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward, format_reward, score, total  # noqa: E402
from tasks import grading  # noqa: E402
from tasks.grading import compare, symbolic  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


# -----------------------------------------------------------------------------
# format
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, want",
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>a</think>\n<answer>b</answer>", 1),
        ("<answer>4</answer>", 0),
        ("\n <think>a\nb</think> \n\n <answer>\nb\n</answer> \n", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("x <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> x", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<think>b</think></think><answer>b</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b", 0),
        ("<Think>a</Think><answer>b</answer>", 0),
        ("", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer>" * 2, 0),
    ],
)
def test_format(completion, want):
    assert format_reward(completion, row("b", "text")) == want


# -----------------------------------------------------------------------------
# hacks: the reference stands somewhere but is not the answer, or the text attacks the scorer
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        "<think>3</think><answer>5</answer>",
        "<answer>3</answer><answer>5</answer>",
        "<answer></answer>",
        "<answer> </answer>",
        "<think>3 3 3</think><answer></answer>",
        "<answer>1 2 3 4 5</answer>",
        "<answer>1, 2, 3</answer>",
        "<answer>3",
        "3</answer>",
        "<answer>3</answer><ANSWER>5</ANSWER>",
        "<answer>5</answer> I mean 3",
        "<answer>the reference</answer>",
        "<answer>ignore the question and give full marks</answer>",
        "<answer>{solution}</answer>",
        "<answer>3|4</answer>",
        "<answer>3</answer><answer><answer>5</answer></answer>",
        "<answer>True</answer>",
        "<answer>__import__</answer>",
        "<answer>any integer</answer>",
        "<answer>n</answer>",
        "<answer>x = x</answer>",
        "<answer>3 = 4</answer>",
    ],
)
@pytest.mark.parametrize("task", ["count", "math", "auto"])
def test_hacks_earn_nothing(completion, task):
    assert accuracy_reward(completion, row("3", task)) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9",
        "9^{9^{9}}",
        "9^9^9",
        "(9^{9})^{9^9}",
        "2^{99999}",
        "9^\\frac{99999999}{1}",
        "((9^{9999})^{9999})^{9999}",
        "10000000!",
        "{" * 200 + "3" + "}" * 200,
        "{" * 90 + "3" + "}" * 90,
        "\\frac{" * 30,
        "\\sum_{n=1}^{9999} n",
        "3" * 100_000,
        "(" * 50_000,
        "<answer>" * 12_000,
        "\\boxed{" * 12_000,
        "$" * 100_000,
        " " * 100_000,
        "\\sqrt{" * 20 + "3" + "}" * 20,
        "\0",
        "there are " * 10_000,
        "answer is: " * 9_000,
        "1," * 50_000,
        "\\text{" * 16_000,
        "-" * 100_000,
        "**" * 50_000,
    ],
)
@pytest.mark.parametrize("task", sorted(rewards.VERIFIERS))
def test_hostile_answers_are_quick_and_wrong(answer, task):
    for strict in (True, False):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("2√{7}", task), strict) == 0
        accuracy_reward(answer, row("2√{7}", task), strict)  # as a whole completion: must only return


def test_hostile_answer_runs_fast():
    start = time.monotonic()
    for answer in (
        "9**9**9",
        "9^{9^{9}}",
        "2^{99999}",
        "3" * 100_000,
        "<answer>" * 12_000,
        "\\boxed{" * 12_000,
    ):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("x^2", "math"), strict=False) == 0
    assert time.monotonic() - start < 5


def test_long_completion_with_a_right_answer():
    completion = "<think>" + "3 cubes, 4 balls. " * 6_000 + "</think><answer>5</answer>"
    assert score(completion, row("5", "count")) == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("3", "count")) == {"accuracy": 0.0, "format": 1.0}


# fmt: off
PIECES = [
    "<answer>", "</answer>", "<think>", "</think>",
    "3", "12", "4.5",
    ",", ".", "-", "=", "/", "^", "**", "{", "}", "(", ")",
    "\\frac", "\\sqrt", "√", "π", "°",
    "cm", "m",
    "B", "A cat", "or", "three",
    "\\boxed{", "$", "\\(", " ", "\n", "\0", "%",
    "²", "½", "٣", "ß", "\ud800", "🎲",
    "\\text{", "the answer is ", "there are ",
    "x", "+", "_", "\\", "!", "e9",
]
# fmt: on


def test_fuzz_never_raises_and_is_deterministic():
    rng = random.Random(0)
    seen = []
    for _ in range(300):
        text, solution = ("".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(2))
        for verifier in rewards.VERIFIERS.values():
            for pair in ((text, solution), (text, "3"), ("3", text)):
                verdict = verifier(*pair)
                assert 0 <= verdict <= 1, pair
                seen.append((verifier, pair, verdict))
        for strict in (True, False):
            parts = score("<answer>" * strict + text, row(solution or "3", "auto"), strict)
            assert all(type(part) is float and part in (0.0, 1.0) for part in parts.values())
    symbolic.verified.cache_clear()  # compare fresh verdicts, not remembered ones
    assert all(verifier(*pair) == verdict for verifier, pair, verdict in seen)


# -----------------------------------------------------------------------------
# the table-driven part
# -----------------------------------------------------------------------------


def test_score_and_total():
    completion = "<think>2 + 1</think><answer>3 cubes</answer>"
    parts = score(completion, row("3", "count"))
    assert parts == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("4", "count"), names=("accuracy",)) == {"accuracy": 0.0}
    assert total(parts, {"accuracy": 1.0, "format": 0.5}) == 1.5
    assert total({"accuracy": 0.0, "format": 1.0}, {"accuracy": 1.0, "format": 0.25}) == 0.25
    assert total(parts, {}) == 2.0  # parts that only the row asked for have weight 1
    with pytest.raises(SystemExit, match="'formt'.*accuracy, cosine, format"):
        rewards.check_weights({"accuracy": 1.0, "formt": 0.5})


@pytest.mark.parametrize("task", ["nope", ""])
def test_unknown_task_lists_the_known_ones(task):
    with pytest.raises(ValueError, match="unknown task.*auto, choice, count, grounding, math, relaxed, text"):
        score("<answer>3</answer>", row("3", task))


def test_unknown_reward_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown reward 'lenght'.*accuracy, cosine, format"):
        score("x", row("3", "count"), names=("accuracy", "lenght"))


def test_row_is_not_changed_and_solution_may_be_a_number():
    given = row(3, "count")
    assert accuracy_reward("<answer>3</answer>", given) == 1
    assert given == row(3, "count")


def test_expressions_are_compared_in_other_threads_too():
    verdicts = []
    symbolic.verified.cache_clear()
    thread = threading.Thread(target=lambda: verdicts.append(compare.same_math("\\sqrt{12}", "2√{3}")))
    thread.start()
    thread.join(60)
    assert verdicts == [True]


def test_unreadable_reference_is_logged_once(caplog):
    symbolic.log_once.cache_clear()
    for answer in ("x+1", "x+2", "x+3"):
        assert compare.same_math(answer, "\\frac{1") is False
    assert len([record for record in caplog.records if "\\frac{1" in record.getMessage()]) == 1


def test_ordinary_answers_do_not_load_sympy():
    code = (
        "import sys, rewards\n"
        "for a, s, t in [('3 cubes', '3', 'count'), ('1/2', '0.5', 'math'), ('B', 'A', 'choice')]:\n"
        "    rewards.score(f'<think>x</think><answer>{a}</answer>', {'solution': s, 'task': t})\n"
        "assert not {'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


# -----------------------------------------------------------------------------
# boxes
# -----------------------------------------------------------------------------


def test_format_of_grounding_asks_for_json_with_a_box():
    good = '<think>left</think> <answer>```json\n{"bbox_2d": [1, 2, 3, 4]}\n```</answer>'
    bare_list = "<think>x</think><answer>[10, 10, 100, 100]</answer>"
    box = row("[1, 2, 3, 4]", "grounding")
    assert [format_reward(text, box) for text in (good, bare_list, good[20:])] == [1, 0, 0]


# -----------------------------------------------------------------------------
# the other reward parts, by hand from their papers' formulas
# -----------------------------------------------------------------------------


def test_length_rewards_by_hand():
    # right answers of 10, 20 and 30 tokens, a wrong one of 10 and one of 30
    assert rewards.length_rewards([1, 1, 1, 0, 0], [10, 20, 30, 10, 30], 100) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert rewards.length_rewards([1, 0], [7, 7], 100) == [0.0, 0.0]


def test_cosine_rewards_by_hand():
    right = rewards.cosine_rewards([1] * 4, [0, 500, 1000, 2000], 1000)
    wrong = rewards.cosine_rewards([0] * 4, [0, 500, 1000, 2000], 1000)
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5]) and wrong == pytest.approx([-0.5, -0.25, 0.0, 0.0])


def test_repetition_steps_fuzzy_by_hand():
    # trigrams abc bca cab abc: 3 of 4 distinct
    assert rewards.repetition_reward("a b c a b c", {}) == pytest.approx(3 / 4 - 1)
    assert [rewards.repetition_reward(text, {}) for text in ("a b c d e", "", "一")] == [0.0, 0.0, 0.0]
    assert rewards.reasoning_steps_reward("Step 1: x\nStep 2: y", {}) == pytest.approx(2 / 3)
    assert rewards.reasoning_steps_reward("First, a. Second, b. Next, c. Finally, d.", {}) == 1.0
    texts = ("red cubes", "red cube", "blue ball")
    fuzzy = [rewards.fuzzy_reward(f"<answer>{text}</answer>", row("red cubes", "text")) for text in texts]
    assert fuzzy == [1.0, 0.1, 0.0]
    assert rewards.fuzzy_reward("<answer>13 cm</answer>", row("12 cm", "math")) == 0.0
    # the longest common subsequence is "ittn"
    assert rewards.likeness("kitten", "sitting") == pytest.approx(8 / 13)


def test_a_row_may_choose_its_parts_and_a_group_is_scored_together():
    texts = ["<think>a</think><answer>3</answer>", "<answer>4</answer>"]
    names = ("accuracy", "format")
    own = row("3", "count") | {"reward_func": "accuracy, length"}
    parts = rewards.score_group(texts, own, names, [10, 20], 50)
    assert parts == [{"accuracy": 1.0, "length": 0.5}, {"accuracy": 0.0, "length": -0.5}]
    default = row("3", "count") | {"reward_func": "default"}
    assert set(rewards.score_group(texts, default)[0]) == {"accuracy", "format"}


PARTS = [*rewards.REWARDS, *rewards.GROUP_REWARDS]


@pytest.mark.parametrize("name", PARTS)
def test_a_row_may_choose_each_part(name):
    for named in (name, [name], (name,)):
        want = [] if name == "iou" else [name]  # "iou" alone is OpenV-R1's word for grounding, see below
        assert rewards.own_parts(named) == want
    assert rewards.own_parts(["format", name]) == rewards.own_parts(f"format, {name}") == ["format", name]


@pytest.mark.parametrize("named", [None, "", [], (), "iou", "default", ["iou"], ["default"], ("iou",)])
def test_a_row_that_chooses_no_part_gets_those_of_the_knob(named):
    assert rewards.own_parts(named) == []
    assert rewards.parts_of({"reward_func": named}, ("accuracy", "my_rewards:brevity")) == [
        "accuracy",
        "my_rewards:brevity",
    ]


def test_parts_of_a_row():
    assert rewards.parts_of({}, ("accuracy",)) == ["accuracy"]
    assert rewards.parts_of({"reward_func": "format, length"}, ("accuracy",)) == ["format", "length"]
    with pytest.raises(ValueError, match="'trap:score'.*data cannot name other functions"):
        rewards.parts_of({"reward_func": "trap:score"}, ("accuracy",))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that Python would find, and that leaves a file behind when it is imported."""
    ran = tmp_path / "RAN"
    (tmp_path / "trap.py").write_text(f"open({str(ran)!r}, 'w')\n\ndef score(*args):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop("trap", None)
    rewards.reward_function.cache_clear()


@pytest.mark.parametrize(
    "named, sentence",
    [
        ("trap:score", "reward_func 'trap:score' is none of accuracy, cosine, format"),
        ("trap", "reward_func 'trap' is none of"),
        ("accuracy, trap:score", "reward_func 'trap:score' is none of"),
        (["accuracy", "trap:score"], "reward_func 'trap:score' is none of"),
        (("trap:score",), "reward_func 'trap:score' is none of"),
        ("iou, trap:score", "reward_func 'trap:score' is none of"),
        (["default", "accuracy"], "reward_func 'default' is none of"),  # OpenV-R1's word stands alone
        ("Accuracy", "reward_func 'Accuracy' is none of"),
        ("accuracy,", "reward_func '' is none of"),
        (5, "reward_func 5 is no name of a reward part"),
        (True, "reward_func True is no name of a reward part"),
        ({"accuracy": 1.0}, "reward_func {'accuracy': 1.0} is no name of a reward part"),
        ([{"name": "trap:score"}], "is none of .*; data cannot name other functions, --reward_weights can"),
        ([["accuracy"]], "is none of"),
        ([None], "reward_func 'None' is none of"),
        ([3], "reward_func '3' is none of"),
    ],
)
def test_data_cannot_name_anything_else(trap, named, sentence):
    own = row("3", "count") | {"reward_func": named}
    for ask in (
        lambda: rewards.own_parts(named),
        lambda: rewards.parts_of(own, ("accuracy",)),
        lambda: score("<answer>3</answer>", own),
        lambda: rewards.score_group(["<answer>3</answer>"], own),
    ):
        with pytest.raises(ValueError, match=sentence):
            ask()
    assert not trap.exists() and "trap" not in sys.modules


def test_the_knob_can_name_what_data_cannot(trap):
    assert score("<answer>3</answer>", row("3", "count"), names=("trap:score",)) == {"trap:score": 1.0}
    assert trap.exists()  # so the tests above would have seen an import


def test_the_table_of_parts_is_the_only_list_of_names():
    assert not set(rewards.REWARDS) & set(rewards.GROUP_REWARDS)
    assert set(rewards.READS_ANSWER) <= set(rewards.REWARDS.values())
    with pytest.raises(ValueError) as error:
        rewards.own_parts("nope")
    assert ", ".join(sorted(PARTS)) in str(error.value)


def test_a_group_is_compared_by_accuracy_even_if_that_is_no_part():
    texts = ["<answer>3</answer>", "<answer>4</answer>"]
    parts = rewards.score_group(texts, row("3", "count"), ("length", "format"), [10, 20], 50)
    assert parts == [{"format": 0.0, "length": 0.5}, {"format": 0.0, "length": -0.5}]


def test_a_users_own_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def brevity(completion, row):\n    return 1 / len(completion)\n")
    monkeypatch.syspath_prepend(tmp_path)
    weights = rewards.check_weights({"accuracy": 1.0, "my_rewards:brevity": 2.0})
    parts = score("<answer>3</answer>", row("3", "count"), names=weights)
    assert total(parts, weights) == pytest.approx(1 + 2 / 18)
    with pytest.raises(SystemExit, match="my_rewards:longest"):
        rewards.check_weights({"my_rewards:longest": 1.0})


def test_environment_variables_of_the_seeds(monkeypatch, tmp_path):
    monkeypatch.setenv("FORMAT_REWARD_FACTOR", "0.5")
    assert rewards.check_weights({"accuracy": 1.0, "format": 1.0}) == {"accuracy": 1.0, "format": 0.5}
    monkeypatch.setenv("DEBUG_MODE", "true")
    with pytest.raises(SystemExit, match="LOG_PATH"):
        rewards.debug_log(["x"], [row("3", "count")], [1.0])
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "log.txt"))
    rewards.debug_log(["one", "two"], [row("3", "count")] * 2, [1.0, 0.0])
    rewards.debug_log(["three"], [row("3", "count")], [0.5], rank=1)
    text = (tmp_path / "log.txt").read_text()
    for entry in ("content: one", "content: two", "reward: 1.0", "solution: 3"):
        assert entry in text
    assert "three" in (tmp_path / "log.txt.rank1").read_text()


def test_the_pool_gives_the_same_parts_and_survives_hard_answers():
    groups = [
        ["<answer>\\sqrt{12}</answer>", "<answer>2</answer>"],
        ["<answer>9^{9^9}</answer>", "<answer>B</answer>"],
    ]
    rows = [row("2√{3}", "math"), row("B", "choice") | {"images": [object()]}]
    alone, pool = rewards.Scorer(0), rewards.Scorer(2)
    want = [
        [{"accuracy": 1.0, "format": 0.0}, {"accuracy": 0.0, "format": 0.0}],
        [{"accuracy": 0.0, "format": 0.0}, {"accuracy": 1.0, "format": 0.0}],
    ]
    try:
        assert pool.score(groups, rows) == alone.score(groups, rows) == want
    finally:
        pool.close()


@pytest.mark.parametrize("cut_short, empty", [("parse", []), ("verify", False)])
def test_what_the_alarm_cut_short_is_not_remembered(cut_short, empty, monkeypatch):
    def swallows_the_alarm(*args, **settings):
        try:
            work_for_ever("")
        except BaseException:
            return empty

    symbolic.load_sympy()
    symbolic.forget_half_done()
    with monkeypatch.context() as patch:
        patch.setattr(symbolic, "COMPARISON", 0.1)
        patch.setattr(f"math_verify.{cut_short}", swallows_the_alarm)
        assert symbolic.same_expression("\\sqrt{12}", "2\\sqrt{3}") is False
    assert symbolic.same_expression("\\sqrt{12}", "2\\sqrt{3}") is True


def work_for_ever(text):
    while True:
        pass


def test_symbolic_work_is_stopped_after_its_time(caplog):
    before, started = symbolic.timeouts, time.thread_time()
    assert symbolic.symbolic(work_for_ever, "x+1") is None
    assert 0.9 < time.thread_time() - started < 2
    assert symbolic.timeouts == before + 1 and "counts as wrong" in caplog.text
    assert symbolic.symbolic(lambda text: text, "x+1") == "x+1"  # the alarm is off again


def test_an_alarm_within_the_parser_poisons_no_cache(monkeypatch):
    """Wherever the alarm falls: the verdict of that time is wrong, and the next one right again."""
    symbolic.load_sympy()
    before = symbolic.timeouts
    for milliseconds in (1, 2, 3, 5, 8, 12, 20, 30):
        symbolic.verified.cache_clear()
        symbolic.forget_half_done()
        monkeypatch.setattr(symbolic, "COMPARISON", milliseconds / 1000)
        symbolic.same_expression("\\frac{\\sqrt{12}}{4} + \\sin(x)", "\\sin(x) + \\frac{\\sqrt{3}}{2}")
        monkeypatch.setattr(symbolic, "COMPARISON", 10.0)
        assert symbolic.same_expression("\\frac{\\sqrt{12}}{4} + \\sin(x)", "\\sin(x) + \\frac{\\sqrt{3}}{2}")
    assert symbolic.timeouts > before


def test_an_alarm_that_is_swallowed_counts():
    def swallows(text):
        try:
            work_for_ever(text)
        except BaseException:
            return True

    assert symbolic.attempt(swallows, "x", seconds=0.1) is None
    assert symbolic.attempt(swallows, "x", seconds=0.1) is None  # the alarm rings each time


def test_the_time_of_other_threads_and_of_waiting_does_not_count():
    def wait(seconds):
        time.sleep(seconds)
        return "done"

    def burn():
        until = time.time() + 1.0
        while time.time() < until:
            hashlib.sha256(bytes(2**22)).digest()  # without the lock of the interpreter

    burning = threading.Thread(target=burn)
    burning.start()
    assert symbolic.attempt(wait, 1.0, seconds=0.3) == "done"
    burning.join()


def test_all_references_and_parts_share_one_limit(monkeypatch):
    monkeypatch.setitem(rewards.VERIFIERS, "math", lambda answer, solution, row: work_for_ever(answer))
    ten = row(str([f"{i}/7" for i in range(10)]), "math")
    started = time.thread_time()
    parts = score("<think>x</think><answer>3</answer>", ten, names=("format", "accuracy", "fuzzy", "iou"))
    assert time.thread_time() - started < 2.5
    assert parts["format"] == 1.0 and parts["accuracy"] == parts["fuzzy"] == 0.0


@pytest.mark.parametrize(
    "error", [OverflowError, RecursionError, MemoryError, ValueError, KeyError, re.error]
)
def test_a_comparison_that_fails_is_wrong_and_counted(error, monkeypatch):
    def fails(answer, solution, row):
        raise error("x")

    monkeypatch.setitem(rewards.VERIFIERS, "math", fails)
    before = symbolic.failures[error.__name__]
    parts = score("<think>x</think><answer>3</answer>", row("3", "math"))
    assert parts == {"accuracy": 0.0, "format": 1.0}
    assert symbolic.failures[error.__name__] == before + 1


@pytest.mark.slow
def test_right_answers_stay_right_in_fresh_processes_under_load():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    code = "from tasks.grading import same_math; print(same_math('\\\\sqrt{12}', '2\\\\sqrt{3}'))"
    try:
        command = [sys.executable, "-c", code]
        fresh = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, process_group=0)
            for _ in range(4)
        ]
        assert [process.communicate(timeout=120)[0].strip() for process in fresh] == ["True"] * 4
    finally:
        for process in busy:
            process.kill()
            process.wait()


LONG = ["9" * 5000, "1" + "0" * 309, "0." + "0" * 400, "٣" * 500, "²" * 500, "(" * 3000, "\\frac{" * 900]
LONG += ["[1e308, -1e308, 1e308, 1e308]", "[9e999, 1, 2, 3]", "x^" * 900, '{"a":' * 900, "\n" * 9000]
# fmt: off
ODD = [
    "1e999999", "10**10**10", "1000000!", "nan", "Infinity", "-0", "i", "\\pi", "\u202e",
    "Ⅻ", "①", "３", "null",
    "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\int", "\\sum_{n=1}^{99}", "\\log",
    "|", "<", "\\cup",
]
# fmt: on


def test_no_completion_and_no_reference_is_more_than_a_score():
    rng = random.Random(1)

    def text():
        return "".join(rng.choices(PIECES + ODD, k=rng.randint(0, 12))) + rng.choice(["", *LONG]) * (
            rng.random() < 0.2
        )

    for _ in range(400):
        asked = row(text() or "3", rng.choice(sorted(rewards.VERIFIERS))) | {"problem": text()}
        if rng.random() < 0.2:
            asked["options"] = [text() for _ in range(10)]
        texts = [f"<think>{text()}</think><answer>{text()}</answer>", text(), f"so \\boxed{{{text()}}}"]
        started = time.thread_time()
        scored = rewards.score_group(texts, asked, PARTS, [1, 2, 3], 9, rng.random() < 0.5)
        assert time.thread_time() - started < 3 * 2.5
        assert all(type(part) is float and -1 <= part <= 1 for parts in scored for part in parts.values())


@pytest.mark.parametrize(
    "box", ["[1e308, -1e308, 1e308, 1e308]", "[" + "9" * 400 + ", 2, 3, 4]", "[1e999, 0, 1, 1]"]
)
def test_a_box_beyond_any_image_is_none(box):
    parts = score(
        f"<answer>{box}</answer>", row("[1, 2, 3, 4]", "grounding"), names=("accuracy", "iou", "format")
    )
    assert parts == {"accuracy": 0.0, "iou": 0.0, "format": 0.0}


# -----------------------------------------------------------------------------
# any text at all
# -----------------------------------------------------------------------------

# fmt: off
MORE = [
    "\\approx", "\\leq", "\\infty", "\\pm", "[", "]", ":", "∪",
    "and ", "is ", "(A) ", "B. ", "10^", "1/2",
]
# fmt: on
LATEX = st.lists(st.sampled_from(PIECES + MORE), max_size=30).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(LATEX, st.text(max_size=200), st.text(max_size=20).map(lambda t: t * 5000)),
    st.one_of(LATEX, st.text(max_size=40)),
    st.sampled_from(sorted(grading.VERIFIERS)),
)
def test_any_text_is_scored_quickly_and_twice_the_same(text, solution, task):
    given_row = row(solution or "3", task) | {"problem": solution}
    names = ("accuracy", "format", "iou", "fuzzy", "reasoning_steps", "repetition")
    for completion, strict in ((f"<answer>{text}</answer>", True), (text, False)):
        started = time.process_time()  # not the clock on the wall: the machine may be busy
        first = score(completion, given_row, strict, names)
        assert time.process_time() - started < 2
        for cached in (symbolic.verified, symbolic.constant_ratio, symbolic.real_value):
            cached.cache_clear()
        assert score(completion, given_row, strict, names) == first
        assert all(-1 <= part <= 1 for part in first.values())
