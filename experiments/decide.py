"""What only a GPU can decide, in about 5 minutes on one: lines that end in "good" or "BAD", which is exit 1.

    python -m experiments.decide                                # Qwen2-VL-2B's shape, random weights
    python -m experiments.decide --model=Qwen/Qwen2-VL-2B-Instruct
    VLLM_USE_V2_MODEL_RUNNER=0 python -m experiments.decide     # vLLM's older model runner, if that fails
    python -m experiments.decide --device=cpu                   # a rehearsal on a tiny model

The attention kernel against plain attention; the engine's log-probs against the trainer's, before and after
new weights; the same tokens for the same seeds; sleeping and waking up; the seconds of each.
"""

import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import checkpoint
import common
import data
import qwen
import sampling
from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with  python -m experiments.decide --key=value
model = ""                # checkpoint folder or hub id; '' = random weights in a published shape, or tiny
shape = "qwen2_vl_2b"     # of random weights: see experiments/bench.py
device = "cuda"           # or 'cpu'
gpu_memory = 0.4          # vLLM's share
out_dir = "out/decide"
# -----------------------------------------------------------------------------
# fmt: on

TEMPERATURE = 0.9
failed = []  # names of checks


def check(name: str, good: bool, what: str) -> None:
    """Print a line, and keep the name if it is BAD."""
    print(f"{name}: {what}: {'good' if good else 'BAD'}", flush=True)
    if not good:
        failed.append(name)


def timed(work, *args, **settings):
    """(result, seconds) of work, the GPU's part included."""
    started = time.time()
    result = work(*args, **settings)
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.time() - started


def print_machine() -> None:
    """What the machine is."""
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {sys.version.split()[0]}")
    print(f"compiler {shutil.which('gcc') or shutil.which('clang')}")
    print(f"Python.h {Path(sysconfig.get_paths()['include'], 'Python.h').exists()}")
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        print(subprocess.run(query, capture_output=True, text=True).stdout.strip())


# -----------------------------------------------------------------------------
# the attention kernel
# -----------------------------------------------------------------------------


def check_kernel(heads: int, key_heads: int, size: int, causal: bool) -> None:
    """qwen.varlen, forward and backward, against plain attention in float32, sequence by sequence."""
    query_lengths = [40, 30, 7]
    key_lengths = [40, 70, 47] if causal else query_lengths
    q = random_heads(sum(query_lengths), heads, size)
    k = random_heads(sum(key_lengths), key_heads, size)
    v = random_heads(sum(key_lengths), key_heads, size)
    bounds = [
        torch.tensor([0, *lengths]).cumsum(0).int().to(device) for lengths in (query_lengths, key_lengths)
    ]
    ours = qwen.varlen(q, k, v, *bounds, max(query_lengths), max(key_lengths), size**-0.5, causal)
    parts = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    plain = torch.cat([plain_attention(*part, causal) for part in parts])
    weight = torch.randn_like(ours)
    ours_grad = torch.autograd.grad(ours, (q, k, v), weight)
    plain_grad = torch.autograd.grad(plain, (q, k, v), weight.float())
    forward = (ours.float() - plain).abs().max().item()
    backward = max(
        (a.float() - b.float()).abs().max().item() for a, b in zip(ours_grad, plain_grad, strict=True)
    )
    what = f"{heads} heads on {key_heads} of {size}, off by {forward:.1e}, gradients by {backward:.1e}"
    check("varlen attention", max(forward, backward) < 5e-2, what)


def random_heads(tokens: int, heads: int, size: int) -> torch.Tensor:
    return torch.randn(tokens, heads, size, device=device, dtype=torch.bfloat16, requires_grad=True)


def plain_attention(q, k, v, causal: bool) -> torch.Tensor:
    """(T, H, d) in float32; the last query stands at the last key."""
    mask = None
    if causal:
        mask = torch.ones(len(q), len(k), device=q.device, dtype=torch.bool).tril(len(k) - len(q))
    q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(0, 1)


# -----------------------------------------------------------------------------
# engine and trainer in one process
# -----------------------------------------------------------------------------


def make_model() -> str:
    """A folder with random weights, made once."""
    from experiments import bench

    folder = Path(out_dir, shape if device == "cuda" else "tiny")
    if not (folder / "config.json").exists():
        if device == "cuda":
            bench.build_shape(str(folder), shape)
        else:
            qwen.build_tiny(str(folder), data.tiny_corpus())
    return str(folder)


class Pair:
    """The trainer's model and vLLM's engine with the same weights, and prompts with pictures."""

    def __init__(self, path: str, on: torch.device):
        self.on = on
        on_gpu = device == "cuda"
        dtype = "bfloat16" if on_gpu else "float32"
        self.net = qwen.load_model(path, dtype, "auto", on)
        processor = qwen.load_processor(path)
        self.banned = qwen.banned_ids(self.net.config, processor)
        self.end = qwen.end_ids(processor)
        rows = data.load_rows(
            "scenes:clevr?rows=16&size=480x320" if on_gpu else "scenes:clevr?rows=2&size=112x112"
        )
        self.prompts = [data.encode_prompt(rows[i], processor) for i in range(len(rows))]
        self.group, self.tokens = (8, 128) if on_gpu else (2, 8)
        limits = data.processor_limits(processor, 401408)
        settings = {"limits": limits, "gpu_memory": gpu_memory, "cuda": on_gpu, "sleep": on_gpu}
        self.llm, seconds = timed(sampling.start_vllm, path, dtype, 1280, **settings)
        config = self.llm.llm_engine.vllm_config
        runner = "V2" if config.use_v2_model_runner else "V1"
        print(f"vLLM: started in {seconds:.0f} s, model runner {runner}, {len(self.banned)} banned ids")

    def sample(self, temperature: float) -> list[list[sampling.Completion]]:
        """A group for each prompt, always with the same seeds; greedy with temperature 0."""
        n = self.group if temperature > 0 else 1
        seeds = [sampling.sample_seed(0, 0, i) for i in range(len(self.prompts))]
        knobs = {"top_p": 1.0, "top_k": 0, "max_tokens": self.tokens, "banned": self.banned, "end": self.end}
        return sampling.rollout_vllm(self.llm, self.prompts, n, seeds, temperature, **knobs)

    def mismatch(self, groups) -> float:
        """Mean |log-prob of the engine - log-prob of the trainer| of the sampled tokens."""
        completions = [completion for group in groups for completion in group]
        theirs = torch.tensor(
            [logp for completion in completions for logp in completion.logps], device=self.on
        )
        policy = qwen.Policy(self.net, self.banned, TEMPERATURE)
        ours = torch.zeros_like(theirs)
        used = torch.ones(len(completions), dtype=torch.bool)
        budget = qwen.TokenBudget(8192, self.on)
        ids = [completion.ids for completion in completions]
        with torch.no_grad():
            for batch in qwen.micro_batches(self.prompts, ids, used, self.net, budget):
                ours[batch["token"]] = policy(batch, entropy="none")[0]
        return (ours - theirs).abs().mean().item()

    def sync(self, sleeping: bool = False) -> None:
        sampling.sync_weights(self.llm, checkpoint.full_state(self.net, 0), sleeping)


def same_tokens(first, second) -> float:
    """Share of the completions that are equal, token by token."""
    pairs = [pair for a, b in zip(first, second, strict=True) for pair in zip(a, b, strict=True)]
    return sum(a.ids == b.ids for a, b in pairs) / len(pairs)


def check_rollout(pair: Pair) -> None:
    """Seconds, the trainer's log-probs, and the same seeds once more."""
    for _ in range(3):
        groups, seconds = timed(pair.sample, TEMPERATURE)
        count = sum(len(completion.ids) for group in groups for completion in group)
        print(f"rollout: {seconds:.2f} s, {count / seconds:.0f} tokens a second")
    off = pair.mismatch(groups)
    check("log-probs", off < 1e-2, f"engine and trainer differ by {off:.1e} on average")
    share = same_tokens(groups, pair.sample(TEMPERATURE))
    check("seeds", share > 0.95, f"{share:.0%} of the completions again for the same seeds")


def check_sleep(pair: Pair) -> None:
    """Level 1, as the trainer has it: what it frees, its seconds, and the same greedy tokens after it."""
    before = pair.sample(0.0)
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
        _, down = timed(pair.llm.sleep, level=1)
        freed = (torch.cuda.mem_get_info()[0] - free) / 1e9
        check("sleep", freed > 1, f"{down:.2f} s, {freed:.1f} GB freed")
    _, up = timed(pair.sync, device == "cuda")
    share = same_tokens(before, pair.sample(0.0))
    check("wake up and reload", share > 0.9, f"{up:.2f} s, {share:.0%} of the greedy completions as before")


def check_new_weights(pair: Pair) -> None:
    """Do they reach the captured CUDA graphs, and are all caches emptied?"""
    old = pair.sample(0.0)
    with torch.no_grad():
        for weight in pair.net.parameters():
            weight.add_(torch.randn_like(weight) * weight.std().nan_to_num() * 0.05)
    _, seconds = timed(pair.sync)
    off = pair.mismatch(pair.sample(TEMPERATURE))
    check("new weights", off < 1e-2, f"{seconds:.2f} s, engine and trainer differ by {off:.1e}")
    share = same_tokens(old, pair.sample(0.0))
    check("other weights, other tokens", share < 1, f"{share:.0%} of the greedy completions as before")


def main() -> None:
    configure(globals(), sys.argv[1:], __file__)
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device: there is no GPU; python -m experiments.decide --device=cpu rehearses it")
    _, _, on = common.setup(0)
    print_machine()
    if device == "cuda":
        check_kernel(heads=12, key_heads=2, size=128, causal=True)  # the language model's
        check_kernel(heads=16, key_heads=16, size=80, causal=False)  # the vision tower's
    pair = Pair(model or make_model(), on)
    check_rollout(pair)
    check_sleep(pair)
    check_new_weights(pair)
    common.finish(pair.llm)
    if failed:
        raise SystemExit(f"decide: {', '.join(failed)}: BAD")


if __name__ == "__main__":
    common.run(main)
