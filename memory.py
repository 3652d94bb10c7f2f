"""The memory of a run before anything is loaded, from the checkpoint's config.json and the knobs alone.

    python train_grpo.py configs/clevr.py --plan=8x80    # eight GPUs sold as 80 GB; --plan=True: this machine
    python memory.py                                     # which model fits which cards

Sizes are bytes, GB are 1e9 of them. Weights, master, Adam, gradients and activations follow from the shapes;
tests/test_memory.py compares them with the tensors of the real engine. Constants in capitals are assumed,
since no GPU has been asked yet: within UNCERTAINTY of the card a plan is tight, and `check` lets it run.

Symbols: D hidden, A all query heads, K all key heads, F feed-forward, V vocabulary, E width of the vision
tower; e bytes of a weight, n weights, t trained ones, w processes; T tokens of a forward pass.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch

import checkpoint
import common
import qwen
from configurator import find_block

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # those with attention in every layer
UNCERTAINTY = 0.1
CONTEXT_BYTES = 1.0e9  # CUDA, cuBLAS, fragments
ENGINE_BYTES = 1.5e9  # vLLM's outside of its share: CUDA graphs, what stays while it sleeps
NCCL_BYTES = 1.5e9  # with several processes
HOST_BYTES = 3.0e9  # of a process: imports, CUDA; weights are read from mapped files
VLLM_TOKENS = 8192  # max_num_batched_tokens of sampling.start_vllm: it measures a pass of so many
VLLM_SEQUENCES = 256  # its max_num_seqs
BUCKET = 500_000_000  # gradients that DeepSpeed reduces at a time: reduce_bucket_size
LIVE = 1_000_000_000  # weights that ZeRO-3 gathers at most, max_live_parameters; and its sub_group_size
FIRST_TOKENS = 4096  # of a pass in the first step with micro_tokens=0: qwen.TokenBudget


class Shape(NamedTuple):
    """What config.json says of a Qwen-VL."""

    family: str
    hidden: int  # D
    feed: int  # F
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int  # V
    tied: bool  # the head is the embedding
    tower: int  # E
    tower_feed: int
    tower_layers: int
    patch: int  # numbers of a patch: 3 colours x 2 frames x its pixels
    merge: int  # merge x merge patches are a visual token
    positions: int = 0  # learnt ones, and deepstack mergers: of Qwen3-VL
    mergers: int = 0


# fmt: off
PUBLISHED = {  # so that a plan needs no network
    "Qwen/Qwen2-VL-2B-Instruct":
        Shape("qwen2_vl", 1536, 8960, 28, 12, 2, 128, 151936, True, 1280, 5120, 32, 1176, 2),
    "Qwen/Qwen2.5-VL-3B-Instruct":
        Shape("qwen2_5_vl", 2048, 11008, 36, 16, 2, 128, 151936, True, 1280, 3420, 32, 1176, 2),
    "Qwen/Qwen2.5-VL-7B-Instruct":
        Shape("qwen2_5_vl", 3584, 18944, 28, 28, 4, 128, 152064, False, 1280, 3420, 32, 1176, 2),
}
# fmt: on


def read_config(model: str):
    """transformers' config of a checkpoint folder or hub id; no other file of it is read."""
    from transformers import AutoConfig

    return qwen.load_from(model, AutoConfig.from_pretrained)


def read_shape(model: str) -> Shape:
    """Of a checkpoint folder or hub id; SystemExit if it is of a family that is not planned for."""
    if model in PUBLISHED:
        return PUBLISHED[model]
    config = read_config(model)
    if config.model_type not in FAMILIES:
        raise SystemExit(
            f"plan: '{model}' is a {config.model_type}, and what it takes of memory has been worked out for "
            f"{', '.join(FAMILIES)} alone; a run starts without a plan, and micro_tokens=0 measures a token"
        )
    return shape_of(config)


def attention_heads(model: str) -> int:
    """Of the language model, of any family."""
    if model in PUBLISHED:
        return PUBLISHED[model].heads
    return read_config(model).get_text_config().num_attention_heads


def shape_of(config) -> Shape:
    """Of transformers' config of a Qwen-VL."""
    t, v = config.text_config, config.vision_config
    head_size = getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads
    text = (t.hidden_size, t.intermediate_size, t.num_hidden_layers, t.num_attention_heads)
    text += (t.num_key_value_heads, head_size, t.vocab_size, config.tie_word_embeddings)
    tower = (v.hidden_size, getattr(v, "intermediate_size", 0))
    if config.model_type == "qwen2_vl":
        tower = (v.embed_dim, v.embed_dim * v.mlp_ratio)
    tower += (v.depth, v.in_channels * v.temporal_patch_size * v.patch_size**2, v.spatial_merge_size)
    deep = (getattr(v, "num_position_embeddings", 0), len(getattr(v, "deepstack_visual_indexes", [])))
    return Shape(config.model_type, *text, *tower, *deep)


# -----------------------------------------------------------------------------
# parameters
# -----------------------------------------------------------------------------


def head_parameters(s: Shape) -> int:
    """The embedding where it is tied."""
    return s.vocabulary * s.hidden


def language_parameters(s: Shape) -> int:
    """Embedding, layers (q, k, v, o; gate, up, down; norms), last norm; and the head if it is not tied."""
    D, A, K = s.hidden, s.heads * s.head_size, s.key_heads * s.head_size
    # Qwen3 has norms of queries and keys, Qwen2 has biases of q, k and v
    extra = 2 * s.head_size if s.family == "qwen3_vl" else A + 2 * K
    layer = 2 * D * A + 2 * D * K + 3 * D * s.feed + 2 * D + extra
    return s.layers * layer + D + head_parameters(s) * (1 if s.tied else 2)


def tower_parameters(s: Shape) -> int:
    """Patches, blocks (qkv, proj, two or three matrices, norms) and mergers."""
    E, F, M = s.tower, s.tower_feed, s.tower * s.merge**2
    gated = s.family == "qwen2_5_vl"
    norm = E if gated else 2 * E  # a LayerNorm has a bias
    block = 2 * norm + 4 * E * E + 4 * E + (3 * E * F + 2 * F + E if gated else 2 * E * F + F + E)
    merger = M * M + M + M * s.hidden + s.hidden
    stem = s.patch * E + s.positions * E + (E if s.family == "qwen3_vl" else 0)
    return stem + s.tower_layers * block + norm + merger + s.mergers * (2 * M + merger)


def lora_parameters(s: Shape, rank: int) -> int:
    """A (rank, in) and B (out, rank) of the seven matrices of each layer."""
    D, A, K, F = s.hidden, s.heads * s.head_size, s.key_heads * s.head_size, s.feed
    return s.layers * rank * (2 * (D + A) + 2 * (D + K) + 3 * (D + F))


class Run:
    """The knobs of train_grpo.py or train_sft.py on so many cards, of which w train, and what follows."""

    def __init__(self, config: dict, cards: int, gpu_bytes: float):
        self.config, self.cards, self.gpu_bytes = config, cards, gpu_bytes
        self.samplers = config.get("vllm_gpus", 0)  # cards that sample and never train
        self.w = world = cards - self.samplers
        common.require(world > 0, f"vllm_gpus: of {cards} GPUs {self.samplers} would sample and none train")
        self.s = s = read_shape(config["model"])
        self.e = qwen.DTYPES[config["dtype"]].itemsize
        self.half = self.e == 2  # 16 bits
        self.lora = config["lora_rank"]
        self.tower_trained = not (config["freeze_vision"] or self.lora)
        language = language_parameters(s)
        self.base = language + tower_parameters(s)  # weights of the checkpoint
        self.t = self.base if self.tower_trained else lora_parameters(s, self.lora) or language
        self.n = self.base + (self.t if self.lora else 0)
        self.stage, self.offload = config["zero_stage"], config["offload_optimizer"]
        self.has_engine = config.get("rollout") == "vllm"
        self.vllm = self.has_engine and not self.samplers  # on the trainers' cards
        self.sleeps = self.vllm and config["vllm_sleep"]
        self.prompts = (config.get("prompts_per_step") or config["batch_size"]) / world  # of a process
        self.group = config.get("group_size", 1)
        self.prompt, self.completion = config["max_prompt_length"], config["max_completion_length"]  # tokens
        pixels = s.patch // 6 * s.merge**2  # of a visual token
        self.patches = min(config["max_pixels"] // pixels, self.prompt) * s.merge**2  # of a prompt

    def shared(self, size: float) -> float:
        """What ZeRO-3 leaves to each of w processes."""
        return size / self.w if self.stage == 3 else size


# -----------------------------------------------------------------------------
# terms, of each GPU
# -----------------------------------------------------------------------------


def weights_bytes(r: Run) -> float:
    """e n."""
    return r.shared(r.e * r.n)


def reference_bytes(r: Run) -> float:
    """A second model for the KL term; with LoRA it is the policy without its adapters."""
    return r.shared(r.e * r.base) if r.config.get("beta") and not r.lora else 0


def master_bytes(r: Run) -> float:
    """4 t / w, float32; whole at stage 0, where float32 has none."""
    if r.stage == 0:
        return 4 * r.t if r.half else 0
    return 0 if r.offload else 4 * r.t / r.w


def adam_bytes(r: Run) -> float:
    """8 t / w, whole at stage 0; fused=True makes no copy."""
    return 8 * r.t if r.stage == 0 else 0 if r.offload else 8 * r.t / r.w


def gradient_bytes(r: Run) -> tuple[float, float, float]:
    """Held for ever; more in the backward pass; more than held in the optimizer step. DeepSpeed 0.19:

    stage 0   e t; the step of 16 bits makes float32 copies               fp16/unfused_optimizer.py
    stage 1   e t; the step makes float32 of its part                     zero/stage_1_and_2.py
    stage 2   4 t / w, grad_accum_dtype=fp32; with offload, too: they go
              to the host when the last micro-batch is done               zero/stage_1_and_2.py
    stage 3   4 t / w, never freed; the step copies LIVE of them          zero/stage3.py
    """
    own, on_gpu = 4 * r.t / r.w, 0 if r.offload else 1
    if r.stage == 0:
        return 0, r.e * r.t, (r.e + 4) * r.t if r.half else 4 * r.t
    if r.stage < 3:
        return 0, r.e * r.t if r.stage == 1 else own, own * on_gpu
    return own * on_gpu, 0, min(own, 4 * LIVE) * on_gpu


def bucket_bytes(r: Run) -> float:
    """Gradients on their way: a bucket, of full size from the start, and its copy while it is reduced."""
    return r.e * ((BUCKET if r.stage else 0) + min(BUCKET, r.t))


def held_bytes(r: Run) -> dict[str, float]:
    """What each GPU holds all the time, once Adam is there."""
    others = gradient_bytes(r)[0] + (bucket_bytes(r) if r.stage == 3 else 0)
    if r.offload and r.stage < 3 and not r.lora:
        others += r.e * r.s.vocabulary * r.s.hidden  # temp_grad_buffer_for_gpu_offload
    context = CONTEXT_BYTES + ENGINE_BYTES * r.vllm + NCCL_BYTES * (r.w > 1)
    held = {"weights": weights_bytes(r), "reference": reference_bytes(r), "float32 master": master_bytes(r)}
    return held | {"Adam": adam_bytes(r), "gradients": others, "CUDA, NCCL, graphs": context}


def key_value_bytes(r: Run, tokens: float) -> float:
    """2 e K of each layer and token."""
    return 2 * r.e * r.s.layers * r.s.key_heads * r.s.head_size * tokens


def rollout_tokens(r: Run) -> float:
    """Of a process, with completions as long as they may be; those of a prompt share it."""
    return r.prompts * (r.prompt + r.group * r.completion)


def share_bytes(r: Run) -> float:
    """vLLM's share of a card on which it runs."""
    return r.config["vllm_gpu_memory"] * r.gpu_bytes if r.has_engine else 0


def engine_bytes(r: Run) -> float:
    """The same of a card that trains."""
    return share_bytes(r) if r.vllm else 0


def engine_needs_bytes(r: Run, tokens: float) -> float:
    """Weights, the pass that it measures (gate, up, product; float32 logits three times), half a GB, keys
    and values of so many tokens. Without room for one sequence it does not start. Tensor parallelism divides
    all but the logits, and the tokens where there are fewer heads of keys than processes.
    """
    parts = r.config["vllm_tensor_parallel"]
    work = 3 * r.e * r.s.feed * max(VLLM_TOKENS, r.prompt + r.completion)
    tokens_bytes = key_value_bytes(r, tokens) / min(parts, r.s.key_heads)
    return (r.e * r.base + work) / parts + 12 * VLLM_SEQUENCES * r.s.vocabulary + 0.5e9 + tokens_bytes


class Pass(NamedTuple):
    """A micro-batch, its prompts and completions as long as they may be."""

    tokens: float  # T
    keys: float  # rows of keys: each completion has those of its prompt before its own
    responses: float  # tokens that are predicted
    patches: float


def largest_pass(r: Run) -> Pass:
    """micro_tokens; at least a completion with its prompt, at most the step of a process."""
    group_tokens = r.prompt + r.group * r.completion
    least = max(r.config["micro_tokens"] or FIRST_TOKENS, r.prompt + r.completion)
    T = min(least, math.ceil(r.prompts) * group_tokens)
    prompts = max(1, T / group_tokens)
    completions = (T - prompts * r.prompt) / r.completion
    return Pass(T, T + completions * r.prompt, completions * r.completion, prompts * r.patches)


def layer_bytes(r: Run, p: Pass) -> float:
    """What autograd keeps of a layer, with FlashAttention: two norms, (4 + 2 e) D each (float32, and in 16
    bits before and after the weight); queries and result 2 e A; keys and values 2 e K; 4 e F.
    """
    A, K = r.s.heads * r.s.head_size, r.s.key_heads * r.s.head_size
    norms = 2 * (4 + 2 * r.e) * r.s.hidden + ((4 + r.e) * (A + K) if r.s.family == "qwen3_vl" else 0)
    return (norms + 2 * r.e * A + 4 * r.e * r.s.feed) * p.tokens + 2 * r.e * K * p.keys


def block_bytes(r: Run, p: Pass) -> float:
    """The same of a block of the tower; qkv, both after rotation and the result are 6 e E."""
    E, F, e = r.s.tower, r.s.tower_feed, r.e
    norm = (4 + 2 * e) * E if r.s.family == "qwen2_5_vl" else 2 * e * E
    feed = {"qwen2_vl": 3, "qwen2_5_vl": 4, "qwen3_vl": 2}[r.s.family] * e * F
    return (2 * norm + 6 * e * E + feed) * p.patches


def activation_bytes(r: Run, p: Pass) -> float:
    """All layers, or with grad_checkpointing their inputs and one layer; and as much as a layer for gradients
    on their way. A frozen tower keeps nothing.
    """
    layer, block = layer_bytes(r, p), block_bytes(r, p) * r.tower_trained
    ends = (4 + r.e) * r.s.hidden * p.tokens  # the last norm
    ends += (3 * r.e + 4) * r.s.tower * p.patches * r.tower_trained  # the merger
    if not r.config["grad_checkpointing"]:
        return (r.s.layers + 1) * layer + r.s.tower_layers * block + ends
    inputs = r.s.layers * r.s.hidden * p.tokens + r.s.tower_layers * r.s.tower * p.patches * r.tower_trained
    return r.e * inputs + 2 * max(layer, block) + ends


def logit_bytes(r: Run, p: Pass) -> float:
    """18 bytes for each logit of a chunk at its peak."""
    return 18 * r.s.vocabulary * min(qwen.Policy.CHUNK, p.responses)


# -----------------------------------------------------------------------------
# sums, and what would help
# -----------------------------------------------------------------------------


def moments_bytes(r: Run) -> dict[str, float]:
    """The most that a GPU holds at each moment. At the start there are no moments of Adam, but for stage 0 in
    16 bits, which takes a step with gradients of 0; ZeRO-3 has a whole model until it is sharded.
    """
    held, p = held_bytes(r), largest_pass(r)
    total = sum(held.values())
    _, backward, step = gradient_bytes(r)
    engine = engine_bytes(r)
    start = total - held["Adam"] + max(engine, r.e * r.n if r.stage == 3 else 0)
    if r.stage == 0 and r.half:
        start = total + max(engine, step - held["reference"])
    moments = {"start": start}
    if r.vllm:
        moments["first wake-up of vLLM" if r.sleeps else "rollout"] = total + engine
    beside = total if r.sleeps else total + engine
    gathered = r.e * min(r.n, LIVE) if r.stage == 3 else bucket_bytes(r)
    in_pass = backward + gathered + activation_bytes(r, p) + logit_bytes(r, p)
    return moments | {"backward pass": beside + in_pass, "optimizer step": beside + step}


def first_failure(r: Run, slack: float = 0.0) -> tuple[str, float, float]:
    """The first moment that takes more than there is, and `slack` of it more: name, bytes, limit."""
    needs = engine_needs_bytes(r, r.prompt + r.completion) if r.has_engine else 0
    found = [("start of vLLM within vllm_gpu_memory", needs, share_bytes(r) * (1 + max(0, slack)))]
    found += [(moment, size, r.gpu_bytes * (1 + slack)) for moment, size in moments_bytes(r).items()]
    return next((one for one in found if one[1] > one[2]), ("", 0, 0))


def host_bytes(r: Run) -> float:
    """Of a machine with up to 8 of the processes: offload (master, gradients, 16 bits; pinned, which torch
    rounds up to a power of two; Adam), the sleeping engine's weights, images of two steps; and one export.
    """
    pinned = [k * r.t / r.w for k in ((4, 4, 4) if r.stage == 3 else (4, 4, r.e))]
    offload = sum(2.0 ** math.ceil(math.log2(size)) for size in pinned) + 8 * r.t / r.w
    images = 2 * r.prompts * r.patches * 4.5 * r.s.patch  # float32, and the picture
    each = HOST_BYTES + offload * r.offload + r.e * r.base * r.sleeps + images
    return min(r.w, 8) * each + r.e * r.base


def disk_bytes(r: Run) -> float:
    """As checkpoint.check_room: (e + 12) t in a state, e n in an export; one of both more than is kept."""
    every, keep = r.config["save_interval"], r.config["keep"]
    saves = math.ceil(r.config["steps"] / every) if every else 1
    exports = min(saves, keep + 1) if keep else saves
    return min(saves, checkpoint.KEEP_STATES + 1) * (r.e + 12) * r.t + exports * r.e * r.base


def changes(r: Run) -> list[dict]:
    """Knobs that save memory, the cheapest first."""
    c = r.config
    tokens = c["micro_tokens"] or FIRST_TOKENS
    found = [{"grad_checkpointing": True}, {"micro_tokens": tokens // 2}, {"micro_tokens": tokens // 4}]
    if r.has_engine and r.samplers:
        found += [{"vllm_gpu_memory": 0.9}]
    if r.vllm:
        least = engine_needs_bytes(r, r.prompt + r.completion) / r.gpu_bytes
        shares = [i / 20 for i in range(18, 0, -1) if least <= i / 20]  # in these vLLM starts
        smaller = [share for share in shares if share < c["vllm_gpu_memory"]] or shares[-1:]
        found += [{"vllm_sleep": True}, *({"vllm_gpu_memory": share} for share in smaller)]
    found += [{"beta": 0.0}] if "beta" in c else []
    found += [{"zero_stage": 2}] if r.stage < 2 else []
    found += [{"zero_stage": 3}] if r.w > 1 and c.get("rollout") != "hf" and not c["compile_layers"] else []
    return [*found, {"offload_optimizer": True, "zero_stage": max(2, r.stage)}, {"lora_rank": 16}]


def remedy(r: Run, most: str = "lora_rank") -> dict | None:
    """The cheapest knobs with which the run fits, tried through the same sums; None if none do.

    One after another, up to the knob `most`, until it fits with UNCERTAINTY to spare, or if it never does,
    fits; then those that are not needed go, the dearest first.
    """
    tried = changes(r)
    tried = tried[: 1 + max(i for i, knobs in enumerate(tried) if most in knobs)]

    def fits(knobs: dict, spare: float) -> bool:
        return not first_failure(Run(r.config | knobs, r.cards, r.gpu_bytes), -spare)[0]

    for spare in (UNCERTAINTY, 0):
        changed = {}
        for knobs in tried:
            changed |= knobs
            if fits(changed, spare):
                for knob in list(changed)[::-1]:
                    without = {name: value for name, value in changed.items() if name != knob}
                    changed = without if fits(without, spare) else changed
                return changed
    return None


def advice(r: Run) -> str:
    knobs = remedy(r)
    if knobs is None:
        return "no knob helps: take a smaller model, shorter rows or more GPUs"
    return "the cheapest change: " + " ".join(f"--{name}={value}" for name, value in knobs.items())


def verdict(r: Run) -> str:
    """One line: does it fit, how much is it, what would help."""
    cards = f"{r.cards} x {r.gpu_bytes / 1e9:.0f} GB"
    moment, size, limit = first_failure(r)
    if moment:
        return f"does not fit {cards}: {size / 1e9:.1f} of {limit / 1e9:.1f} GB at the {moment}; {advice(r)}"
    worst, size = max(moments_bytes(r).items(), key=lambda one: one[1])
    tight = size > (1 - UNCERTAINTY) * r.gpu_bytes
    how = f"tight on {cards}, as this is good to {UNCERTAINTY:.0%}" if tight else f"fits {cards}"
    return f"{how}: at most {size / 1e9:.1f} GB, at the {worst}"


# -----------------------------------------------------------------------------
# for the scripts
# -----------------------------------------------------------------------------


def parse(value, world: int, device_gb: float) -> tuple[int, float]:
    """The knob `plan` as (processes, GB that a card has): True is this machine; 8x80 eight sold as 80 GB.

    They are sold in GiB, and a little of it is not there: 80, 40 and 24 are 85, 42 and 25 GB.
    """
    if str(value) == "True" and device_gb:
        return world, device_gb
    cards, _, sold = f"{world}x80".partition("x") if str(value) == "True" else str(value).partition("x")
    if not (cards.isdecimal() and sold.isdecimal() and int(cards) and int(sold)):
        raise SystemExit(f"plan: '{value}' is none of True, off, or GPUs x GB, such as 8x80 or 1x24")
    return int(cards), round(1.06 * int(sold))


def device_bytes() -> int:
    """Memory of the GPU of this process, 0 without one."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0))).total_memory


def show(config: dict) -> bool:
    """Print the plan that the knob `plan` asks for; False if it asks for none."""
    if config["plan"] in ("", "off"):
        return False
    if os.environ.get("RANK", "0") == "0":
        common.check_choices(config)
        world = int(os.environ.get("WORLD_SIZE", 1))
        print(text(config, *parse(config["plan"], world, device_bytes() / 1e9)))
    return True


def text(config: dict, world: int, gpu_gb: float) -> str:
    """The plan of a run on `world` cards, samplers included, of gpu_gb each: a table, and the verdict."""
    r = Run(config, world, gpu_gb * 1e9)
    p, held = largest_pass(r), held_bytes(r)
    rows = [*held.items(), ("sum, held all the time", sum(held.values()))]
    if r.has_engine:
        room = max(0, share_bytes(r) - engine_needs_bytes(r, 0))
        when = "asleep in the update" if r.sleeps else "never asleep"
        where = f"of {r.samplers} other card(s)" if r.samplers else f"of the card, {when}"
        rows.append((f"vLLM: {config['vllm_gpu_memory']:.0%} {where}", share_bytes(r)))
        rows.append(("  room for keys and values in it", room))
        # of all trainers that an engine serves
        engines = r.samplers // config["vllm_tensor_parallel"] or r.w / config["vllm_tensor_parallel"]
        tokens = rollout_tokens(r) * r.w / engines
        tokens_bytes = key_value_bytes(r, tokens) / min(config["vllm_tensor_parallel"], r.s.key_heads)
        rows.append(("  all completions at full length", tokens_bytes))
    rows.append((f"activations of {p.tokens:,.0f} tokens", activation_bytes(r, p)))
    rows.append((f"logits of {min(qwen.Policy.CHUNK, p.responses):,.0f} tokens", logit_bytes(r, p)))
    rows.append(("gradients in a pass", gradient_bytes(r)[1] + (bucket_bytes(r) if r.stage < 3 else 0)))
    rows += [(f"peak, {moment}", size) for moment, size in moments_bytes(r).items()]
    rows += [("host memory of a machine", host_bytes(r)), ("disk", disk_bytes(r))]
    sizes = f"{r.base / 1e6:,.0f} M parameters, {r.t / 1e6:,.0f} M trained"
    lines = [f"plan: {config['model']}, {sizes}, GB of each GPU"]
    return "\n".join([*lines, *(f"  {name:<50}{size / 1e9:>8.1f}" for name, size in rows), verdict(r)])


def check(config: dict, cards: int, gpu_bytes: int, say=print) -> None:
    """SystemExit if the run will not fit, by more than UNCERTAINTY. Not without a GPU, or with plan='off'."""
    asked = gpu_bytes and config["plan"] != "off"
    if asked and config["model"] not in PUBLISHED:
        family = read_config(config["model"]).model_type
        if family not in FAMILIES:
            say(f"memory: no plan for a {family}")
            asked = False
    r = Run(config, cards, gpu_bytes) if asked else None
    moment, size, limit = first_failure(r, UNCERTAINTY) if r else ("", 0, 0)
    if moment:
        sizes = f"takes {size / 1e9:.0f} GB by arithmetic, of {limit / (1 + UNCERTAINTY) / 1e9:.0f}"
        raise SystemExit(
            f"memory: the {moment} {sizes}; {advice(r)} (--plan=True shows the terms, --plan=off goes on)"
        )


def table() -> str:
    """Which model fits which cards, as markdown: GB at the peak, with the cheap knobs that it takes."""
    defaults = find_block(str(Path(__file__).with_name("train_grpo.py")))[1]
    kinds = {"all weights": {}, "offload": {"offload_optimizer": True}, "LoRA": {"lora_rank": 16}}
    lines = ["| GB at the peak | 1 x 24 GB | 1 x 80 GB | 8 x 80 GB |", "|---|---|---|---|"]
    for model in PUBLISHED:
        for kind, knobs in kinds.items():
            cells = []
            for cards in ("1x24", "1x80", "8x80"):
                world, gb = parse(cards, 1, 0)
                cells.append(cell(defaults | {"model": model} | knobs, world, gb))
            name = model.split("/")[1].removesuffix("-Instruct")
            lines.append(f"| {name}, {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(config: dict, world: int, gpu_gb: float) -> str:
    """GB; 'no' if no cheap knob helps."""
    r = Run(config, world, gpu_gb * 1e9)
    knobs = remedy(r, most="beta") if first_failure(r)[0] else {}
    peak = max(moments_bytes(Run(config | (knobs or {}), world, gpu_gb * 1e9)).values()) / 1e9
    tight = ", tight" if knobs is not None and peak > (1 - UNCERTAINTY) * gpu_gb else ""
    if knobs is None:
        return f"no: {peak:.0f}"
    return f"{peak:.0f}{tight}" + "".join(f", `{name}={value}`" for name, value in knobs.items())


if __name__ == "__main__":
    print(table())
