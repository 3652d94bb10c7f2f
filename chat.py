"""Ask a policy about a picture, in the prompt and at the size of picture that it was trained with.

    python chat.py out/tiny_grpo/step-000160 scene.png "How many items are there in the image?"
    python chat.py out/tiny_grpo/step-000160 scene.png           # asks for questions until an empty one
    python chat.py Qwen/Qwen2.5-VL-3B-Instruct a.jpg b.jpg "Which is older?" --template=bare
    python chat.py out/tiny_grpo/step-000160 "scenes:clevr?layout=grid&objects=1-8&seed=7" "How many ...?"

The last draws a scene (tasks/drawn.py) and writes it to scene.png.

The answer appears as it is written. Every question stands for itself, as in training.
"""

import json
import sys
from pathlib import Path

from configurator import configure

# common, data, qwen, torch and transformers are imported in main(): a mistyped command ends without them

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with --key=value
template = ""             # prompt: 'think', 'direct' (answer only), 'bare' (the question alone), ...
min_pixels = 0            # images are resized to areas between these two;
max_pixels = 0            # these three, if not set: as in the run that made the checkpoint
number = True             # the prompt asks for a number, as for counts and formulas; False: for an answer
temperature = 0.0         # 0 = greedy
max_completion_length = 512  # tokens
max_prompt_length = 8192  # tokens, visual ones included
dtype = "auto"            # 'auto': bfloat16 on a GPU, float32 on a CPU
seed = 0
# -----------------------------------------------------------------------------
# fmt: on

USAGE = 'usage: python chat.py MODEL [IMAGE ...] ["question"] [--key=value ...]; --help lists the knobs'
SCENE = "scene.png"  # where a drawn scene is written, for the eye
UNTRAINED = {"template": "think", "min_pixels": 3136, "max_pixels": 401408}


def read_arguments(words: list[str]) -> tuple[str, list[str], str]:
    """Model, image files and question ("" for none) of the words before the knobs.

    A word that names a file is an image; the last one is the question if it does not. Raises SystemExit for
    an image that is not there.
    """
    if not words:
        raise SystemExit(USAGE)
    model, *rest = words
    question = ""
    if rest and not is_image(rest[-1]):
        question = rest.pop()
    looks_like_file = Path(question).suffix and " " not in question
    for name in [*rest, *([question] if looks_like_file else [])]:
        if not is_image(name):
            raise SystemExit(f"image: there is no file '{name}'")
    return model, rest, question


def is_image(word: str) -> bool:
    return word.startswith("scenes:") or Path(word).is_file()


def run_knobs(model: str) -> dict:
    """Template and picture sizes of the run in whose folder a checkpoint lies; those of UNTRAINED elsewhere.

    A policy that has learnt on small pictures counts wrong on large ones, and without a word.
    """
    config = Path(model).parent / "config.json"
    try:
        of_run = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a model of the hub, or one that was copied without its run
        return UNTRAINED
    knobs = UNTRAINED | {name: of_run[name] for name in UNTRAINED if name in of_run}
    if knobs["template"] == "auto":  # the data set's own, which is not known here
        knobs["template"] = UNTRAINED["template"]
    return knobs


def questions(first: str):
    """The question of the command line, or what is typed until an empty line."""
    if first:
        yield first
        return
    while True:
        try:
            question = input("question: ").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    configure(globals(), [word for word in sys.argv[1:] if word.startswith("-")], __file__)
    model, files, first = read_arguments(words)
    knobs = run_knobs(model)
    form = template or knobs["template"]
    smallest = min_pixels or knobs["min_pixels"]
    largest = max_pixels or knobs["max_pixels"]

    import torch
    from transformers import GenerationConfig, TextStreamer

    import common
    import data
    import qwen

    _, _, device = common.setup(seed)
    kind = dtype
    if dtype == "auto":
        kind = "bfloat16" if device.type == "cuda" else "float32"
    processor = qwen.load_processor(model)
    net = qwen.load_model(model, kind, "sdpa", device).eval()
    net.set_attn_implementation("sdpa")  # transformers' own attention: there are no packed groups here
    print(f"prompt '{form}', pictures of {smallest:,} to {largest:,} pixels")

    settings = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        max_new_tokens=max_completion_length,
        eos_token_id=qwen.end_ids(processor),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=qwen.banned_ids(net.config, processor),
    )
    for place, name in enumerate(files):
        if name.startswith("scenes:"):
            data.load_rows(name)[0]["images"][0].save(SCENE)
            print(f"{SCENE}: drawn, {name}")
            files[place] = SCENE
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    for question in questions(first):
        # by the look of its answer a row asks for a number or not
        record = {"images": files, "problem": question, "solution": "0" if number else "unknown"}
        try:
            row = data.Rows([record], "question", image_root=str(Path.cwd()))[0]
            prompt = data.encode_prompt(row, processor, form, max_prompt_length, smallest, largest)
        except data.BadRow as problem:
            print(problem)
            continue
        ids = torch.tensor([prompt["input_ids"]], device=device)  # (1, prompt)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if files:
            inputs["pixel_values"] = prompt["pixel_values"].to(device, net.dtype)
            inputs["image_grid_thw"] = prompt["image_grid_thw"].to(device)
            inputs["mm_token_type_ids"] = (ids == net.config.image_token_id).int()
        print(prompt["opened"], end="")  # what the chat template has begun is the policy's, too
        net.generate(**inputs, generation_config=settings, streamer=streamer)


if __name__ == "__main__":
    main()
