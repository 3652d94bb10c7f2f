"""Sampling completions: vLLM inside the trainer's process, or the transformers model itself, token by token.

Both draw from the same distribution, softmax(logits / temperature) without the banned ids, keep the log-prob of every
sampled token, know both of Qwen's end tokens, and take their seeds from (run, step, prompt, sample): a resumed run
samples what the uninterrupted one would have. Used by train_grpo.py (rollouts, evaluation) and eval.py.

    completions = rollout_vllm(llm, prompts, n=8, seeds=[...], **sampling)      # per prompt a list of n Completions
"""

import os
import sys
import zlib
from typing import NamedTuple

import torch

import qwen


class Completion(NamedTuple):
    ids: list[int]  # response tokens, the end token included
    logps: list[float]  # log-prob of each under the sampling distribution
    finished: bool  # False: cut off at max_tokens


def sample_seed(seed: int, step: int, prompt: int) -> int:
    """Seed of a prompt's first completion; completion i uses this + i. 31 bits, spread by CRC so that neighbours do not overlap."""
    return zlib.crc32(f"{seed}/{step}/{prompt}".encode()) >> 1


# -----------------------------------------------------------------------------
# vLLM
# -----------------------------------------------------------------------------


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
):
    """One engine per process (data parallel), in this process: the trainer hands it tensors, and torchrun started both.

    limits: data.processor_limits, which keep vLLM from resizing images a second time by limits in the checkpoint.
    gpu_memory: share of the GPU for weights and KV cache while the engine is awake; sleep: free it between rollouts.
    Raises SystemExit if vLLM is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine core in this process, not in a child
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # leave the trainer's threads where they are
    try:
        from vllm import LLM
    except ImportError as error:
        raise SystemExit(
            f"rollout='vllm': vLLM cannot be imported ({error}); run setup.sh, or set --rollout=hf"
        ) from error
    threads = torch.get_num_threads()
    options = {
        "model": path,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(8192, max_model_len),
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "logprobs_mode": "processed_logprobs",  # after temperature and bans: of the distribution that was sampled
        "mm_processor_kwargs": {"size": limits} if limits else None,
        "skip_mm_profiling": True,
        "enable_prefix_caching": True,
    }
    if cuda:
        options |= {"gpu_memory_utilization": gpu_memory, "enable_sleep_mode": sleep}
    else:
        # Compiling takes minutes on a CPU. A prompt prefilled in two chunks rewinds its random generator, which torch's CPU
        # generators cannot do ("CPU Generator does not use offset"), so there prompts are prefilled whole.
        options |= {"enforce_eager": True, "enable_chunked_prefill": False}
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        options["distributed_executor_backend"] = "external_launcher"
    with quiet():
        llm = LLM(**options)
    if not cuda:
        torch.set_num_threads(threads)  # vLLM's CPU worker sets its own
    return llm


class quiet:
    """Keeps what libraries print to stdout while they start off the console, unless NANOR1V_VERBOSE is set. Errors still raise."""

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
    """n completions of each prompt. top_k 0 = off; temperature 0 = greedy. Images go in as they are in prompt["row"]."""
    from vllm import SamplingParams

    requests, params = [], []
    for prompt, seed in zip(prompts, seeds, strict=True):
        images = prompt["row"]["images"]
        requests.append(
            {"prompt_token_ids": prompt["token_ids"]}
            | ({"multi_modal_data": {"image": images}} if images else {})
        )
        params.append(
            SamplingParams(
                n=n,
                seed=seed,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k or -1,
                max_tokens=max_tokens,
                logprobs=0,
                detokenize=False,
                stop_token_ids=end,
                logit_bias=dict.fromkeys(banned, -100.0),
                skip_special_tokens=False,
            )
        )
    outputs = llm.generate(requests, params, use_tqdm=progress)
    result = []
    for prompt, output in zip(prompts, outputs, strict=True):
        # the trainer will score these tokens after ITS prompt: the two must be the same, image placeholders included
        assert list(output.prompt_token_ids) == prompt["input_ids"], (
            f"vLLM and we disagree on the prompt of row {prompt['row']['id']}"
        )
        group = []
        for c in sorted(output.outputs, key=lambda c: c.index):
            logps = [step[t].logprob for step, t in zip(c.logprobs, c.token_ids, strict=True)]
            group.append(Completion(list(c.token_ids), logps, c.finish_reason == "stop"))
        result.append(group)
    return result


def sync_weights(llm, weights, sleeping: bool = False) -> None:
    """Load the trainer's weights, (name, tensor) pairs under their checkpoint names, into the engine. ALL RANKS under ZeRO-3.

    All three caches hold results of the old weights: keys and values of prompt prefixes, processed images, and encoder
    outputs of images. Keeping any of them means sampling from a mixture of two policies, or a failed look-up.
    """
    if sleeping:
        llm.wake_up(tags=["weights"])
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    if sleeping:
        llm.wake_up(tags=["kv_cache"])
    llm.reset_prefix_cache()
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


# -----------------------------------------------------------------------------
# transformers
# -----------------------------------------------------------------------------


def draw(
    logits: torch.Tensor, u: torch.Tensor, temperature: float, banned: torch.Tensor, warpers: list
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token (S,) of each sequence and its log-prob (S,), from logits (S, V) and one uniform number (S,) in [0, 1) each.

    Inverse transform: the first token whose cumulative probability exceeds u. Temperature 0 takes the most probable one.
    """
    logits = logits.float().index_fill(1, banned, -torch.inf)
    if temperature > 0:
        logits = logits / temperature
        for warp in warpers:
            logits = warp(None, logits)
    logp = logits.log_softmax(-1)  # (S, V)
    if temperature == 0:
        token = logp.argmax(-1, keepdim=True)  # (S, 1)
    else:
        total = logp.exp().cumsum(
            -1, dtype=torch.float64
        )  # in float32 the rare tokens of a vocabulary of 152 k would vanish in the sum
        # (with weights that are NaN the place would be one too far; the loss will say so in a better sentence)
        token = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True).clamp_max(logp.shape[1] - 1)
    return token[:, 0], logp.gather(1, token)[:, 0]


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
    """The same with the transformers model alone, token by token, in batches of at most `batch` sequences.

    A prompt is read once for its n completions; sequences that have ended leave the batch.
    """
    from tqdm import tqdm
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    device, was_training, result = next(model.parameters()).device, model.training, []
    warpers = ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
    banned, ends = torch.tensor(banned, device=device), torch.tensor(end, device=device)
    model.eval()
    step = max(1, batch // n)
    for first in tqdm(range(0, len(prompts), step), desc="generate", disable=not progress):
        group = prompts[first : first + step]
        P, S = len(group), len(group) * n
        # every completion has a random generator of its own: the same draws in any batch
        u = torch.stack(
            [
                torch.rand(max_tokens, generator=torch.Generator().manual_seed(s + i), dtype=torch.float64)
                for s in seeds[first : first + step]
                for i in range(n)
            ]
        ).to(device)  # (S, max_tokens)

        # prefill: the prompts end to end in one pass, their keys and values kept
        packed = qwen.to_device(qwen.collate([(p, [], len(p["input_ids"])) for p in group], model), device)
        begin, width = (
            packed["segments"][:P, 0],
            packed["segments"][:P, 1],
        )  # (P,) where the prompts stand, their lengths
        W = int(width.max())
        at = (begin[:, None] + torch.arange(W, device=device)).clamp_max(
            packed["input_ids"].shape[1] - 1
        )  # (P, W)
        cache, attend = [], qwen.between_segments(packed["segments"], model)

        @torch.compiler.disable
        def prefill(query, key, value, scaling, layer):
            pair = []
            for x in (
                key,
                value,
            ):  # (1, Hkv, T, d) -> (S, Hkv, W + max_tokens, d), the second part still empty
                x = x[0][:, at].transpose(0, 1).repeat_interleave(n, 0)
                pair.append(torch.cat([x, x.new_zeros(*x.shape[:2], max_tokens, x.shape[3])], 2))
            cache.append(pair)
            return attend(query, key, value, scaling, layer)

        @torch.compiler.disable  # every step has another length: under compile_layers the rest of a layer is compiled, this is not
        def decode(query, key, value, scaling, layer):
            keys, values = cache[layer]
            keys[:, :, W + t], values[:, :, W + t] = key[:, :, 0], value[:, :, 0]
            # the query heads that share a key head, as if they were so many queries: query (S, H, 1, d) -> (S, Hkv, H / Hkv, d)
            out = torch.nn.functional.scaled_dot_product_attention(
                query.view(len(query), key.shape[1], -1, query.shape[3]),
                keys[:, :, : W + t + 1],
                values[:, :, : W + t + 1],
                attn_mask=None if all_same else visible[:, :, :, : W + t + 1],
                scale=scaling,
            )
            return out.view(len(query), 1, -1, query.shape[3])  # (S, 1, H, d)

        hidden = model.model(
            input_ids=packed["input_ids"],
            position_ids=packed["position_ids"],
            pixel_values=packed["pixel_values"],
            image_grid_thw=packed["image_grid_thw"],
            use_cache=False,
            attend=prefill,
        ).last_hidden_state
        hidden = hidden[0, begin + width - 1].repeat_interleave(n, 0)  # (S, D)
        position = (
            torch.stack([qwen.prompt_positions(p, model).max() + 1 for p in group])
            .to(device)
            .repeat_interleave(n)
        )  # (S,)
        visible = (torch.arange(W + max_tokens, device=device) >= W) | (
            torch.arange(W + max_tokens, device=device) < width[:, None]
        )
        visible, all_same = (
            visible.repeat_interleave(n, 0)[:, None, None],
            bool((width == W).all()),
        )  # (S, 1, 1, W + max_tokens)

        ids, logps = (
            torch.full((S, max_tokens), end[-1], device=device),
            torch.zeros(S, max_tokens, device=device),
        )
        alive, left = (
            torch.arange(S, device=device),
            torch.ones(S, dtype=torch.bool, device=device),
        )  # in the batch; of these, not ended
        for t in range(max_tokens):
            token, logp = draw(model.lm_head(hidden), u[alive, t], temperature, banned, warpers)
            ids[alive, t], logps[alive, t] = token, logp
            left &= ~torch.isin(token, ends)
            if t + 1 == max_tokens or not left.any():
                break
            if left.sum() <= 0.75 * len(alive):  # copying the cache costs something, too
                cache = [[x[left] for x in pair] for pair in cache]
                alive, token, position, visible, left = (
                    x[left] for x in (alive, token, position, visible, left)
                )
            hidden = model.model(
                input_ids=token[:, None],
                position_ids=(position + t).expand(3, -1)[..., None],
                use_cache=False,
                attend=decode,
            ).last_hidden_state[:, 0]  # (S, D)
        ids, logps = ids.tolist(), logps.tolist()
        result += [[cut(ids[s], logps[s], end) for s in range(p * n, p * n + n)] for p in range(P)]
    model.train(was_training)
    return result


def cut(ids: list[int], logps: list[float], end: list[int]) -> Completion:
    """The completion up to and including its first end token; without one it was cut off at max_tokens."""
    stop = next((t for t, token in enumerate(ids) if token in end), None)
    length = len(ids) if stop is None else stop + 1
    return Completion(ids[:length], logps[:length], stop is not None)
