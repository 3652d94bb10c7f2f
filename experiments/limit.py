"""The physical limit of a GRPO step on a GPU: what it must compute and read, and how fast that could be done.

    python -m experiments.limit                       # Qwen2-VL-2B on an H100, as in bench_gpu.sh
    python -m experiments.limit --model=Qwen/Qwen2.5-VL-3B-Instruct --gpu=a100 --tokens=256
    python -m experiments.limit --seconds=2.1         # a measured step as a multiple of it

Needs no GPU and no weights. Matrix products take 2 operations a parameter and token (a backward pass twice
that) at the share `mfu` of what the card can do; a decoding step reads the language model and the keys and
values once. Sampling's host time, collectives and everything small are left out: it is a limit, no estimate.
"""

import json
import sys
from typing import NamedTuple

from configurator import configure
from memory import Shape, head_parameters, language_parameters, read_shape, tower_parameters

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with  python -m experiments.limit --key=value
model = "Qwen/Qwen2-VL-2B-Instruct"  # checkpoint folder or hub id
gpu = "h100"              # 'h100', 'h200', 'a100', 'l40s', '4090'
prompts = 16              # of a step
group = 8                 # completions per prompt
tokens = 128              # of each completion
image = 480               # width in pixels; 28 x 28 are one visual token
image_height = 320        # 0 = square
text_tokens = 113         # of a prompt beside the image
beta = 0.04               # 0.0: no reference model
grad_checkpointing = True # the forward pass once more in the backward pass
mfu = 0.5                 # share of the peak that matrix products reach
seconds = 0.0             # a measured step, to be shown beside the limit; 0 = none
# -----------------------------------------------------------------------------
# fmt: on

# bytes a second of the memory, dense bfloat16 operations a second, by data sheet, SXM where there is one
GPUS = {
    "h100": (3.35e12, 989e12),
    "h200": (4.8e12, 989e12),
    "a100": (2.04e12, 312e12),
    "l40s": (0.864e12, 362e12),
    "4090": (1.008e12, 165e12),
}


class Work(NamedTuple):
    """A step: P prompts of so many tokens and patches, G completions each."""

    prompts: int
    group: int
    prompt_tokens: int
    tokens: int
    patches: int  # of the image of a prompt; merge x merge of them are a visual token
    beta: float
    recomputes: bool


def work_of(config: dict) -> Work:
    """From the knobs of this script, which are those of bench.py, too."""
    columns = round(config["image"] / 28)
    lines = round((config["image_height"] or config["image"]) / 28)
    return Work(
        prompts=config["prompts"],
        group=config["group"],
        prompt_tokens=columns * lines + config["text_tokens"],
        tokens=config["tokens"],
        patches=4 * columns * lines,
        beta=config["beta"],
        recomputes=config["grad_checkpointing"],
    )


def layer_parameters(s: Shape) -> int:
    """Of the language model without embedding and head, which are one matrix where they are tied."""
    return language_parameters(s) - head_parameters(s) * (1 if s.tied else 2)


def pass_operations(s: Shape, w: Work, copies: int = 1) -> float:
    """Of a forward pass over the step, each prompt `copies` times: 1 packed, `group` in a row of its own.

    2 n T of the language model, 2 n of the head for each completion's token, 2 n of the tower for each patch,
    and 4 A (pairs of tokens) of the attention in each layer.
    """
    responses = w.prompts * w.group * w.tokens
    prompts = w.prompts * copies * w.prompt_tokens
    layers, head = layer_parameters(s), head_parameters(s)
    pairs = w.prompts * copies * w.prompt_tokens**2 / 2
    pairs += responses * (w.prompt_tokens + w.tokens / 2)
    return (
        2 * layers * (prompts + responses)
        + 2 * head * responses
        + 2 * tower_parameters(s) * w.prompts * copies * w.patches
        + 4 * s.layers * s.heads * s.head_size * pairs
    )


def limits(s: Shape, w: Work, bandwidth: float, operations: float, mfu: float, copies: int = 1) -> dict:
    """{phase: seconds} at `bandwidth` bytes and mfu * `operations` a second."""
    layers, head = layer_parameters(s), head_parameters(s)
    weights = language_parameters(s) + tower_parameters(s)
    token_bytes = 2 * 2 * s.layers * s.key_heads * s.head_size  # keys and values in bfloat16
    context = w.prompt_tokens + w.tokens / 2  # of a sequence, on average over its decoding steps
    step_bytes = 2 * (layers + head) + w.prompts * w.group * context * token_bytes
    prefill = w._replace(group=0)
    forward = pass_operations(s, w, copies) / (mfu * operations)
    return {
        "decode": w.tokens * step_bytes / bandwidth,
        "prefill": pass_operations(s, prefill) / (mfu * operations),
        "reference": forward if w.beta > 0 else 0.0,
        "update": (4 if w.recomputes else 3) * forward,
        # AdamW reads gradient, master and two moments in float32 and writes the latter three and the weights;
        # the engine's weights are written once more
        "optimizer, sync": weights * (4 * 4 + 3 * 4 + 2 + 2 * 2) / bandwidth,
    }


def gpu_named(name: str) -> str:
    """The key of GPUS for "NVIDIA H100 80GB HBM3", "" if it is none of them."""
    return next((key for key in GPUS if key in name.lower()), "")


def text(s: Shape, w: Work, gpu: str, mfu: float, seconds: float = 0.0) -> str:
    """The table of a step's phases, packed and with the prompt once for each completion."""
    packed = limits(s, w, *GPUS[gpu], mfu)
    repeated = limits(s, w, *GPUS[gpu], mfu, copies=w.group)
    completions = w.prompts * w.group
    title = f"limit of a step, one {gpu.upper()}, {mfu:.0%} of its operations"
    lines = [f"{title:<52}{'packed':>10}{'repeated':>10}"]
    lines += [f"  {phase + ', s':<50}{packed[phase]:>10.3f}{repeated[phase]:>10.3f}" for phase in packed]
    sums = sum(packed.values()), sum(repeated.values())
    lines.append(f"  {'sum, s':<50}{sums[0]:>10.2f}{sums[1]:>10.2f}")
    lines.append(
        f"  {'completions a second':<50}{completions / sums[0]:>10.0f}{completions / sums[1]:>10.0f}"
    )
    tera = pass_operations(s, w) / 1e12, pass_operations(s, w, w.group) / 1e12
    lines.append(f"  {'a forward pass, TFLOP':<50}{tera[0]:>10.1f}{tera[1]:>10.1f}")
    if seconds:
        lines.append(f"measured: {seconds:.2f} s a step, {seconds / sums[0]:.1f} times the limit")
    return "\n".join(lines)


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)
    if gpu not in GPUS:
        raise SystemExit(f"gpu: '{gpu}' is none of {', '.join(GPUS)}")
    print(text(read_shape(model), work_of(config), gpu, mfu, seconds))
    found = limits(read_shape(model), work_of(config), *GPUS[gpu], mfu)
    print(json.dumps({phase: round(value, 4) for phase, value in found.items()}))
