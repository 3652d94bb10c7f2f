"""The policy: load any Qwen-VL checkpoint by its config.json, run packed groups through it, build the tiny model.

    python qwen.py out/tiny                        # a real Qwen2.5-VL of 0.7 M parameters, random weights
    python qwen.py out/tiny --family=qwen2_vl      # or qwen2_vl, qwen3_vl

The G completions of a prompt share the prompt and its images. Instead of G rows [prompt | completion], a group is ONE
stretch of tokens [prompt | c_1 | ... | c_G]: images encoded once, prompt read once, G(P+C) tokens become P+GC. All groups of a
micro-batch are laid end to end, without padding. What keeps the completions apart is the attention, which takes every
prompt and every completion as a segment of its own, and M-RoPE positions that restart after the prompt for each of them:

    token           p p p | a a a | b b           attends to    prompt: itself, causally
    position        0 1 2 | 3 4 5 | 3 4           a completion: all of its prompt, and itself causally

Shapes: T tokens of a micro-batch, N response tokens among them, V vocabulary, D hidden, H heads, d head size.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import common

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
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
        raise SystemExit(
            f"model: no config.json in '{path}'; name a checkpoint folder or a hub id, "
            f"or make the tiny model with: python qwen.py {path}"
        )
    family = json.loads(config_file.read_text()).get("model_type")
    if family not in FAMILIES:
        raise SystemExit(
            f"model: '{path}' is a '{family}' checkpoint; this code trains {', '.join(FAMILIES)}"
        )
    return family


def load_model(
    path: str, dtype: str = "bfloat16", attn: str = "auto", device: str = "cpu", say=print
) -> nn.Module:
    """The transformers model of a Qwen-VL checkpoint folder (or hub id), chosen by config.json, on `device`."""
    from transformers import AutoModelForImageTextToText

    if dtype not in DTYPES:
        raise SystemExit(f"dtype: '{dtype}' is none of {', '.join(DTYPES)}")
    check_model_folder(path)
    kernel = attention_kernel(attn, dtype, str(device))
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation="sdpa")
    register_attention()
    model.config._attn_implementation = (
        f"segments_flash_{kernel}"  # from_pretrained itself takes no name of ours
    )
    say(
        f"model: {type(model).__name__} {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {dtype}, attention {kernel}"
    )
    return model.to(device)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze the model and put LoRA adapters (arXiv:2106.09685) of this rank on all linear layers of its language model, in place.

    W x becomes W x + alpha / rank * B A x; only A and B are trained: with rank 16 about 1 % of the weights, so gradients and Adam's
    moments almost vanish from memory. B starts at 0, so the policy starts as it was. The vision tower stays frozen.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    layers = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=layers), model
    )


def compile_layers(model: nn.Module) -> None:
    """torch.compile for every layer of the language model by itself: they are all alike, so a minute's work serves the whole stack.

    It merges the elementwise work around the matrix products (norms, rotary positions, gates) into few kernels.
    """
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


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
# packed groups
# -----------------------------------------------------------------------------


def pack(
    prompts: list[dict], completions: list[list[tuple[int, list[int]]]], model: nn.Module, micro_tokens: int
) -> list[dict]:
    """Micro-batches that hold every completion of every group once.

    prompts:      encoded prompts (data.encode_prompt): `input_ids` with expanded image placeholders, `pixel_values`, `image_grid_thw`
    completions:  per prompt a list of (start, token ids); `start` is where the completion's tokens stand in the step's
                  flat array of response tokens, so that advantages, old and reference log-probs are looked up by `token`
    micro_tokens: a micro-batch is filled up to this many tokens. A larger group is split into parts that each repeat the prompt; one
                  completion always stays whole

    A micro-batch: input_ids (1, T), position_ids (3, 1, T), pixel_values, image_grid_thw, segments (n, 4): start and length of each
    prompt or completion, then start and length of the prompt that a completion belongs to (a prompt has 0, 0); and per
    response token: at (N,) the place in T of the position that PREDICTS it (for a completion's first token that is the last
    token of the prompt), target (N,) its id, token (N,) its place in the step's flat array.
    """
    blocks = []  # (prompt, some of its completions, tokens)
    for prompt, group in zip(prompts, completions, strict=True):
        room = max(micro_tokens - len(prompt["input_ids"]), 1)
        part, used = [], 0
        for start, ids in group:
            if part and used + len(ids) > room:
                blocks.append((prompt, part, len(prompt["input_ids"]) + used))
                part, used = [], 0
            part.append((start, ids))
            used += len(ids)
        if part:
            blocks.append((prompt, part, len(prompt["input_ids"]) + used))
    batches = []
    for block in sorted(
        blocks, key=lambda b: -b[2]
    ):  # long with long: sdpa pads the segments of a micro-batch to one length
        if batches and sum(b[2] for b in batches[-1]) + block[2] <= micro_tokens:
            batches[-1].append(block)
        else:
            batches.append([block])
    return [collate(batch, model) for batch in batches]


def collate(blocks: list[tuple], model: nn.Module) -> dict:
    """Tensors of one micro-batch from blocks (prompt, [(start, ids), ...], tokens); see `pack`."""
    input_ids, positions, segments, at, target, token, pixels, grids = [], [], [], [], [], [], [], []
    for prompt, completions, _ in blocks:
        begin, P = len(input_ids), len(prompt["input_ids"])
        place = prompt_positions(prompt, model)  # (3, P)
        input_ids += prompt["input_ids"]
        positions.append(place)
        segments.append((begin, P, 0, 0))
        for start, ids in completions:
            end = len(input_ids)
            # token t is predicted by the hidden state one before it; the first one by the last prompt token
            at += [begin + P - 1, *range(end, end + len(ids) - 1)]
            target += ids
            token += range(start, start + len(ids))
            input_ids += ids
            positions.append((place.max() + 1 + torch.arange(len(ids))).expand(3, -1))
            segments.append((end, len(ids), begin, P))
        if prompt["pixel_values"] is not None:
            pixels.append(prompt["pixel_values"])
            grids.append(prompt["image_grid_thw"])
    if not pixels:
        # Under ZeRO-3 all ranks gather weights module by module, in step: one that skips the vision tower makes the others wait for
        # ever. So a blank image of one visual token takes part, as a prompt of its own: no response token sees it, its gradient is 0.
        tower = model.model.visual.config
        pixels.append(
            torch.zeros(4, tower.in_channels * tower.temporal_patch_size * tower.patch_size**2)
        )  # 2 x 2 patches
        grids.append(torch.tensor([[1, 2, 2]]))
        segments.append((len(input_ids), 1, 0, 0))
        input_ids.append(model.config.image_token_id)
        positions.append(torch.zeros(3, 1, dtype=torch.long))
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.cat(positions, 1)[:, None],
        "segments": torch.tensor(segments),
        "at": torch.tensor(at),
        "target": torch.tensor(target),
        "token": torch.tensor(token),
        "pixel_values": torch.cat(pixels),  # (patches, patch values), in the order of the placeholders
        "image_grid_thw": torch.cat(grids),  # (images, 3)
    }


def prompt_positions(prompt: dict, model: nn.Module) -> torch.Tensor:
    """M-RoPE positions (3, P) of an encoded prompt: time, height and width index of every token."""
    ids = torch.tensor([prompt["input_ids"]])  # (1, P)
    positions, _ = model.model.get_rope_index(
        ids,
        image_grid_thw=prompt["image_grid_thw"],
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    )
    return positions[:, 0]


# -----------------------------------------------------------------------------
# attention between segments
# -----------------------------------------------------------------------------


def attention_kernel(name: str, dtype: str, device: str) -> str:
    """'varlen': FlashAttention for sequences of different lengths, on GPUs in 16 bits; else 'sdpa', padded to one length."""
    if name not in ("auto", "sdpa", "varlen"):
        raise SystemExit(f"attn: '{name}' is none of auto, sdpa, varlen")
    able = device != "cpu" and dtype != "float32"
    if name == "varlen" and not able:
        raise SystemExit("attn: varlen needs a GPU and dtype bfloat16 or float16; set attn='sdpa'")
    return "varlen" if able and name != "sdpa" else "sdpa"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask=None,
    scaling=None,
    attend=None,
    cu_seq_lens_q=None,
    max_length_q=None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer. query (B, H, T, d), key and value (B, Hkv, T, d); returns (B, T, H, d).

    The vision tower names its images or windows (cu_seq_lens_q, their bounds); our own forward passes hand in `attend`, a function of
    (query, key, value, scaling, layer); without either it is transformers' usual causal attention.
    """
    if cu_seq_lens_q is not None:
        varlen = module.config._attn_implementation == "segments_flash_varlen"
        return (windows_varlen if varlen else windows_sdpa)(
            query, key, value, scaling, cu_seq_lens_q, max_length_q
        ), None
    if attend is not None:
        return attend(query, key, value, scaling, module.layer_idx), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def register_attention() -> None:
    """Make `attention` known to transformers. With "flash" in its name the vision tower passes all windows in one call."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for kernel in ("sdpa", "varlen"):
        AttentionInterface.register(f"segments_flash_{kernel}", attention)
        AttentionMaskInterface.register(f"segments_flash_{kernel}", sdpa_mask)


def between_segments(segments: torch.Tensor, model: nn.Module):
    """attend(query, key, value, scaling, layer) for a packed micro-batch with these segments (n, 4); see `pack`. CPU-GPU sync."""
    kernel = model.config._attn_implementation
    if not kernel.startswith("segments_flash_"):
        raise ValueError(
            f"a model with attention '{kernel}' would mix up packed completions; load it with load_model"
        )
    return (segments_varlen if kernel == "segments_flash_varlen" else segments_sdpa)(segments)


def segments_sdpa(segments: torch.Tensor):
    """Prompts padded to one length W in a first call, completions padded to one length C, behind their prompts, in a second."""
    device = segments.device
    prompt, answer = segments[segments[:, 3] == 0], segments[segments[:, 3] > 0]  # (n, 4), (S, 4)
    W, C = int(prompt[:, 1].max()), int(answer[:, 1].max()) if len(answer) else 0
    w, c = torch.arange(W, device=device), torch.arange(C, device=device)
    last = int(segments[:, :2].sum(1).max()) - 1
    prompt_at = (prompt[:, :1] + w).clamp_max(
        last
    )  # (n, W) places in T; beyond the end of a segment whatever stands there
    answer_at = (answer[:, :1] + c).clamp_max(last)  # (S, C)
    key_at = torch.cat([(answer[:, 2:3] + w).clamp_max(last), answer_at], 1)  # (S, W + C)
    before = w < answer[:, 3:4]  # (S, W) is it a token of the prompt?
    if before.all():
        before = before[:1]  # one mask for all
    own = torch.ones(C, C, dtype=torch.bool, device=device).tril()
    mask = torch.cat([before[:, None].expand(-1, C, -1), own.expand(len(before), -1, -1)], 2)[
        :, None
    ]  # (S or 1, 1, C, W + C)
    # padding is only ever seen by padding, which is dropped here: place in T -> place among the padded results
    back = torch.cat([prompt_at[w < prompt[:, 1:2]], answer_at[c < answer[:, 1:2]]]).argsort()  # (T,)
    real = torch.cat([(w < prompt[:, 1:2]).flatten(), (c < answer[:, 1:2]).flatten()]).nonzero()[:, 0][
        back
    ]  # (T,)

    def attend(query, key, value, scaling, layer):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H or Hkv, d)

        def part(q_at, k_at, **how):
            rows = (
                x.index_select(0, i.flatten()).unflatten(0, i.shape).transpose(1, 2)
                for x, i in ((q, q_at), (k, k_at), (v, k_at))
            )
            out = F.scaled_dot_product_attention(
                *rows, scale=scaling, enable_gqa=True, **how
            )  # (n, H, length, d)
            return out.transpose(1, 2).flatten(0, 1)  # (n * length, H, d)

        out = part(prompt_at, prompt_at, is_causal=True)
        if C:
            out = torch.cat([out, part(answer_at, key_at, attn_mask=mask)])
        return out.index_select(0, real)[None]  # (1, T, H, d)

    return attend


def segments_varlen(segments: torch.Tensor):
    """All segments in one call: the kernel's causal mask sets the last query at the last key, as a completion stands behind its prompt."""
    device, bounds, pieces = segments.device, [0], []
    for start, length, prompt, width in segments.tolist():
        pieces += [torch.arange(prompt, prompt + width), torch.arange(start, start + length)]
        bounds.append(bounds[-1] + width + length)
    key_at = torch.cat(pieces).to(device)  # (K,) every completion has its prompt's keys before its own
    cu_k = torch.tensor(bounds, dtype=torch.int32, device=device)
    cu_q = F.pad(segments[:, 1].cumsum(0), (1, 0)).int()
    max_q, max_k = int(segments[:, 1].max()), int(segments[:, 1::2].sum(1).max())

    def attend(query, key, value, scaling, layer):
        q = query[0].transpose(0, 1)  # (T, H, d): the segments stand in T in their order
        k, v = (x[0].transpose(0, 1).index_select(0, key_at) for x in (key, value))  # (K, Hkv, d)
        return varlen(q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal=True)[None]

    return attend


def varlen(q, k, v, cu_q, cu_k, max_q: int, max_k: int, scaling: float, causal: bool) -> torch.Tensor:
    """FlashAttention (arXiv:2307.08691) over sequences laid end to end: q (T, H, d), k and v (K, Hkv, d), bounds cu (n + 1,) int32.

    From the flash-attn package where it is installed, else PyTorch's own build of the same kernels (2.10 and later).
    """
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scaling, causal=causal)
    from torch.nn.attention.varlen import varlen_attn

    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return varlen_attn(
        q, k, v, cu_q, cu_k, max_q, max_k, scale=scaling, window_size=(-1, 0) if causal else (-1, -1)
    )


def windows_sdpa(query, key, value, scaling, bounds, longest):
    """Attention of the vision tower within its images or windows: one call for all of a length, where transformers makes one for each.

    query, key, value (1, H, T, d); bounds (windows + 1,) where each window starts and the last one ends. Returns (1, T, H, d).
    """
    lengths = bounds.diff()
    sizes, order, out = lengths.unique().tolist(), [], []
    for n in sizes:
        at = bounds[:-1][lengths == n, None] + torch.arange(n, device=bounds.device)  # (windows, n)
        q, k, v = (
            x[0].index_select(1, at.flatten()).unflatten(1, at.shape).transpose(0, 1)
            for x in (query, key, value)
        )
        out.append(
            F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1)
        )  # (windows * n, H, d)
        order.append(at.flatten())
    return torch.cat(out).index_select(0, torch.cat(order).argsort())[None]


def windows_varlen(query, key, value, scaling, bounds, longest):
    """The same in one call for all windows."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, d)
    bounds, longest = bounds.int(), int(longest)
    return varlen(q, k, v, bounds, bounds, longest, longest, scaling, causal=False)[None]


def token_logprobs(
    logits: torch.Tensor, target: torch.Tensor, temperature: float, banned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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

    def __init__(self, model: nn.Module, banned: list[int], temperature: float = 1.0, logit_chunk: int = 0):
        super().__init__()
        self.model, self.temperature, self.logit_chunk = model, temperature, logit_chunk
        mask = torch.zeros(model.config.get_text_config().vocab_size, dtype=torch.bool)
        mask[banned] = True
        self.register_buffer("banned", mask, persistent=False)

    def forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs (N,) of the response tokens, with gradient, and their entropies (N,) in nats, without."""
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            use_cache=False,
            attend=between_segments(batch["segments"], self.model),
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
        ).last_hidden_state  # (1, T, D)
        hidden = hidden[0].index_select(
            0, batch["at"]
        )  # (N, D): logits only where a response token is predicted
        # (chunk, V) logits at a time, recomputed in the backward pass: (N, V) in float32 would be 5 GB for 8 k tokens of Qwen
        chunk = self.logit_chunk or (
            512 if hidden.device.type == "cpu" else 2048
        )  # CPUs: as much as stays in their cache
        chunks = -(
            -batch.get("logit_tokens", len(hidden)) // chunk
        )  # the same number on all ranks: same_count
        parts = [
            checkpoint(
                lambda h, t: token_logprobs(self.model.lm_head(h), t, self.temperature, self.banned),
                h,
                t,
                use_reentrant=False,
            )
            for h, t in zip(hidden.tensor_split(chunks), batch["target"].tensor_split(chunks), strict=True)
        ]
        logp, entropy = (torch.cat(p) for p in zip(*parts, strict=True))
        return logp, entropy


def same_count(batches: list[dict]) -> tuple[list[dict], list[float]]:
    """Repeat the last micro-batch until all ranks have equally many, and the weights (1 real, 0 filler) of each. ALL RANKS.

    ZeRO exchanges gradients and weights in every forward and backward pass, ZeRO-3 at every module: a rank with fewer
    micro-batches, or fewer calls of lm_head in one (`logit_tokens`, on which their number depends), would hang the rest.
    """
    sizes = common.all_gather([len(batch["target"]) for batch in batches])
    most = max(len(s) for s in sizes)
    padded = [s + s[-1:] * (most - len(s)) for s in sizes]
    filled = batches + batches[-1:] * (most - len(batches))
    filled = [batch | {"logit_tokens": max(s[m] for s in padded)} for m, batch in enumerate(filled)]
    return filled, [1.0] * len(batches) + [0.0] * (most - len(batches))


class TokenBudget:
    """Tokens of one forward and backward pass: the knob micro_tokens, or with 0 what the GPU's free memory holds (8,192 on a CPU).

    How much memory a token takes is measured in every step; the first one starts with 4,096 tokens.
    """

    def __init__(self, micro_tokens: int, device):
        self.fixed = micro_tokens or (0 if device.type == "cuda" else 8192)
        self.per_token = self.before = 0.0

    def tokens(self) -> int:
        """To be called before the micro-batches of a step are made."""
        if self.fixed:
            return self.fixed
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        free = (
            torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - self.before
        )  # what torch keeps in reserve is free, too
        return tokens_that_fit(free, self.per_token)

    def learn(self, batches: list[dict]) -> None:
        """To be called after the last backward pass of a step and before its optimizer step, with its micro-batches."""
        if not self.fixed:
            self.per_token = (torch.cuda.max_memory_allocated() - self.before) / max(
                b["input_ids"].numel() for b in batches
            )


def tokens_that_fit(free: float, per_token: float) -> int:
    """Tokens for `free` bytes at `per_token` bytes each (0 = not known yet), a quarter left for fragmentation and longer rows."""
    return min(max(int(0.75 * free / per_token), 1024), 65536) if per_token else 4096


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
    settings = {
        "vocab_size": 1024,
        "min_frequency": 2,
        "special_tokens": SPECIAL_TOKENS,
        "initial_alphabet": alphabet,
    }
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(show_progress=False, **settings))
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )
    patch = 16 if family == "qwen3_vl" else 14
    images = tf.Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 16384 * 4 * patch**2}
    )
    kind = {
        "qwen2_vl": tf.Qwen2VLProcessor,
        "qwen2_5_vl": tf.Qwen2_5_VLProcessor,
        "qwen3_vl": tf.Qwen3VLProcessor,
    }[family]
    video = tf.Qwen3VLVideoProcessor if family == "qwen3_vl" else tf.Qwen2VLVideoProcessor
    return kind(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=video(patch_size=patch),
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny(
    path: str,
    corpus: list[str],
    family: str = "qwen2_5_vl",
    hidden: int = 96,
    layers: int = 3,
    vision_layers: int = 2,
    seed: int = 0,
) -> None:
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
        "vocab_size": -(-(len(processor.tokenizer) + 1) // 64)
        * 64,  # padded, as Qwen's is: some rows belong to no token
        "initializer_range": init,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": vision_layers,
        "num_heads": hidden // 32,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": init,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": hidden, "hidden_size": hidden, "mlp_ratio": 2, "patch_size": 14}
    else:
        vision |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "out_hidden_size": hidden}
        if family == "qwen2_5_vl":
            vision |= {
                "patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": list(range(1, vision_layers, 2)),
            }
        else:
            text["rope_parameters"]["mrope_interleaved"] = (
                True  # as in every Qwen3-VL; vLLM asks the config, transformers assumes it
            )
            vision |= {"patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [0]}
    config, kind = {
        "qwen2_vl": (tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration),
        "qwen3_vl": (tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration),
    }[family]
    if family == "qwen2_vl":
        text.pop("head_dim")
    model = kind(
        config(
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=True,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )
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
        raise SystemExit("usage: python qwen.py FOLDER [--family=qwen2_vl|qwen2_5_vl|qwen3_vl] [--seed=0]")
    build_tiny(
        paths[0], data.tiny_corpus(), flags.get("family", "qwen2_5_vl"), seed=int(flags.get("seed", 0))
    )
    load_model(paths[0], "float32")
    print(f"model: written to {paths[0]}")
