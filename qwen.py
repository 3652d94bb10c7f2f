"""The policy: load any Qwen-VL checkpoint by its config.json, run packed groups through it, build the tiny
model.

    python qwen.py out/tiny                        # a real Qwen2.5-VL of 0.8 M parameters, random weights
    python qwen.py out/tiny --family=qwen2_vl      # or qwen2_5_vl, qwen3_vl, qwen3_5

The G completions of a prompt share the prompt and its images. Instead of G rows [prompt | completion], a
group is ONE stretch of tokens [prompt | c_1 | ... | c_G]: images encoded once, prompt read once, G(P+C)
tokens become P+GC. All groups of a micro-batch are laid end to end, without padding. What keeps the
completions apart is the attention, which takes every prompt and every completion as a segment of its own
(so do the gated delta nets of Qwen3.5, see deltanet.py), and M-RoPE positions that restart after the prompt
for each of them:

    token           p p p | a a a | b b           attends to    prompt: itself, causally
    position        0 1 2 | 3 4 5 | 3 4           a completion: all of its prompt, and itself causally

Shapes: T tokens of a micro-batch, N response tokens among them, V vocabulary, D hidden, H heads, d head size.
"""

import json
import math
import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils import checkpoint as recompute

import checkpoint
import common
import deltanet

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL_TOKENS += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# -----------------------------------------------------------------------------
# loading
# -----------------------------------------------------------------------------


def check_model_folder(path: str) -> str:
    """The model_type in path/config.json, or "hub id".

    Raises SystemExit with the remedy if it is no Qwen-VL checkpoint folder.
    """
    folder = Path(path)
    if not folder.exists() and path.count("/") == 1 and not path.startswith((".", "/", "out/")):
        return "hub id"  # looks like org/name: transformers will fetch it
    run = folder if folder.is_dir() else folder.parent  # the folder of a run, perhaps
    exports = checkpoint.complete(run)
    config_file = folder / "config.json"
    if exports and (not folder.exists() or not checkpoint.is_model(folder)):
        raise SystemExit(f"model: '{path}' is no checkpoint; the newest one there is '{exports[-1]}'")
    if not config_file.is_file():
        what = f"no config.json in '{path}'" if folder.is_dir() else f"there is no '{path}'"
        command = command_that_makes(path)
        remedy = f"make it with: {command}" if command else "name a checkpoint folder or a hub id"
        raise SystemExit(f"model: {what}; {remedy}")
    try:
        family = json.loads(config_file.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SystemExit(
            f"model: '{config_file}' cannot be read ({error}); copy the checkpoint anew"
        ) from error
    if family not in FAMILIES:
        what = (
            f"is a '{family}' checkpoint" if family else "is no checkpoint: no model_type in its config.json"
        )
        raise SystemExit(f"model: '{path}' {what}; this code trains {', '.join(FAMILIES)}")
    return family


def command_that_makes(path: str) -> str:
    """The command in the head of one of our configs that makes this model or checkpoint; "" without one."""
    for config in sorted(Path(__file__).parent.glob("configs/*.py")):
        text = config.read_text(encoding="utf-8")
        if re.search(rf"python qwen.py {re.escape(path)}\s", text):
            return f"python qwen.py {path}"
        out_dir = re.search(r'^out_dir = "(.+)"$', text, re.MULTILINE)
        command = re.search(rf"(?:torchrun|python) [^&\n]*configs/{config.name}", text)
        if command and out_dir and Path(path).parent == Path(out_dir[1]):
            return command[0]
    return ""


def load_from(path: str, load):
    """load(path); SystemExit with one sentence if the checkpoint there cannot be loaded."""
    is_hub_id = check_model_folder(path) == "hub id"
    reachable = not is_hub_id or common.hub_is_there()
    try:
        return load(path)
    except Exception as error:  # of transformers, tokenizers, safetensors, the hub ...: each has its own
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if not reachable:
            raise SystemExit(
                f"model: '{path}' is not on this machine, and the hub cannot be reached; name a folder that "
                "holds it, set HF_ENDPOINT to a mirror, or download it elsewhere into the cache (HF_HOME)"
            ) from error
        why = broken_file(Path(path)) if not is_hub_id else ""
        why = why or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SystemExit(f"model: '{path}' cannot be loaded ({why})") from error


def broken_file(folder: Path) -> str:
    """Which file of a checkpoint is missing or damaged, as far as that can be seen; "" if none."""
    needed = [("tokenizer.json", "vocab.json"), ("preprocessor_config.json", "processor_config.json")]
    needed += [("model.safetensors", "model.safetensors.index.json")]
    index = folder / "model.safetensors.index.json"
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".safetensors":
                safe_open(path, "pt")
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jinja":
                path.read_text()
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            return f"{path.name} is damaged: {error}"
    if index.is_file():
        needed += [(name,) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for names in needed:
        if not any((folder / name).is_file() for name in names):
            return f"{' or '.join(names)} is missing"
    return ""


def load_model(
    path: str, dtype: str = "bfloat16", attn: str = "auto", device: str = "cpu", say=print
) -> nn.Module:
    """The transformers model of a Qwen-VL checkpoint folder (or hub id), chosen by config.json, on
    `device`.
    """
    from transformers import AutoModelForImageTextToText

    common.check_choices({"dtype": dtype, "attn": attn})
    kernel = attention_kernel(attn, dtype, str(device))
    if Path(path, "manifest.json").is_file():  # an export of ours
        wrong = checkpoint.damage(Path(path))
        if wrong:
            raise SystemExit(f"model: '{path}' is damaged: {wrong}; take another checkpoint")
    say(f"model: loading '{path}'")
    settings = {"dtype": DTYPES[dtype], "attn_implementation": "sdpa", "trust_remote_code": False}
    settings["output_loading_info"] = True
    model, info = load_from(path, lambda path: AutoModelForImageTextToText.from_pretrained(path, **settings))
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise SystemExit(
            f"model: '{path}' lacks {len(missing)} of its weights ({missing[0]}, ...); copy it anew"
        )
    register_attention()
    if deltanet.is_hybrid(model.config):
        deltanet.register()
    model.config._attn_implementation = f"segments_flash_{kernel}"  # from_pretrained takes no name of ours
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    say(f"model: {type(model).__name__} {millions:.1f} M parameters, {dtype}, attention {kernel}")
    return model.to(device)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze the model and put LoRA adapters (arXiv:2106.09685) of this rank on all linear layers of its
    language model, in place.

    W x becomes W x + alpha / rank * B A x; only A and B are trained: with rank 16 about 1 % of the weights,
    so gradients and Adam's moments almost vanish from memory. B starts at 0, so the policy starts as it
    was. The vision tower stays frozen.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    layers += "|in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj"  # of gated delta nets
    target = rf".*language_model\..*\.({layers})"
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=target)
    inject_adapter_in_model(config, model)


def compile_layers(model: nn.Module) -> None:
    """torch.compile for every layer of the language model by itself: they are all alike, so a minute's work
    serves the whole stack.

    It merges the elementwise work around the matrix products (norms, rotary positions, gates) into few
    kernels.
    """
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def without_lora(policy: nn.Module):
    """The policy as it was before LoRA: a function of a micro-batch. It serves as the reference and takes
    no memory.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)]

    def reference(batch, **settings):
        for layer in layers:
            layer.enable_adapters(False)
        try:
            return policy(batch, **settings)
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    return reference


def load_processor(path: str):
    """Tokenizer, image processor and chat template of a checkpoint folder."""
    from transformers import AutoProcessor

    def load(path):
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        message = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        try:
            processor.apply_chat_template([message], tokenize=False)
        except Exception as error:  # a template is a program
            raise ValueError(f"its chat template, chat_template.jinja, fails: {error}") from error
        return processor

    return load_from(path, load)


def end_ids(processor) -> list[int]:
    """Both tokens that end a turn in Qwen's models: <|im_end|> and <|endoftext|> (which is also the
    padding).
    """
    return processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def banned_ids(model_config, processor) -> list[int]:
    """Ids the policy must never produce: special tokens other than the two end tokens, and padding of the
    vocabulary.

    A sampled <|image_pad|> makes the next forward pass fail ("image features and image tokens do not
    match"). The same ids are masked in the sampler and in the trainer's logits, so that both describe one
    and the same distribution.
    """
    tokenizer = processor.tokenizer
    vocabulary = model_config.get_text_config().vocab_size  # rows of the embedding, some of no token
    padding = set(range(len(tokenizer), vocabulary))
    # <think>, <tool_call> and the like are "added" tokens but not special ones: those stay allowed
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i < vocabulary}
    return sorted((special | padding) - set(end_ids(processor)))


# -----------------------------------------------------------------------------
# packed groups
# -----------------------------------------------------------------------------


def pack(prompts: list[dict], completions: list[list], model: nn.Module, micro_tokens: int) -> list[dict]:
    """Micro-batches that hold every completion of every group once.

    prompts:      encoded prompts (data.encode_prompt): `input_ids` with expanded image placeholders,
                  `pixel_values`, `image_grid_thw`
    completions:  per prompt a list of (start, token ids); `start` is where the completion's tokens stand in
                  the step's flat array of L response tokens, so that advantages, old and reference log-probs
                  are looked up by `token`
    micro_tokens: a micro-batch is filled up to this many tokens. A larger group is split into parts that each
                  repeat the prompt; one completion always stays whole

    A micro-batch has of all its tokens: input_ids (1, T), position_ids (3, 1, T); of its images:
    pixel_values, image_grid_thw; segments (n, 4): start and length of each prompt or completion, then start
    and length of the prompt that a completion belongs to (a prompt has 0, 0); and of each response token:
    target (N,) its id, token (N,) its place in the step's flat array, at (N,) the place in T of the
    position that PREDICTS it (for a completion's first token that is the last of the prompt).
    """
    blocks = []  # (prompt, some of its completions, tokens of both)
    for prompt, group in zip(prompts, completions, strict=True):
        prompt_tokens = len(prompt["input_ids"])
        part, size = [], prompt_tokens
        for start, ids in group:
            if part and size + len(ids) > micro_tokens:
                blocks.append((prompt, part, size))
                part, size = [], prompt_tokens
            part.append((start, ids))
            size += len(ids)
        if part:
            blocks.append((prompt, part, size))
    # long ones first, so that long goes with long: sdpa pads the segments of a micro-batch to one length
    blocks.sort(key=lambda block: -block[2])
    batches, room = [], 0
    for block in blocks:
        size = block[2]
        if not batches or size > room:
            batches.append([])
            room = micro_tokens
        batches[-1].append(block)
        room -= size
    return [collate(batch, model) for batch in batches]


def collate(blocks: list[tuple], model: nn.Module) -> dict:
    """Tensors of one micro-batch from blocks (prompt, [(start, ids), ...], tokens); see `pack`."""
    input_ids, positions, segments = [], [], []
    at, target, token = [], [], []
    pixels, grids = [], []
    for prompt, completions, _ in blocks:
        begin = len(input_ids)
        width = len(prompt["input_ids"])
        prompt_place = prompt_positions(prompt, model)  # (3, width)
        input_ids += prompt["input_ids"]
        positions.append(prompt_place)
        segments.append((begin, width, 0, 0))
        for start, ids in completions:
            first = len(input_ids)
            # token t is predicted by the hidden state one before it; the first one by the last prompt token
            at += [begin + width - 1, *range(first, first + len(ids) - 1)]
            target += ids
            token += range(start, start + len(ids))
            input_ids += ids
            place = prompt_place.max() + 1 + torch.arange(len(ids))  # text: the same index in all three rows
            positions.append(place.expand(3, -1))
            segments.append((first, len(ids), begin, width))
        if prompt["pixel_values"] is not None:
            pixels.append(prompt["pixel_values"])
            grids.append(prompt["image_grid_thw"])
    if not pixels:
        # Under ZeRO-3 all ranks gather weights module by module, in step: one that skips the vision tower
        # makes the others wait for ever. So a blank image of one visual token (2 x 2 patches) takes part,
        # as a prompt of its own: no response token sees it, its gradient is 0.
        tower = model.model.visual.config
        patch_values = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        pixels.append(torch.zeros(4, patch_values))
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


def to_device(batch: dict, device) -> dict:
    """The micro-batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


# -----------------------------------------------------------------------------
# the micro-batches of a step
# -----------------------------------------------------------------------------


def micro_batches(prompts: list[dict], ids: list[list[int]], used: torch.Tensor, model, budget) -> list[dict]:
    """The micro-batches of a step on the model's device, as many on every rank. ALL RANKS.

    ids: token ids of the S completions, group after group, equally many of each prompt.
    used (S,) bool: the completions that have a weight in the loss; the others are left out.
    Beside what `pack` says a micro-batch has `real`: 1.0, or 0.0 if it is a filler that must not count.
    """
    idle = not used.any()
    if idle:
        # this rank has nothing to learn from, but takes part in the collectives of the others
        used = torch.arange(len(ids)) == 0
    group_size = len(ids) // len(prompts)
    groups = [[] for _ in prompts]
    start = 0
    for s, completion in enumerate(ids):
        if used[s]:
            groups[s // group_size].append((start, completion))
        start += len(completion)
    batches = same_count(pack(prompts, groups, model, budget.tokens()))
    if idle:
        batches = [batch | {"real": 0.0} for batch in batches]
    device = next(model.parameters()).device
    return [to_device(batch, device) for batch in batches]


def same_count(batches: list[dict]) -> list[dict]:
    """Repeat the last micro-batch, as a filler that is not `real`, until all ranks have equally many. ALL
    RANKS.

    ZeRO exchanges gradients and weights in every forward and backward pass, ZeRO-3 at every module: a rank
    with fewer micro-batches, or fewer calls of lm_head in one (their number depends on `logit_tokens`),
    would hang the rest.
    """
    sizes = common.all_gather([len(batch["target"]) for batch in batches])  # of every rank
    filled = []
    for m in range(max(len(of_rank) for of_rank in sizes)):
        batch = batches[min(m, len(batches) - 1)]
        logit_tokens = max(of_rank[min(m, len(of_rank) - 1)] for of_rank in sizes)
        real = 1.0 if m < len(batches) else 0.0
        filled.append(batch | {"logit_tokens": logit_tokens, "real": real})
    return filled


class TokenBudget:
    """Tokens of one forward and backward pass: the knob micro_tokens, or with 0 what the GPU's free memory
    holds.

    On a CPU 0 stands for 8,192. On a GPU the memory that a token takes is measured in every step; the first
    step starts with 4,096 tokens.
    """

    def __init__(self, micro_tokens: int, device):
        self.fixed = micro_tokens or (0 if device.type == "cuda" else 8192)
        self.per_token = 0.0  # bytes; 0 = not known yet
        self.before = 0  # bytes that torch held before the step

    def tokens(self) -> int:
        """To be called before the micro-batches of a step are made."""
        if self.fixed:
            return self.fixed
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        reserve = torch.cuda.memory_reserved() - self.before  # kept by torch, but free
        return tokens_that_fit(torch.cuda.mem_get_info()[0] + reserve, self.per_token)

    def learn(self, batches: list[dict]) -> None:
        """To be called after the last backward pass of a step and before its optimizer step, with its
        micro-batches.
        """
        if self.fixed:
            return
        peak = torch.cuda.max_memory_allocated() - self.before
        self.per_token = peak / max(batch["input_ids"].numel() for batch in batches)


def tokens_that_fit(free: float, per_token: float) -> int:
    """Tokens for `free` bytes at `per_token` bytes each (0 = not known yet): 1,024 to 65,536.

    A quarter is left for fragmentation and longer rows.
    """
    if not per_token:
        return 4096
    return min(max(int(0.75 * free / per_token), 1024), 65536)


# -----------------------------------------------------------------------------
# attention between segments
# -----------------------------------------------------------------------------


def attention_kernel(name: str, dtype: str, device: str) -> str:
    """'varlen': FlashAttention for sequences of different lengths, on GPUs in 16 bits; else 'sdpa', padded
    to one length.
    """
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
    """What transformers calls in every layer. query (B, H, T, d), key and value (B, Hkv, T, d); returns (B,
    T, H, d).

    The vision tower names its images or windows (cu_seq_lens_q, their bounds); our own forward passes hand
    in `attend`, a function of (query, key, value, scaling, layer); without either it is transformers' usual
    causal attention.
    """
    if cu_seq_lens_q is not None:
        varlen = module.config._attn_implementation == "segments_flash_varlen"
        windows = windows_varlen if varlen else windows_sdpa
        return windows(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    if attend is not None:
        return attend(query, key, value, scaling, module.layer_idx), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def register_attention() -> None:
    """Make `attention` known to transformers. With "flash" in its name the vision tower passes all windows
    in one call.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for kernel in ("sdpa", "varlen"):
        AttentionInterface.register(f"segments_flash_{kernel}", attention)
        AttentionMaskInterface.register(f"segments_flash_{kernel}", sdpa_mask)


def between_segments(segments: torch.Tensor, model: nn.Module):
    """attend(query, key, value, scaling, layer) for a micro-batch with these segments (n, 4); see `pack`.
    CPU-GPU sync.
    """
    kernel = model.config._attn_implementation
    if kernel == "segments_flash_varlen":
        return segments_varlen(segments)
    if kernel == "segments_flash_sdpa":
        return segments_sdpa(segments)
    raise ValueError(
        f"a model with attention '{kernel}' would mix up packed completions; load it with load_model"
    )


def segments_sdpa(segments: torch.Tensor):
    """Two calls: all prompts, padded to one length W; all completions, padded to one length C, behind their
    prompts.
    """
    device = segments.device
    prompts = segments[segments[:, 3] == 0]  # (n, 4)
    completions = segments[segments[:, 3] > 0]  # (S, 4)
    W = int(prompts[:, 1].max())
    C = int(completions[:, 1].max()) if len(completions) else 0
    w = torch.arange(W, device=device)
    c = torch.arange(C, device=device)

    # places in T of the padded rows; beyond the end of a segment stands whatever comes next
    last = int(segments[:, :2].sum(1).max()) - 1
    prompt_at = (prompts[:, :1] + w).clamp_max(last)  # (n, W)
    completion_at = (completions[:, :1] + c).clamp_max(last)  # (S, C)
    context_at = (completions[:, 2:3] + w).clamp_max(last)  # (S, W) the prompt of each completion
    key_at = torch.cat([context_at, completion_at], 1)  # (S, W + C)

    # a completion's token sees the tokens of its prompt, and its own completion up to itself
    of_prompt = w < completions[:, 3:4]  # (S, W)
    if of_prompt.all():
        of_prompt = of_prompt[:1]  # all prompts are equally long: one mask for all
    own = torch.ones(C, C, dtype=torch.bool, device=device).tril()
    mask = torch.cat([of_prompt[:, None].expand(-1, C, -1), own.expand(len(of_prompt), -1, -1)], 2)
    mask = mask[:, None]  # (S or 1, 1, C, W + C)

    # padding is only ever seen by padding; `result_at` (T,) is where the result of each real token stands
    prompt_real = w < prompts[:, 1:2]  # (n, W)
    completion_real = c < completions[:, 1:2]  # (S, C)
    token_at = torch.cat(
        [prompt_at[prompt_real], completion_at[completion_real]]
    )  # (T,) place of each result in T
    padded_at = torch.cat([prompt_real.flatten(), completion_real.flatten()]).nonzero()[:, 0]  # (T,)
    result_at = padded_at[token_at.argsort()]

    def attend(query, key, value, scaling, layer):
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H or Hkv, d)

        def take(x, at):  # (T, heads, d) at (rows, length) -> (rows, heads, length, d)
            return x.index_select(0, at.flatten()).unflatten(0, at.shape).transpose(1, 2)

        def part(q_at, k_at, **how):
            q, k, v = take(query, q_at), take(key, k_at), take(value, k_at)
            out = F.scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=True, **how)
            return out.transpose(1, 2).flatten(0, 1)  # (rows * length, H, d)

        out = part(prompt_at, prompt_at, is_causal=True)
        if C:
            out = torch.cat([out, part(completion_at, key_at, attn_mask=mask)])
        return out.index_select(0, result_at)[None]  # (1, T, H, d)

    return attend


def segments_varlen(segments: torch.Tensor):
    """All segments in one call, each completion with its prompt's keys before its own.

    The kernel's causal mask sets the last query at the last key: so a completion stands behind its prompt.
    """
    device = segments.device
    key_at, key_bounds = [], [0]
    for start, length, prompt, width in segments.tolist():
        key_at += [torch.arange(prompt, prompt + width), torch.arange(start, start + length)]
        key_bounds.append(key_bounds[-1] + width + length)
    key_at = torch.cat(key_at).to(device)  # (K,)
    key_bounds = torch.tensor(key_bounds, dtype=torch.int32, device=device)  # (n + 1,)
    query_bounds = F.pad(
        segments[:, 1].cumsum(0), (1, 0)
    ).int()  # (n + 1,): the segments stand in T in their order
    longest_query = int(segments[:, 1].max())
    longest_key = int((segments[:, 1] + segments[:, 3]).max())

    def attend(query, key, value, scaling, layer):
        q = query[0].transpose(0, 1)  # (T, H, d)
        k = key[0].transpose(0, 1).index_select(0, key_at)  # (K, Hkv, d)
        v = value[0].transpose(0, 1).index_select(0, key_at)  # (K, Hkv, d)
        out = varlen(q, k, v, query_bounds, key_bounds, longest_query, longest_key, scaling, causal=True)
        return out[None]  # (1, T, H, d)

    return attend


def varlen(q, k, v, cu_q, cu_k, max_q: int, max_k: int, scaling: float, causal: bool) -> torch.Tensor:
    """FlashAttention (arXiv:2307.08691) over sequences laid end to end.

    q (T, H, d), k and v (K, Hkv, d), bounds cu_q and cu_k (n + 1,) int32. From the flash-attn package where
    it is installed, else PyTorch's own build of the same kernels (2.10 and later).
    """
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scaling, causal=causal)
    from torch.nn.attention.varlen import varlen_attn

    how = {"scale": scaling, "window_size": (-1, 0) if causal else (-1, -1), "enable_gqa": True}
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, **how)


def windows_sdpa(query, key, value, scaling, bounds, longest):
    """Attention of the vision tower within its images or windows: one call for all windows of a length.

    (transformers makes one call for each window.) query, key, value (1, H, T, d); bounds (windows + 1,):
    where each window starts and the last one ends. Returns (1, T, H, d).
    """
    lengths = bounds.diff()
    results, places = [], []
    for length in lengths.unique().tolist():
        starts = bounds[:-1][lengths == length]
        at = starts[:, None] + torch.arange(length, device=bounds.device)  # (windows, length)

        def take(x, at=at):  # (1, H, T, d) -> (windows, H, length, d)
            return x[0].index_select(1, at.flatten()).unflatten(1, at.shape).transpose(0, 1)

        out = F.scaled_dot_product_attention(take(query), take(key), take(value), scale=scaling)
        results.append(out.transpose(1, 2).flatten(0, 1))  # (windows * length, H, d)
        places.append(at.flatten())
    return torch.cat(results).index_select(0, torch.cat(places).argsort())[None]


def windows_varlen(query, key, value, scaling, bounds, longest):
    """The same in one call for all windows."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, d)
    bounds = bounds.int()
    return varlen(q, k, v, bounds, bounds, int(longest), int(longest), scaling, causal=False)[None]


# -----------------------------------------------------------------------------
# log-probs
# -----------------------------------------------------------------------------


def token_logprobs(
    logits: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    banned: torch.Tensor,
    entropy: str = "value",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs (n,) of `target` (n,) and entropy (n,) under softmax(logits / temperature) without the
    banned ids.

    logits (n, V) before temperature, banned (V,) bool. This is the distribution the sampler draws from
    (top_p = 1). Entropy = -sum_v p_v log p_v in nats: its "value" for the log, through which no gradient
    flows; with its "gradient" for a loss; or "none", then it is None.
    """
    # -1e9 instead of -inf: exp gives 0 all the same, and 0 * -1e9 stays 0 in the entropy where 0 * -inf is
    # NaN
    logits = (logits.float() / temperature).masked_fill(banned, -1e9)
    logp = F.log_softmax(logits, dim=-1)  # (n, V)
    # before the entropy: what is computed anew in the backward pass ends with the last thing that it needs
    of_target = logp.gather(-1, target[:, None])[:, 0]
    if entropy == "none":
        return of_target, None
    with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
        return of_target, -(logp.exp() * logp).sum(-1)


class Policy(nn.Module):
    """A Qwen-VL model whose forward pass takes a micro-batch of `pack` and returns what the losses need.

    The whole computation sits in one forward() so that DeepSpeed ZeRO-3 can gather parameters around it.
    """

    # response tokens whose logits are in memory at a time: 18 bytes a logit at their peak, 1.4 GB for Qwen's
    # vocabulary of 152 k; (N, V) whole would be 20 GB for 8 k tokens. On a CPU a chunk stays in the cache.
    CHUNK = 512

    def __init__(
        self, model: nn.Module, banned: list[int], temperature: float = 1.0, logit_chunk: int = CHUNK
    ):
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.logit_chunk = logit_chunk
        device = next(model.parameters()).device
        mask = torch.zeros(model.config.get_text_config().vocab_size, dtype=torch.bool, device=device)
        mask[banned] = True
        self.register_buffer("banned", mask, persistent=False)

    def forward(self, batch: dict, entropy: str = "value") -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probs (N,) of the response tokens and their entropies (N,) in nats.

        entropy="value": for the log, without a gradient, which saves memory; "gradient": for a loss that has
        them in it; "none": None in their place.
        """
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            use_cache=False,
            attend=between_segments(batch["segments"], self.model),
            scan=deltanet.between_segments(batch["segments"], self.model),
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
        ).last_hidden_state  # (1, T, D)
        hidden = hidden[0].index_select(0, batch["at"])  # (N, D): only where a response token is predicted

        # the logits are computed anew in the backward pass. same_count makes the chunks of all ranks equally
        # many.
        chunks = math.ceil(batch.get("logit_tokens", len(hidden)) / self.logit_chunk)
        logps, entropies = [], []

        def score(hidden, target):
            return token_logprobs(self.model.lm_head(hidden), target, self.temperature, self.banned, entropy)

        for h, t in zip(hidden.tensor_split(chunks), batch["target"].tensor_split(chunks), strict=True):
            logp, of_chunk = recompute.checkpoint(score, h, t, use_reentrant=False)
            logps.append(logp)
            entropies.append(of_chunk)
        return torch.cat(logps), None if entropy == "none" else torch.cat(entropies)


# -----------------------------------------------------------------------------
# the tiny model: a real Qwen-VL, small enough for a laptop, in an ordinary checkpoint folder
# -----------------------------------------------------------------------------

# Qwen's format: a default system message, turns between <|im_start|> and <|im_end|>, an image as start,
# pad, end
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    "{% endif %}<|im_end|>{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)


def tiny_processor(corpus: list[str], family: str):
    """Processor with a byte-level BPE tokenizer trained on `corpus`, Qwen's special tokens and its image
    processor.
    """
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes: any text can be encoded
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
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
    is_third = family in ("qwen3_vl", "qwen3_5")  # they have one processor
    patch = 16 if is_third else 14
    visual_token = 4 * patch**2  # pixels: 2 x 2 patches
    images = tf.Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": visual_token, "longest_edge": 16384 * visual_token}
    )
    if is_third:
        kind, video = tf.Qwen3VLProcessor, tf.Qwen3VLVideoProcessor
    else:
        kind = tf.Qwen2VLProcessor if family == "qwen2_vl" else tf.Qwen2_5_VLProcessor
        video = tf.Qwen2VLVideoProcessor
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
    layers: int = 0,
    vision_layers: int = 2,
    seed: int = 0,
) -> None:
    """Write a randomly initialised Qwen-VL of about 0.8 M parameters to `path`, as transformers and vLLM
    load it.

    Head size 32 (the smallest that vLLM's CPU attention takes), so `hidden` must be a multiple of 32. Three
    layers; Qwen3.5 four, every other one a gated delta net.
    """
    import transformers as tf

    if family not in FAMILIES:
        raise SystemExit(f"family: '{family}' is none of {', '.join(FAMILIES)}")
    layers = layers or (4 if family == "qwen3_5" else 3)
    torch.manual_seed(seed)
    processor = tiny_processor(corpus, family)
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    # Weights so large that a layer keeps the size of its input. With the usual 0.02, which suits widths of
    # 1000 and more, a model as narrow as this one learns to count what there is and stays blind to colour
    # and shape.
    init = hidden**-0.5
    text = {
        # padded, as Qwen's is: some rows belong to no token
        "vocab_size": 64 * math.ceil((len(processor.tokenizer) + 1) / 64),
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
        "hidden_size": hidden,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "patch_size": 14,
        "initializer_range": init,
    }
    if family == "qwen2_vl":
        config, kind = tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration
        text.pop("head_dim")
        vision |= {"embed_dim": hidden, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        config, kind = tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration
        vision |= {"intermediate_size": 2 * hidden, "out_hidden_size": hidden}
        vision |= {"window_size": 112, "fullatt_block_indexes": list(range(1, vision_layers, 2))}
    else:
        # as in all of them; vLLM asks the config, transformers assumes it
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {"intermediate_size": 2 * hidden, "out_hidden_size": hidden}
        vision |= {"patch_size": 16, "num_position_embeddings": 256}
    if family == "qwen3_vl":
        config, kind = tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration
        vision["deepstack_visual_indexes"] = [0]
    elif family == "qwen3_5":
        config, kind = tf.Qwen3_5Config, tf.Qwen3_5ForConditionalGeneration
        text["layer_types"] = [("linear_attention", "full_attention")[i % 2] for i in range(layers)]
        # only half of each head is rotated, as in Qwen3.5 a quarter is
        text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
        text |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
        text |= {"linear_key_head_dim": 64, "linear_value_head_dim": 64}  # the smallest that vLLM takes
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
    import argparse

    import data

    parser = argparse.ArgumentParser(description="Write a tiny Qwen-VL with random weights to FOLDER.")
    parser.add_argument("folder")
    parser.add_argument("--family", default="qwen2_5_vl", choices=FAMILIES)
    parser.add_argument("--seed", default=0, type=int)
    asked = parser.parse_args()
    build_tiny(asked.folder, data.tiny_corpus(), asked.family, seed=asked.seed)
    load_model(asked.folder, "float32")
    print(f"model: written to {asked.folder}")
