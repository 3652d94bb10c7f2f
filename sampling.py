"""Sampling completions: vLLM inside the trainer's process, or the transformers model itself, token by token.

Both draw from the same distribution, softmax(logits / temperature) without the banned ids, keep the log-prob
of every sampled token, know both of Qwen's end tokens, and take their seeds from (run, step, prompt, sample):
a resumed run samples what the uninterrupted one would have. Used for rollouts and for evaluation.

    completions = rollout_vllm(llm, prompts, n=8, seeds=[...], **sampling)  # n Completions of each prompt

Shapes: P prompts, n completions of each, S = P * n sequences (sequence s belongs to prompt s // n), B <= S of
them still in the batch, V vocabulary, D hidden, H query heads, Hkv heads of keys and values, d head size.
"""

import os
import sys
import zlib
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import deltanet
import qwen


class Completion(NamedTuple):
    ids: list[int]  # response tokens, the end token included
    logps: list[float]  # log-prob of each under the sampling distribution
    finished: bool  # False: cut off at max_tokens


def sample_seed(seed: int, step: int, prompt: int) -> int:
    """Seed of a prompt's first completion; completion i uses this + i.

    31 bits, spread by CRC so that neighbours do not overlap.
    """
    return zlib.crc32(f"{seed}/{step}/{prompt}".encode()) >> 1


# -----------------------------------------------------------------------------
# vLLM
# -----------------------------------------------------------------------------


VLLM_CPU_DELTA_NETS = ("bfloat16",)  # what its kernels for gated delta nets take on a CPU


def start_vllm(
    path: str,
    dtype: str,
    max_model_len: int,
    max_images: int = 1,
    limits: dict | None = None,
    max_num_seqs: int = 256,
    gpu_memory: float = 0.4,
    seed: int = 0,
    cuda: bool = False,
    sleep: bool = False,
    tensor_parallel: int = 1,
):
    """One engine per process (data parallel), in this process: the trainer hands it tensors.

    limits:     data.processor_limits, which keep vLLM from resizing images again, by the checkpoint's limits
    gpu_memory: share of the GPU for weights and KV cache while the engine is awake
    sleep:      free that memory between rollouts
    tensor_parallel: so many processes in a row share one engine, and must ask it the same

    Raises SystemExit if vLLM is not installed, or cannot run this model on a CPU.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine core in this process, not in a child
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # leave the trainer's threads where they are
    try:
        from vllm import LLM
    except ImportError as error:
        remedy = "run setup.sh, or set --rollout=hf"
        raise SystemExit(f"rollout='vllm': vLLM cannot be imported ({error}); {remedy}") from error
    from transformers import AutoConfig

    hybrid = deltanet.is_hybrid(AutoConfig.from_pretrained(path, trust_remote_code=False))
    if hybrid and not cuda and dtype not in VLLM_CPU_DELTA_NETS:
        raise SystemExit(
            f"dtype: on CPUs vLLM runs the gated delta nets of '{path}' in bfloat16 alone; "
            "set --dtype=bfloat16, or sample with the transformers model itself (--rollout=hf, --backend=hf)"
        )
    options = {
        "model": path,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(8192, max_model_len),
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "logprobs_mode": "processed_logprobs",  # after temperature and bans: what was sampled from
        "mm_processor_kwargs": {"size": limits} if limits else None,
        "skip_mm_profiling": True,
        "enable_prefix_caching": True,
        "tensor_parallel_size": tensor_parallel,
    }
    if cuda:
        options["gpu_memory_utilization"] = gpu_memory
        options["enable_sleep_mode"] = sleep
    else:
        options["enforce_eager"] = True  # compiling takes minutes on a CPU
        # A prompt prefilled in two chunks rewinds its random generator, which torch's CPU generators cannot
        # do ("CPU Generator does not use offset"), so there prompts are prefilled whole.
        options["enable_chunked_prefill"] = False
        # and without chunks it keeps no states of delta nets for prompts that come again
        options["enable_prefix_caching"] = not hybrid
    if max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")) > 1:
        # torchrun has started the processes, and LOCAL_RANK is the GPU, also of an engine that is alone
        options["distributed_executor_backend"] = "external_launcher"
    threads = torch.get_num_threads()
    with quiet():
        llm = LLM(**options)
    torch.set_num_threads(threads)  # vLLM sets its own
    return llm


class quiet:
    """Keeps off the console what libraries print to stdout while they start, unless NANOR1V_VERBOSE is set.

    Errors still raise.
    """

    def __enter__(self):
        sys.stdout.flush()
        self.kept = os.dup(1)
        if not os.environ.get("NANOR1V_VERBOSE"):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)

    def __exit__(self, *exception):
        sys.stdout.flush()
        os.dup2(self.kept, 1)
        os.close(self.kept)


MOST_BANNED = 1024  # entries of a logit_bias that vLLM's sampler on GPUs takes; a Qwen-VL needs up to 410


def rollout_vllm(
    llm,
    prompts: list[dict],
    n: int,
    seeds: list[int],
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    banned: list[int],
    end: list[int],
    progress: bool = False,
) -> list[list[Completion]]:
    """n completions of each prompt. top_k 0 = off; temperature 0 = greedy.

    Images go in as they are in prompt["row"].
    """
    from vllm import SamplingParams

    if not prompts:
        return []
    if len(banned) > MOST_BANNED:
        raise SystemExit(
            f"vllm: {len(banned)} ids of this vocabulary are no tokens and must not be sampled, and vLLM can "
            f"exclude {MOST_BANNED}; set --rollout=hf, or shrink the model's embedding to its tokenizer"
        )
    requests = []
    params = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        request = {"prompt_token_ids": prompt["token_ids"]}
        if prompt["row"]["images"]:
            request["multi_modal_data"] = {"image": prompt["row"]["images"]}
        requests.append(request)
        params.append(
            SamplingParams(
                n=n,
                seed=seed,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k or -1,
                max_tokens=max_tokens,
                logprobs=0,  # of the sampled token alone
                detokenize=False,
                stop_token_ids=end,
                logit_bias=dict.fromkeys(banned, -100.0),
                skip_special_tokens=False,
            )
        )
    outputs = llm.generate(requests, params, use_tqdm=progress)

    groups = []
    for prompt, output in zip(prompts, outputs, strict=True):
        # the trainer will score these tokens after ITS prompt: both must be the same, image placeholders too
        same_prompt = list(output.prompt_token_ids) == prompt["input_ids"]
        assert same_prompt, f"vLLM and we disagree on the prompt of row {prompt['row']['id']}"
        in_order = sorted(output.outputs, key=lambda sample: sample.index)
        groups.append([from_vllm(sample) for sample in in_order])
    return groups


def from_vllm(sample) -> Completion:
    """vLLM's CompletionOutput as ours. Its `logprobs` has a dict {token: log-prob} for every position."""
    logps = []
    for token, choices in zip(sample.token_ids, sample.logprobs, strict=True):
        logps.append(choices[token].logprob)
    return Completion(list(sample.token_ids), logps, finished=sample.finish_reason == "stop")


def sync_weights(llm, weights, sleeping: bool = False) -> None:
    """Load the trainer's weights, (name, tensor) pairs under their checkpoint names, into the engine.

    ALL RANKS under ZeRO-3, since `weights` gathers them on the way.

    All three caches hold results of the old weights: keys and values of prompt prefixes, processed images,
    and encoder outputs of images. Keeping any of them means sampling from a mixture of two policies, or a
    failed look-up.
    """
    if sleeping:
        llm.wake_up(tags=["weights"])
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    if sleeping:
        llm.wake_up(tags=["kv_cache"])
    if not llm.reset_prefix_cache():
        raise SystemExit(
            "vllm: the engine still works on a request and keeps keys and values of the old weights; "
            "nothing is sampled from such a mixture. Please report how this run came to it"
        )
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


# -----------------------------------------------------------------------------
# transformers
# -----------------------------------------------------------------------------


@torch.no_grad()
def rollout_hf(
    model,
    prompts: list[dict],
    n: int,
    seeds: list[int],
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    banned: list[int],
    end: list[int],
    progress: bool = False,
    batch: int = 128,
) -> list[list[Completion]]:
    """The same with the transformers model alone, token by token, in batches of at most `batch` sequences."""
    from tqdm import tqdm
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    device = next(model.parameters()).device
    warpers = []
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    banned = torch.tensor(banned, device=device)
    pick = partial(draw, temperature=temperature, banned=banned, warpers=warpers)

    was_training = model.training
    model.eval()
    groups = []
    size = max(1, batch // n)  # prompts of a batch
    for first in tqdm(range(0, len(prompts), size), desc="generate", disable=not progress):
        uniform = uniform_numbers(seeds[first : first + size], n, max_tokens).to(device)
        groups += complete(model, prompts[first : first + size], uniform, pick, end)
    model.train(was_training)
    return groups


def uniform_numbers(seeds: list[int], n: int, max_tokens: int) -> torch.Tensor:
    """Uniform numbers (S, max_tokens) in [0, 1), one for each token that may be drawn.

    Every completion has a random generator of its own, so it gets the same numbers in any batch.
    """
    rows = []
    for seed in seeds:
        for i in range(n):
            generator = torch.Generator().manual_seed(seed + i)
            rows.append(torch.rand(max_tokens, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def draw(
    logits: torch.Tensor, u: torch.Tensor, temperature: float, banned: torch.Tensor, warpers: list
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token (S,) of each sequence and its log-prob (S,).

    From logits (S, V) and one uniform number (S,) in [0, 1) each, by inverse transform: the first token whose
    cumulative probability exceeds u. Temperature 0 takes the most probable one.
    """
    logits = logits.float().index_fill(1, banned, -torch.inf)  # (S, V)
    if temperature > 0:
        logits = logits / temperature
        for warp in warpers:
            logits = warp(None, logits)
    logp = logits.log_softmax(-1)  # (S, V)
    if temperature == 0:
        token = logp.argmax(-1, keepdim=True)  # (S, 1)
    else:
        # in float32 the rare tokens of a vocabulary of 152 k would vanish in the sum
        cumulative = logp.exp().cumsum(-1, dtype=torch.float64)  # (S, V)
        threshold = u[:, None] * cumulative[:, -1:]  # (S, 1); the sum is 1 but for rounding
        token = torch.searchsorted(cumulative, threshold, right=True)  # (S, 1)
        # with weights that are NaN it would be one too far; the loss will say so in a better sentence
        token = token.clamp_max(logp.shape[1] - 1)
    return token[:, 0], logp.gather(1, token)[:, 0]


def complete(
    model, prompts: list[dict], uniform: torch.Tensor, pick, end: list[int]
) -> list[list[Completion]]:
    """The completions of P prompts, all S sequences at once; uniform (S, max_tokens) decides what is drawn.

    `pick` is `draw` with the knobs of the run. Sequences that have ended leave the batch of B <= S rows.
    """
    S, max_tokens = uniform.shape
    device = uniform.device
    n = S // len(prompts)
    ends = torch.tensor(end, device=device)
    ids = torch.full((S, max_tokens), end[-1], device=device)
    logps = torch.zeros(S, max_tokens, device=device)

    cache, hidden = prefill(model, prompts, n, max_tokens)  # hidden (B, D)
    rows = torch.arange(S, device=device)  # (B,) the sequences in the batch
    running = torch.ones(S, dtype=torch.bool, device=device)  # (B,) False: has ended
    for t in range(max_tokens):
        token, logp = pick(model.lm_head(hidden), uniform[rows, t])  # (B,) each
        ids[rows, t] = token
        logps[rows, t] = logp
        running &= ~torch.isin(token, ends)
        if t + 1 == max_tokens or not running.any():
            break
        # only when a quarter has ended, since copying the cache costs something, too
        if running.sum() <= 0.75 * len(rows):
            cache.keep(running)
            rows, token, running = rows[running], token[running], running[running]
        hidden = decode(model, cache, token, t)  # (B, D)

    completions = []
    for sequence_ids, sequence_logps in zip(ids.tolist(), logps.tolist(), strict=True):
        completions.append(cut(sequence_ids, sequence_logps, end))
    return [completions[p * n : p * n + n] for p in range(len(prompts))]


def cut(ids: list[int], logps: list[float], end: list[int]) -> Completion:
    """The completion up to and including its first end token; without one it was cut off at max_tokens."""
    for t, token in enumerate(ids):
        if token in end:
            return Completion(ids[: t + 1], logps[: t + 1], finished=True)
    return Completion(ids, logps, finished=False)


def prefill(model, prompts: list[dict], n: int, max_tokens: int) -> tuple["Cache", torch.Tensor]:
    """Read the prompts, each once for its n completions, end to end in one pass of T tokens.

    Returns their cache, and the hidden state (S, D) from which every sequence's first token is drawn.
    """
    P = len(prompts)
    device = next(model.parameters()).device
    blocks = [(prompt, [], len(prompt["input_ids"])) for prompt in prompts]  # no completions yet
    packed = qwen.to_device(qwen.collate(blocks, model), device)
    start, length = packed["segments"][:P, :2].unbind(1)  # (P,) each: where a prompt stands in T
    # M-RoPE goes on behind the prompt's largest position, which is not its length if there are images
    position = torch.stack([qwen.prompt_positions(prompt, model).max() + 1 for prompt in prompts]).to(device)

    attend = qwen.between_segments(packed["segments"], model)
    scan = deltanet.between_segments(packed["segments"], model)
    cache = Cache(start, length, position, n, max_tokens, attend, scan)
    hidden = model.model(
        input_ids=packed["input_ids"],
        position_ids=packed["position_ids"],
        pixel_values=packed["pixel_values"],
        image_grid_thw=packed["image_grid_thw"],
        use_cache=False,
        attend=cache.attend_prompts,
        scan=cache.scan_prompts,
    ).last_hidden_state  # (1, T, D)
    last = hidden[0, start + length - 1]  # (P, D)
    return cache, last.repeat_interleave(n, 0)


def decode(model, cache: "Cache", token: torch.Tensor, t: int) -> torch.Tensor:
    """The hidden state (B, D) after token t (B,) of every completion: the next token is drawn from it."""
    cache.column = cache.width + t
    position = (cache.position + t).expand(3, -1)  # (3, B): in text all three axes of M-RoPE are alike
    hidden = model.model(
        input_ids=token[:, None],
        position_ids=position[..., None],
        use_cache=False,
        attend=cache.attend_token,
        scan=cache.scan_token,
    ).last_hidden_state  # (B, 1, D)
    return hidden[:, 0]


class Cache:
    """Keys and values of the B sequences in the batch: (B, Hkv, W + max_tokens, d) each in every layer; of
    a gated delta net the last inputs of its convolution and its state, see deltanet.next_token.

    Columns 0 to W - 1 hold a sequence's prompt, padded to the longest of the batch, column W + t its token t:

        prompt of 3, W = 4      p p p _ | a b c ...         _ is never attended to: False in `visible`

    In every layer the model calls attend_prompts or attend_token for its attention (see qwen.attention), or
    scan_prompts or scan_token for its delta net. They stay uncompiled under compile_layers: every step has
    another length.
    """

    def __init__(self, start, length, position, n: int, max_tokens: int, between_prompts, scan):
        """start, length, position (P,): of the prompts in the packed pass, and where their completions go on.

        between_prompts: the attention of that pass; scan: what its delta nets ask, None without any.
        """
        self.n, self.max_tokens, self.between_prompts = n, max_tokens, between_prompts
        self.scan, self.prompts = scan, len(start)
        self.width = int(length.max())  # W
        self.column = self.width  # of the token that is being decoded
        self.position = position.repeat_interleave(n)  # (B,)
        self.keys, self.values = {}, {}  # by layer
        self.tails, self.states = {}, {}  # by layer: (B, K - 1, channels), (B, Hv, dk, dv)
        column = torch.arange(self.width + max_tokens, device=start.device)  # (W + max_tokens,)
        visible = (column < length[:, None]) | (column >= self.width)  # (P, W + max_tokens)
        self.visible = visible.repeat_interleave(n, 0)[:, None, None]  # (B, 1, 1, W + max_tokens)
        self.padded = bool((length < self.width).any())
        # where the prompts' tokens stand in T; behind a prompt's end any place will do, as nobody looks there
        last = (start + length).max() - 1
        self.place = (start[:, None] + column[: self.width]).clamp(max=last)  # (P, W)

    @torch.compiler.disable
    def attend_prompts(self, query, key, value, scaling, layer):
        """Each prompt attends to itself. query (1, H, T, d); key and value (1, Hkv, T, d), which are kept."""
        self.keys[layer] = self.spread(key)
        self.values[layer] = self.spread(value)
        return self.between_prompts(query, key, value, scaling, layer)

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, Hkv, T, d) -> (S, Hkv, W + max_tokens, d): a row for each sequence, room for its completion."""
        prompts = packed[0][:, self.place].transpose(0, 1)  # (P, Hkv, W, d)
        sequences = prompts.repeat_interleave(self.n, 0)  # (S, Hkv, W, d)
        S, Hkv, _, d = sequences.shape
        return torch.cat([sequences, sequences.new_zeros(S, Hkv, self.max_tokens, d)], 2)

    @torch.compiler.disable
    def attend_token(self, query, key, value, scaling, layer):
        """One new token of each sequence attends to all before it and to itself.

        query (B, H, 1, d), key and value (B, Hkv, 1, d); returns (B, 1, H, d).
        """
        B, H, _, d = query.shape
        Hkv = key.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.column] = key[:, :, 0]
        values[:, :, self.column] = value[:, :, 0]
        filled = self.column + 1
        out = F.scaled_dot_product_attention(
            # the query heads that share a key head, as if they were so many queries
            query.view(B, Hkv, H // Hkv, d),
            keys[:, :, :filled],
            values[:, :, :filled],
            attn_mask=self.visible[..., :filled] if self.padded else None,
            scale=scaling,
        )  # (B, Hkv, H / Hkv, d)
        return out.view(B, 1, H, d)

    @torch.compiler.disable
    def scan_prompts(self, net, qkv, log_decay, beta):
        """The prompts of a delta net's layer, whose ends are kept; shapes as Scan's."""
        out, tail, state = self.scan.prompts(net, qkv, log_decay, beta)
        # behind the P prompts there may be a blank one, which nothing goes on from
        self.tails[net.layer_idx] = tail[: self.prompts].repeat_interleave(self.n, 0)
        self.states[net.layer_idx] = state[: self.prompts].repeat_interleave(self.n, 0)
        return out.index_select(0, self.scan.result_at)[None]  # (1, T, Hv, dv)

    @torch.compiler.disable
    def scan_token(self, net, qkv, log_decay, beta):
        """One new token of each sequence; shapes as deltanet.next_token's."""
        layer = net.layer_idx
        out, self.tails[layer], self.states[layer] = deltanet.next_token(
            net, qkv, log_decay, beta, self.tails[layer], self.states[layer]
        )
        return out

    def keep(self, running: torch.Tensor) -> None:
        """Drop the sequences where `running` (B,) is False."""
        for of_layers in (self.keys, self.values, self.tails, self.states):
            for layer, of_sequences in of_layers.items():
                of_layers[layer] = of_sequences[running]
        self.visible = self.visible[running]
        self.position = self.position[running]
