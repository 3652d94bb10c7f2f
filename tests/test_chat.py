"""chat.py: which words of a command are what, and that its answer is the policy's own."""

import pytest
import torch
from helpers import run

import chat
import data
import qwen
import sampling


def test_which_words_are_images_and_which_the_question(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert chat.read_arguments(["m", "a.png", "How many?"]) == ("m", ["a.png"], "How many?")
    assert chat.read_arguments(["m", "a.png", "b.jpg"]) == ("m", ["a.png", "b.jpg"], "")
    assert chat.read_arguments(["m", "2 + 2?"]) == ("m", [], "2 + 2?")
    assert chat.read_arguments(["m", "What is 3.5 x 2?"]) == ("m", [], "What is 3.5 x 2?")
    for words, sentence in (
        ([], "^usage"),
        (["m", "c.png", "How many?"], "no file 'c.png'"),
        (["m", "a.png", "c.png"], "no file 'c.png'"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            chat.read_arguments(words)


@pytest.mark.slow
def test_the_answer_is_the_greedy_completion_of_the_policy(tiny_folder, tmp_path):
    """By transformers' generate as by our own sampler, token by token."""
    folder = tiny_folder()
    record = data.load_rows("scenes:clevr?rows=3&layout=grid&objects=1-4")[1]
    record["images"][0].save(tmp_path / "scene.png")
    question = "How many items are there in the image?"
    said = run(
        ["chat.py", folder, str(tmp_path / "scene.png"), question, "--max_completion_length=16"],
        tmp_path / "log",
    )

    processor = qwen.load_processor(folder)
    net = qwen.load_model(folder, "float32", say=lambda line: None)
    prompt = data.encode_prompt(record | {"problem": question}, processor, "think", 8192)
    banned, end = qwen.banned_ids(net.config, processor), qwen.end_ids(processor)
    knobs = {"top_p": 1.0, "top_k": 0, "max_tokens": 16, "banned": banned, "end": end}
    with torch.no_grad():
        completion = sampling.rollout_hf(net, [prompt], 1, [0], 0.0, **knobs)[0][0]
    text = processor.tokenizer.decode(completion.ids, skip_special_tokens=True)
    assert text.strip() and text.strip() in said
