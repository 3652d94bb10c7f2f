"""Words: what a sentence says, and which texts are the same. All expectations are worked out by hand."""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
from tasks.grading import words  # noqa: E402


@pytest.mark.parametrize(
    "sentence, want",
    [
        ("red", ["red"]),
        ("The ball is red.", ["red"]),
        ("the ball is a red one", ["red"]),
        ("It's red", ["red"]),
        ("It’s red!", ["red"]),
        ("The colour is: red", ["red"]),
        ("Colour: red", ["red"]),
        ("Therefore, the ball is red", ["red"]),
        ("The ball that is left is red", ["red"]),
        ("The ball is most likely red", ["red"]),
        ("The pressure will increase", ["increase"]),
        ("The arrow is pointing to the spleen", ["spleen"]),
        ("The arrow points to the spleen", ["spleen"]),
        ("The image shows a kidney", ["kidney"]),
        ("It is the embryonic stage of pregnancy", ["embryonic"]),
        ("odd function", ["odd"]),
        ("Red is the answer", ["red"]),
        ("The red one is the correct option", ["red"]),
        ("Blue is correct", ["blue"]),
        ("It is right", ["right"]),
        ("Clara is the tallest", ["clara"]),
        ("Bob has the most apples", ["bob"]),
        ("The vase was white", ["white"]),
        ("The vase is made of glass", ["glass"]),
        ("The sign says stop", ["stop"]),
        ("The car looks red", ["red"]),
        ("The car seems to be red", ["red"]),
        ("The arrow points north", ["north"]),
        ("The arrow is pointing north", ["north"]),
        ("The arrow points at the spleen", ["spleen"]),
        ("The peak occurred in 1998", ["1998"]),
        ("The peak was in the year 1998", ["1998"]),
        ("It is in Paris", ["paris"]),
        ("Based on the chart, the bar is red", ["red"]),
        ("It looks red but is blue", []),
        ("The sign says red reads blue", []),
        ("The cube is red and the ball is blue", []),
        ("I doubt it is red", []),
        ("I wonder whether it is red", []),
        ("Nobody is red", []),
        ("What is red", []),
        ("Yes it is red", []),
        ("It is the tallest", ["tallest"]),
        ("There is no change", ["no change"]),
        ("The ball is not red", ["not red"]),  # which is not red
        ("red is blue", ["blue"]),
        ("is red is blue", []),
        ("is red is blue is green", []),
        ("red, blue", []),
        ("red; blue", []),
        ("red. blue", []),
        ("red vs blue", []),
        ("Is it red?", []),
        ("Not the ball is red", []),
        ("Either the ball or the cube is red", []),
        ("red is not the answer", ["not the answer"]),
        ("word " * 30, []),
    ],
)
def test_what_a_sentence_says(sentence, want):
    assert words.said(sentence) == want


@pytest.mark.parametrize(
    "answer, reference, want",
    [
        ("The ball is red.", "red", 1),
        ("The ball is red.", "ball", 0),
        ("The ball is dark red.", "red", 0),
        ("It is a cube", "Cube", 1),
        ("Clara is the tallest", "Clara", 1),
        ("Clara is not the tallest", "Clara", 0),
        ("Clara is the tallest but Bob", "Clara", 0),
        ("is red is blue is green", "red", 0),
        ("is red is blue is green", "green", 0),
        ("cube sphere cylinder", "cube", 0),
        ("cube sphere cylinder", "cylinder", 0),
        ("red because blue", "red", 0),
        ("red because it is blue", "red", 0),
        ("red blue", "red", 0),
        ("red blue", "blue", 0),
        ("red/blue", "red", 0),
        ("both red and blue", "blue", 0),
        ("Red is the answer, or blue", "red", 0),
        ("red or blue", "blue", 0),
        ("the thing next to the cube", "cube", 0),
        ("quarter past", "quarter", 0),
        ("It is quarter past", "quarter", 0),
        ("Yes", "yes", 1),
        ("Yes, because they touch", "Yes", 1),
        ("No, because there is no overlap", "No", 1),
        ("The statement is true.", "True", 1),
        ("The statement is not true", "True", 0),
        ("The statement is true and false", "True", 0),
        ("Yes or no", "Yes", 0),
        ("Yes, perhaps", "Yes", 0),
        ("Yes, that is true", "Yes", 1),
        ("No, that is true", "No", 0),
        ("No it is not", "No", 1),
        ("No one knows", "No", 0),
        ("Yes, no", "Yes", 0),
        ("Yes, no", "No", 0),
        ("No, but yes", "No", 0),
        ("Yesterday", "Yes", 0),
        ("neither even nor odd", "neither", 1),
        ("neither cat nor dog", "neither", 0),
        ("It is 5", "5", 0),  # no word: numbers are compared elsewhere
        ("It is red and blue", "red and blue", 0),  # nor is a list
    ],
)
def test_names(answer, reference, want):
    assert words.names(answer, reference) is bool(want)


@pytest.mark.parametrize(
    "text, want",
    [
        ("red", 1),
        ("dark red", 1),
        ("o'clock", 1),
        ("counter-clockwise", 1),
        ("no", 0),
        ("sin x", 0),
        ("three cubes", 0),
        ("red and blue", 0),
        ("ABC", 0),
        ("12 cm", 0),
        ("x + y", 0),
        ("", 0),
    ],
)
def test_only_words(text, want):
    assert words.only_words(text) is bool(want)


@pytest.mark.parametrize(
    "answer, option, want",
    [
        ("The Red.", "red", 1),
        ("a red", "red", 1),
        ("an apple!", "Apple", 1),
        ("`Dark blue`", "dark blue", 1),
        ("“dark blue.”", "dark blue", 1),
        ("o’clock", "o'clock", 1),
        ("CH3COOH", "CH_3COOH", 1),
        ("Delta T", "\\Delta T", 1),
        ("blue", "dark blue", 0),
        ("reds", "red", 0),
        ("A major", "major", 0),
        ("A. cat", "cat", 0),
        ("1 2", "12", 0),
        ("an", "the", 0),
        ("", "", 0),
        (".", "!", 0),
    ],
)
def test_same_words(answer, option, want):
    assert words.same_words(answer, option) is bool(want)


@pytest.mark.parametrize(
    "answer, reference, want",
    [
        ("Severn", "the Severn", 1),
        ("The Severn", "Severn", 1),
        ("the severn.", "Severn", 1),
        ('"The Severn."', "Severn", 1),
        ("A cube", "cube", 1),
        ("an apple", "apple", 1),
        ("**Severn**", "the Severn", 1),
        ("\\boxed{\\text{the Severn}}", "Severn", 1),
        ("Thames", "the Severn", 0),
        ("the", "Severn", 0),
        ("the", "", 0),
        ("Theseus", "seus", 0),
        ("A minor", "minor", 0),
        ("A positive", "positive", 0),
        ("a b", "b", 0),
        ("the the Severn", "Severn", 0),
        ("river the Severn", "Severn", 0),
        ("Severn or Thames", "Severn", 0),
        ("It is the Severn", "Severn", 1),
        ("is red is blue", "red", 0),
        ("Severn!", "Severn", 1),
        ("It is the Severn or the Thames", "Severn", 0),
        ("It is not the Severn", "Severn", 0),
        ("It isn't the Severn", "Severn", 0),
        ("Is it the Severn?", "Severn", 0),
        ("It is red. It is blue.", "red", 0),
        ("It is red. It is blue.", "blue", 0),
        ("It is a red shape", "red style", 0),  # nothing fuzzy in a sentence either
        ("It is a red shape", "red shape", 1),
        ("The peak was in 1998.", "1998", 1),
        ("In 1998", "1998", 1),
        ("The peak was in 1998 or 1999.", "1998", 0),
        ("The peak was in 1998 was 1999.", "1999", 0),
        ("Yes, there is a dog on the sofa.", "yes", 1),
        ("Yes it is.", "yes", 1),
        ("No, there is no dog.", "no", 1),
        ("No, that is false.", "no", 1),
        ("No, that is false.", "false", 0),
        ("Yes, that is true.", "yes", 1),
        ("Yes, that is true.", "true", 0),
        ("Yes, it is false.", "yes", 0),
        ("Yes, there is no dog.", "yes", 0),
        ("No dog is there.", "no", 0),
        ("Yes, red", "red", 0),
        ("3 cubes are red", "red", 0),  # it may say 3
        ("Two are red", "red", 0),
        ("One is red", "red", 0),
        ("That one is red", "red", 1),
        ("= 3 It is red", "red", 0),
        ("In 1998 the winner was Clara", "Clara", 1),
    ],
)
def test_same_text(answer, reference, want):
    assert words.same_text(answer, reference) is bool(want)


THINGS = ["red", "blue", "dark red", "cube", "sphere", "Clara", "increase", "quarter", "quarter past", "left"]
BETWEEN = [
    " ",
    ", ",
    " or ",
    " is ",
    " is the ",
    " and ",
    "; ",
    ". ",
    "/",
    ": ",
    " because ",
    " not ",
    "\n",
    " one ",
]
PIECES = st.sampled_from(
    THINGS + ["the", "is", "it is", "The ball is", "most likely", "has", "that is", "the answer"]
)
SENTENCES = st.lists(st.tuples(PIECES, st.sampled_from(BETWEEN)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(SENTENCES)
def test_no_sentence_says_two_things(pieces):
    sentence = "".join(piece + between for piece, between in pieces)
    assert sum(words.names(sentence, thing) for thing in THINGS) <= 1
    assert sum(words.same_text(sentence, thing) for thing in THINGS) <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(THINGS),
    st.sampled_from(["{}", "It is {}", "The answer is {}", "The ball is the {}"]),
    st.sampled_from(["{}", " {} ", "{}.", "**{}**", "${}$", "\\boxed{{{}}}", "\\text{{{}}}", "\n{}\n"]),
)
def test_decoration_changes_no_verdict(thing, sentence, decoration):
    answer = decoration.format(sentence.format(thing))
    assert [other for other in THINGS if words.names(answer, other)] == [thing]


@pytest.mark.parametrize(
    "text", ["a", "is ", "red is ", "the ", "that ", "; ", "most likely ", "one of a ", "'", "\\text{"]
)
def test_long_answers_are_read_in_no_time(text):
    start = time.perf_counter()
    for verifier in (words.names, words.same_words, words.same_text):
        verifier(text * 20_000, "red")
        verifier("red", text * 20_000)
    assert time.perf_counter() - start < 1
