"""Sampling completions: vLLM inside the trainer's process, or transformers' generate where vLLM is not installed.

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


def start_vllm(path: str, dtype: str, max_model_len: int, max_images: int = 1, limits: dict | None = None, max_num_seqs: int = 256,
               gpu_memory: float = 0.4, seed: int = 0, cuda: bool = False, sleep: bool = False):  # fmt: skip
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
        raise SystemExit(f"rollout='vllm': vLLM cannot be imported ({error}); run setup.sh, or set --rollout=hf") from error
    threads = torch.get_num_threads()
    options = {
        "model": path, "dtype": dtype, "seed": seed, "max_model_len": max_model_len, "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(8192, max_model_len), "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "logprobs_mode": "processed_logprobs",  # after temperature and bans: of the distribution that was sampled
        "mm_processor_kwargs": {"size": limits} if limits else None, "skip_mm_profiling": True, "enable_prefix_caching": True,
    }  # fmt: skip
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


def rollout_vllm(llm, prompts: list[dict], n: int, seeds: list[int], temperature: float, top_p: float, top_k: int, max_tokens: int,
                 banned: list[int], end: list[int], progress: bool = False) -> list[list[Completion]]:  # fmt: skip
    """n completions of each prompt. top_k 0 = off; temperature 0 = greedy. Images go in as they are in prompt["row"]."""
    from vllm import SamplingParams

    requests, params = [], []
    for prompt, seed in zip(prompts, seeds, strict=True):
        images = prompt["row"]["images"]
        requests.append({"prompt_token_ids": prompt["token_ids"]} | ({"multi_modal_data": {"image": images}} if images else {}))
        params.append(SamplingParams(
            n=n, seed=seed, temperature=temperature, top_p=top_p, top_k=top_k or -1, max_tokens=max_tokens, logprobs=0, detokenize=False,
            stop_token_ids=end, logit_bias=dict.fromkeys(banned, -100.0), skip_special_tokens=False,
        ))  # fmt: skip
    outputs = llm.generate(requests, params, use_tqdm=progress)
    result = []
    for prompt, output in zip(prompts, outputs, strict=True):
        # the trainer will score these tokens after ITS prompt: the two must be the same, image placeholders included
        assert list(output.prompt_token_ids) == prompt["input_ids"], f"vLLM and we disagree on the prompt of row {prompt['row']['id']}"
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


class SeededSampler:
    """A logits processor that draws the next token itself: argmax(logp + Gumbel noise) is a draw from softmax(logp).

    Every completion so has a random generator of its own, and the log-prob of its token is known at once. What generate
    gets back leaves it no choice: the drawn token has logit 0, all others -inf.
    """

    def __init__(self, seeds: list[int], temperature: float, top_p: float, top_k: int, banned: list[int], device):
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        self.temperature, self.banned, self.logps = temperature, torch.tensor(banned, device=device), []
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        self.warpers = ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float().index_fill(1, self.banned, -1e9)  # (S, V), S sequences of the batch
        if self.temperature == 0:
            logp = logits.log_softmax(-1)
            token = logp.argmax(-1, keepdim=True)  # (S, 1)
        else:
            logits = logits / self.temperature
            for warp in self.warpers:
                logits = warp(input_ids, logits)
            logp = logits.log_softmax(-1)
            u = torch.stack([torch.rand(logp.shape[1], generator=g, dtype=torch.float64) for g in self.generators])  # (S, V) in [0, 1)
            token = (logp - (-u.clamp_min(1e-300).log()).log().to(logp)).argmax(-1, keepdim=True)
        self.logps.append(logp.gather(1, token)[:, 0])  # (S,)
        return torch.full_like(logp, -torch.inf).scatter_(1, token, 0.0)


@torch.no_grad()
def rollout_hf(model, prompts: list[dict], n: int, seeds: list[int], temperature: float, top_p: float, top_k: int, max_tokens: int,
               banned: list[int], end: list[int], progress: bool = False, batch: int = 128) -> list[list[Completion]]:  # fmt: skip
    """The same with transformers' generate, in batches of at most `batch` sequences (images are encoded once per prompt)."""
    from tqdm import tqdm
    from transformers import GenerationConfig, LogitsProcessorList

    device, pad, result = next(model.parameters()).device, end[-1], []
    was_training, shipped = model.training, model.generation_config
    model.eval()  # gradient checkpointing switches the KV cache off in training mode
    # The checkpoint's own settings carry Qwen's top_k, top_p and repetition penalty: generate would fill our gaps with them.
    model.generation_config = GenerationConfig()
    step = max(1, batch // n)
    for first in tqdm(range(0, len(prompts), step), desc="generate", disable=not progress):
        group = prompts[first : first + step]
        width = max(len(p["input_ids"]) for p in group)
        left = [width - len(p["input_ids"]) for p in group]  # padding, on the left: generation goes on at the right
        ids = torch.tensor([[pad] * k + p["input_ids"] for k, p in zip(left, group, strict=True)], device=device)  # (P, width)
        mask = torch.tensor([[0] * k + [1] * (width - k) for k in left], device=device)
        sampler = SeededSampler([s + i for s in seeds[first : first + step] for i in range(n)], temperature, top_p, top_k, banned, device)
        vision = {}
        if any(p["pixel_values"] is not None for p in group):
            vision = {k: torch.cat([p[k] for p in group if p[k] is not None]).to(device) for k in ("pixel_values", "image_grid_thw")}
        # top_k=0: transformers' default is to sample from the 50 most probable tokens
        config = GenerationConfig(max_new_tokens=max_tokens, do_sample=True, top_k=0, num_return_sequences=n, eos_token_id=end,
                                  pad_token_id=pad)  # fmt: skip
        types = (ids == model.config.image_token_id).int()
        out = model.generate(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, generation_config=config,
                             logits_processor=LogitsProcessorList([sampler]), **vision)  # fmt: skip
        logps = torch.stack(sampler.logps, 1).tolist()  # (S, steps)
        for p in range(len(group)):
            result.append([cut(out[s, width:].tolist(), logps[s], end) for s in range(p * n, (p + 1) * n)])
    model.train(was_training)
    model.generation_config = shipped
    model.model.rope_deltas = None  # of the last batch; a later forward pass must not find them
    return result


def cut(ids: list[int], logps: list[float], end: list[int]) -> Completion:
    """The completion up to and including its first end token; without one it was cut off at max_tokens."""
    stop = next((t for t, token in enumerate(ids) if token in end), None)
    length = len(ids) if stop is None else stop + 1
    return Completion(ids[:length], logps[:length], stop is not None)
