"""The policy: load any Qwen-VL checkpoint by its config.json, run packed rows through it, build the tiny model.

    python model.py out/tiny                        # a real Qwen2.5-VL of 0.7 M parameters, random weights
    python model.py out/tiny --family=qwen2_vl      # or qwen2_vl, qwen3_vl

The G completions of a prompt share the prompt and its images. Instead of G rows [prompt | completion], a group is ONE
row [prompt | c_1 | ... | c_G]: images encoded once, prompt read once, G(P+C) tokens become P+GC. What keeps the
completions apart is the attention mask, and M-RoPE positions that restart after the prompt for each of them:

    token           p p p | a a a | b b | pad          group    0 0 0 | 0 0 0 | 0 0 | -1
    position        0 1 2 | 3 4 5 | 3 4 | 0            segment  0 0 0 | 1 1 1 | 2 2 |  0

    mask[q, k] = q >= k  and  group[q] == group[k]  and  (segment[k] == 0 or segment[q] == segment[k])

Shapes: B rows in a micro-batch, T padded tokens of a row, N response tokens in the micro-batch, V vocabulary, D hidden.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                  "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# -----------------------------------------------------------------------------
# loading
# -----------------------------------------------------------------------------


def check_model_folder(path: str) -> str:
    """The model_type in path/config.json. Raises SystemExit with the remedy if it is no Qwen-VL checkpoint folder."""
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        if not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/", "out/")):
            return "hub id"  # looks like org/name: transformers will fetch it, and say so if it cannot
        raise SystemExit(f"model: no config.json in '{path}'; name a checkpoint folder or a hub id, "
                         f"or make the tiny model with: python model.py {path}")  # fmt: skip
    family = json.loads(config_file.read_text()).get("model_type")
    if family not in FAMILIES:
        raise SystemExit(f"model: '{path}' is a '{family}' checkpoint; this code trains {', '.join(FAMILIES)}")
    return family


def vision_attention(name: str, device: str) -> str:
    """The vision tower's attention kernel: flash attention where it is installed. The language model always uses sdpa.

    The packed rows need an arbitrary boolean mask, which flash attention does not take; the vision tower has plain
    variable-length windows, where it is much faster than sdpa (which loops over the windows).
    """
    if name not in ("auto", "sdpa", "flash_attention_2"):
        raise SystemExit(f"attn: '{name}' is none of auto, sdpa, flash_attention_2")
    from transformers.utils import is_flash_attn_2_available

    has_flash = device != "cpu" and is_flash_attn_2_available()
    if name == "flash_attention_2" and not has_flash:
        raise SystemExit("attn: flash_attention_2 needs the flash-attn package and a GPU; install it or set attn='sdpa'")
    return "flash_attention_2" if has_flash and name != "sdpa" else "sdpa"


def load_model(path: str, dtype: str = "bfloat16", attn: str = "auto", device: str = "cpu", say=print) -> nn.Module:
    """The transformers model of a Qwen-VL checkpoint folder (or hub id), chosen by config.json, on `device`."""
    from transformers import AutoModelForImageTextToText

    if dtype not in DTYPES:
        raise SystemExit(f"dtype: '{dtype}' is none of {', '.join(DTYPES)}")
    check_model_folder(path)
    vision = vision_attention(attn, str(device))
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation="sdpa")
    if vision != "sdpa":
        model.model.visual.set_attn_implementation(vision)
    say(f"model: {type(model).__name__} {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {dtype}, "
        f"attention sdpa, in the vision tower {vision}")  # fmt: skip
    return model.to(device)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze the model and put LoRA adapters (arXiv:2106.09685) of this rank on all linear layers of its language model, in place.

    W x becomes W x + alpha / rank * B A x; only A and B are trained: with rank 16 about 1 % of the weights, so gradients and Adam's
    moments almost vanish from memory. B starts at 0, so the policy starts as it was. The vision tower stays frozen.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    layers = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=layers), model)


def without_lora(policy: nn.Module):
    """The policy as it was before LoRA: a function of a micro-batch. It serves as the reference and takes no memory."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)]

    def reference(batch):
        for layer in layers:
            layer.enable_adapters(False)
        try:
            return policy(batch)
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    return reference


def load_processor(path: str):
    """Tokenizer, image processor and chat template of a checkpoint folder."""
    from transformers import AutoProcessor

    check_model_folder(path)
    return AutoProcessor.from_pretrained(path)


def end_ids(processor) -> list[int]:
    """Both tokens that end a turn in Qwen's models: <|im_end|> and <|endoftext|> (which is also the padding)."""
    return [processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]


def banned_ids(model_config, processor) -> list[int]:
    """Ids the policy must never produce: special tokens other than the two end tokens, and padding of the vocabulary.

    A sampled <|image_pad|> makes the next forward pass fail ("image features and image tokens do not match"). The same
    ids are masked in the sampler and in the trainer's logits, so that both describe one and the same distribution.
    """
    tokenizer, rows = processor.tokenizer, model_config.get_text_config().vocab_size
    # <think>, <tool_call> and the like are "added" tokens but not special ones: those stay allowed
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special and i < rows}
    return sorted((special | set(range(len(tokenizer), rows))) - set(end_ids(processor)))


# -----------------------------------------------------------------------------
# packed rows
# -----------------------------------------------------------------------------


def pack(prompts: list[dict], completions: list[list[tuple[int, list[int]]]], model: nn.Module, row_tokens: int, micro_tokens: int,
         pad_id: int = 0) -> list[dict]:  # fmt: skip
    """Micro-batches that hold every completion of every group once.

    prompts:      encoded prompts (data.encode_prompt): `input_ids` with expanded image placeholders, `pixel_values`, `image_grid_thw`
    completions:  per prompt a list of (start, token ids); `start` is where the completion's tokens stand in the step's
                  flat array of response tokens, so that advantages, old and reference log-probs are looked up by `token`
    row_tokens:   length a row is filled up to (attention is quadratic in it); a longer group is split into rows that
                  each repeat the prompt, and one completion always stays in one row
    micro_tokens: rows are batched up to B * T <= micro_tokens

    A micro-batch: input_ids (B, T), position_ids (3, B, T), group (B, T), segment (B, T), pixel_values, image_grid_thw, and per
    response token: at (N,) flat index into (B, T) of the position that PREDICTS it (for a completion's first token that is
    the last token of the prompt), target (N,) its id, token (N,) its place in the step's flat array.
    """
    blocks = []  # (prompt, some of its completions, tokens)
    for prompt, group in zip(prompts, completions, strict=True):
        room = max(row_tokens - len(prompt["input_ids"]), 1)
        part, used = [], 0
        for start, ids in group:
            if part and used + len(ids) > room:
                blocks.append((prompt, part, len(prompt["input_ids"]) + used))
                part, used = [], 0
            part.append((start, ids))
            used += len(ids)
        if part:
            blocks.append((prompt, part, len(prompt["input_ids"]) + used))
    rows = []  # lists of blocks; longest blocks first, so that rows of one micro-batch are about equally long
    for block in sorted(blocks, key=lambda b: -b[2]):
        if rows and sum(b[2] for b in rows[-1]) + block[2] <= row_tokens:
            rows[-1].append(block)
        else:
            rows.append([block])
    batches, batch, longest = [], [], 0
    for row in rows:
        length = sum(b[2] for b in row)
        if batch and (len(batch) + 1) * max(longest, length) > micro_tokens:
            batches.append(batch)
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, length)
    batches += [batch] if batch else []
    return [collate(batch, model, pad_id) for batch in batches]


def collate(rows: list[list[tuple]], model: nn.Module, pad_id: int) -> dict:
    """Tensors of one micro-batch from rows of (prompt, [(start, ids), ...], tokens) blocks; see `pack`."""
    B, T = len(rows), max(sum(block[2] for block in row) for row in rows)
    text_only = all(block[0]["pixel_values"] is None for row in rows for block in row)
    T += text_only  # room for the blank image below
    out = {
        "input_ids": torch.full((B, T), pad_id),
        "position_ids": torch.zeros(3, B, T, dtype=torch.long),
        "group": torch.full((B, T), -1),
        "segment": torch.zeros(B, T, dtype=torch.long),
    }
    at, target, token, pixels, grids = [], [], [], [], []
    for b, row in enumerate(rows):
        end = 0
        for g, (prompt, completions, _) in enumerate(row):
            ids, positions = prompt["input_ids"], prompt_positions(prompt, model)  # (3, P)
            P, begin = len(ids), end
            out["input_ids"][b, begin : begin + P] = torch.tensor(ids)
            out["position_ids"][:, b, begin : begin + P] = positions
            end = begin + P
            for s, (start, c) in enumerate(completions):
                out["input_ids"][b, end : end + len(c)] = torch.tensor(c)
                out["position_ids"][:, b, end : end + len(c)] = positions.max() + 1 + torch.arange(len(c))
                out["segment"][b, end : end + len(c)] = s + 1
                # token t is predicted by the hidden state one before it; the first one by the last prompt token
                at += [b * T + begin + P - 1] + [b * T + end + t for t in range(len(c) - 1)]
                target += c
                token += range(start, start + len(c))
                end += len(c)
            out["group"][b, begin:end] = g
            if prompt["pixel_values"] is not None:
                pixels.append(prompt["pixel_values"])
                grids.append(prompt["image_grid_thw"])
    if text_only:
        # Under ZeRO-3 all ranks gather weights module by module, in step: one that skips the vision tower makes the others wait for
        # ever. So a blank image of one visual token takes part, in a group of its own: no response token sees it, its gradient is 0.
        tower = model.model.visual.config
        pixels.append(torch.zeros(4, tower.in_channels * tower.temporal_patch_size * tower.patch_size**2))  # 2 x 2 patches
        grids.append(torch.tensor([[1, 2, 2]]))
        out["input_ids"][0, -1], out["group"][0, -1] = model.config.image_token_id, len(rows[0])
    out["at"], out["target"], out["token"] = torch.tensor(at), torch.tensor(target), torch.tensor(token)
    out["pixel_values"] = torch.cat(pixels)  # (patches, patch values), in the order of the placeholders
    out["image_grid_thw"] = torch.cat(grids)  # (images, 3)
    return out


def prompt_positions(prompt: dict, model: nn.Module) -> torch.Tensor:
    """M-RoPE positions (3, P) of an encoded prompt: time, height and width index of every token."""
    ids = torch.tensor([prompt["input_ids"]])  # (1, P)
    positions, _ = model.model.get_rope_index(
        ids, image_grid_thw=prompt["image_grid_thw"], attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    )  # fmt: skip
    return positions[:, 0]


def group_mask(group: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Boolean mask (B, 1, T, T), True = may attend, from group (B, T) and segment (B, T); formula in the module's docstring."""
    same_group = group[:, :, None] == group[:, None, :]  # (B, T, T)
    shared = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
    causal = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool, device=group.device).tril()
    return (same_group & shared & causal)[:, None]  # padding (group -1) sees earlier padding: no empty rows, no NaN


def token_logprobs(logits: torch.Tensor, target: torch.Tensor, temperature: float,
                   banned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Log-probs (n,) of `target` (n,) and entropy (n,) under softmax(logits / temperature) without the banned ids.

    logits (n, V) before temperature, banned (V,) bool. This is the distribution the sampler draws from (top_p = 1).
    Entropy = -sum_v p_v log p_v in nats; it is for the log only and carries no gradient.
    """
    # -1e9 instead of -inf: exp gives 0 all the same, and 0 * -1e9 stays 0 in the entropy where 0 * -inf is NaN
    logits = (logits.float() / temperature).masked_fill(banned, -1e9)
    logp = F.log_softmax(logits, dim=-1)  # (n, V)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, target[:, None])[:, 0], entropy


class Policy(nn.Module):
    """A Qwen-VL model whose forward pass takes a micro-batch of `pack` and returns what the losses need.

    The whole computation sits in one forward() so that DeepSpeed ZeRO-3 can gather parameters around it.
    """

    def __init__(self, model: nn.Module, banned: list[int], temperature: float = 1.0, logit_chunk: int = 2048):
        super().__init__()
        self.model, self.temperature, self.logit_chunk = model, temperature, logit_chunk
        mask = torch.zeros(model.config.get_text_config().vocab_size, dtype=torch.bool)
        mask[banned] = True
        self.register_buffer("banned", mask, persistent=False)

    def forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs (N,) of the response tokens, with gradient, and their entropies (N,) in nats, without."""
        hidden = self.model.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
            attention_mask=group_mask(batch["group"], batch["segment"]),
            pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
        ).last_hidden_state  # (B, T, D)  # fmt: skip
        hidden = hidden.flatten(0, 1)[batch["at"]]  # (N, D): logits only where a response token is predicted
        # (chunk, V) logits at a time, recomputed in the backward pass: (N, V) in float32 would be 5 GB for 8 k tokens of Qwen
        chunks = -(-batch.get("logit_tokens", len(hidden)) // self.logit_chunk)  # the same number on all ranks: common.same_count
        parts = [
            checkpoint(lambda h, t: token_logprobs(self.model.lm_head(h), t, self.temperature, self.banned), h, t, use_reentrant=False)
            for h, t in zip(hidden.tensor_split(chunks), batch["target"].tensor_split(chunks), strict=True)
        ]
        logp, entropy = (torch.cat(p) for p in zip(*parts, strict=True))
        return logp, entropy


def to_device(batch: dict, device) -> dict:
    """The micro-batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


# -----------------------------------------------------------------------------
# the tiny model: a real Qwen-VL, small enough for a laptop, in an ordinary checkpoint folder
# -----------------------------------------------------------------------------

# Qwen's format: a default system message, turns between <|im_start|> and <|im_end|>, an image as start, pad, end
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)


def tiny_processor(corpus: list[str], family: str):
    """Processor with a byte-level BPE tokenizer trained on `corpus`, Qwen's special tokens and its image processor."""
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: any text can be encoded
    settings = {"vocab_size": 1024, "min_frequency": 2, "special_tokens": SPECIAL_TOKENS, "initial_alphabet": alphabet}
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(show_progress=False, **settings))
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
                              "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"},
    )  # fmt: skip
    patch = 16 if family == "qwen3_vl" else 14
    images = tf.Qwen2VLImageProcessor(patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 16384 * 4 * patch**2})
    kind = {"qwen2_vl": tf.Qwen2VLProcessor, "qwen2_5_vl": tf.Qwen2_5_VLProcessor, "qwen3_vl": tf.Qwen3VLProcessor}[family]
    video = tf.Qwen3VLVideoProcessor if family == "qwen3_vl" else tf.Qwen2VLVideoProcessor
    return kind(image_processor=images, tokenizer=tokenizer, video_processor=video(patch_size=patch), chat_template=CHAT_TEMPLATE)


def build_tiny(path: str, corpus: list[str], family: str = "qwen2_5_vl", hidden: int = 96, layers: int = 3, vision_layers: int = 2,
               seed: int = 0) -> None:  # fmt: skip
    """Write a randomly initialised Qwen-VL of about 0.7 M parameters to `path`, as transformers and vLLM load it.

    Head size 32 (the smallest that vLLM's CPU attention takes), so `hidden` must be a multiple of 32.
    """
    import transformers as tf

    if family not in FAMILIES:
        raise SystemExit(f"family: '{family}' is none of {', '.join(FAMILIES)}")
    torch.manual_seed(seed)
    processor = tiny_processor(corpus, family)
    ids = {t: processor.tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
    # weights so large that a layer keeps the size of its input; with the usual 0.02, which suits widths of 1000 and more, a model as
    # narrow as this one learns to count what there is and stays blind to colour and shape
    init = hidden**-0.5
    text = {
        "vocab_size": -(-(len(processor.tokenizer) + 1) // 64) * 64,  # padded, as Qwen's is: some rows belong to no token
        "initializer_range": init,
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 32,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {"depth": vision_layers, "num_heads": hidden // 32, "spatial_merge_size": 2, "temporal_patch_size": 2,
              "initializer_range": init}  # fmt: skip
    if family == "qwen2_vl":
        vision |= {"embed_dim": hidden, "hidden_size": hidden, "mlp_ratio": 2, "patch_size": 14}
    else:
        vision |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "out_hidden_size": hidden}
        if family == "qwen2_5_vl":
            vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": list(range(1, vision_layers, 2))}
        else:
            text["rope_parameters"]["mrope_interleaved"] = True  # as in every Qwen3-VL; vLLM asks the config, transformers assumes it
            vision |= {"patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]}
    config, kind = {
        "qwen2_vl": (tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration),
        "qwen3_vl": (tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration),
    }[family]
    if family == "qwen2_vl":
        text.pop("head_dim")
    model = kind(config(
        text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    ))  # fmt: skip
    model.generation_config.eos_token_id = end_ids(processor)
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    os.makedirs(path, exist_ok=True)
    model.save_pretrained(path)
    processor.save_pretrained(path)


if __name__ == "__main__":
    import data

    flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--") and "=" in a)
    paths = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(paths) != 1 or set(flags) - {"family", "seed"}:
        raise SystemExit("usage: python model.py FOLDER [--family=qwen2_vl|qwen2_5_vl|qwen3_vl] [--seed=0]")
    build_tiny(paths[0], data.tiny_corpus(), flags.get("family", "qwen2_5_vl"), seed=int(flags.get("seed", 0)))
    load_model(paths[0], "float32")
    print(f"model: written to {paths[0]}")
