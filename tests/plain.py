"""What recorder.py has written, and log-probs by transformers alone; for test_step.py and test_engines.py.

One row per completion, no packing, eager attention, transformers' own positions: nothing of the project's
model code.
"""

import json
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from helpers import records
from transformers import AutoModelForImageTextToText

END_TOKENS = ("<|im_end|>", "<|endoftext|>")

# -----------------------------------------------------------------------------
# the records
# -----------------------------------------------------------------------------


def load(folder: Path, kind: str) -> list[list[dict]]:
    """The records of a kind, [number][rank]."""
    result = []
    while (folder / f"{kind}-{len(result)}-rank0.pt").exists():
        paths = sorted(folder.glob(f"{kind}-{len(result)}-rank*.pt"))
        result.append([torch.load(path, weights_only=False) for path in paths])
    return result


@cache
def recording(out_dir: Path) -> SimpleNamespace:
    """A run with its records in out_dir/records: knobs, log, first and last checkpoint, what was recorded."""
    knobs = json.loads((out_dir / "config.json").read_text())
    rollouts = load(out_dir / "records", "rollout")
    return SimpleNamespace(
        knobs=knobs,
        log=[line for line in records(out_dir) if line["step"] > 0],
        start=Path(knobs["model"]),
        end=out_dir / f"step-{knobs['steps']:06d}",
        takes=load(out_dir / "records", "take"),
        rollouts=[ranks for ranks in rollouts if ranks[0]["settings"]["temperature"] > 0],
        evaluations=[ranks for ranks in rollouts if ranks[0]["settings"]["temperature"] == 0],
        updates=load(out_dir / "records", "step"),
        syncs=load(out_dir / "records", "sync"),
    )


# -----------------------------------------------------------------------------
# plain transformers
# -----------------------------------------------------------------------------


def load_model(folder: Path):
    knobs = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForImageTextToText.from_pretrained(folder, **knobs)


def with_weights(folder: Path, weights: dict, knobs: dict):
    """The checkpoint's architecture with recorded weights, LoRA's adapters merged."""
    model = load_model(folder)
    for name, p in model.named_parameters():
        p.data.copy_(merged(name, weights, knobs))
    return model


def lora_factors(name: str, weights: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A (rank, in) and B (out, rank) that were trained beside the weight of this name, if they were."""
    layer = name.removesuffix(".weight")
    if f"{layer}.lora_A.default.weight" not in weights:
        return None
    return weights[f"{layer}.lora_A.default.weight"], weights[f"{layer}.lora_B.default.weight"]


def merged(name: str, weights: dict, knobs: dict) -> torch.Tensor:
    """W + alpha / rank * B A (arXiv:2106.09685, sec. 4.1) where there are adapters, else W as recorded."""
    layer, _, kind = name.rpartition(".")
    weight = weights[name] if name in weights else weights[f"{layer}.base_layer.{kind}"]
    factors = lora_factors(name, weights)
    if factors is None:
        return weight
    a, b = factors
    return weight + knobs["lora_alpha"] / knobs["lora_rank"] * b @ a


@cache
def added_tokens(folder: Path) -> list[dict]:
    return json.loads((folder / "tokenizer.json").read_text())["added_tokens"]


@cache
def end_tokens(folder: Path) -> list[int]:
    return [token["id"] for token in added_tokens(folder) if token["content"] in END_TOKENS]


@cache
def banned_tokens(folder: Path) -> torch.Tensor:
    """(V,) bool: special tokens that do not end a turn, and ids without a token; from the files."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    banned = torch.ones(config["text_config"]["vocab_size"], dtype=torch.bool)
    banned[list(tokenizer["model"]["vocab"].values())] = False
    for token in added_tokens(folder):
        banned[token["id"]] = token["special"]
    banned[end_tokens(folder)] = False
    return banned


def distributions(model, prompt: dict, ids: list[int], temperature=1.0, banned=None) -> torch.Tensor:
    """Log-probs (L, V) of all tokens at a completion's places, of softmax(logits / temperature)."""
    row = torch.tensor([prompt["input_ids"] + ids])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "use_cache": False}
    inputs["mm_token_type_ids"] = (row == model.config.image_token_id).int()
    if prompt["pixel_values"] is not None:
        inputs |= {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
    logits = model(**inputs).logits[0]
    before = len(prompt["input_ids"]) - 1  # the last token of the prompt predicts the first of the completion
    logits = logits[before : before + len(ids)] / temperature
    if banned is not None:
        logits = logits.masked_fill(banned, -math.inf)
    return logits.log_softmax(-1)


def chosen(logps: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Log-probs (L,) of the tokens of a completion."""
    return torch.stack([logps[t, ids[t]] for t in range(len(ids))])
