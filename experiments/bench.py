"""Speed and memory of a GRPO step beside TRL's GRPOTrainer: the same model, rows and tokens, in turns.

    # 2 M parameters, 4 prompts x 8 completions x 64 tokens, one CPU thread
    python -m experiments.bench
    # 12.5 M parameters
    python -m experiments.bench --hidden=256 --layers=9
    # 256 visual tokens a prompt
    python -m experiments.bench --image=448
    # how the cost of a step grows; also prompts, tokens, image, hidden
    python -m experiments.bench --sweep=group --values=4,8,16
    # ours alone
    python -m experiments.bench --peer=none
    # models of Qwen's real shapes on a GPU
    bash experiments/bench_gpu.sh

All of them in the root of the repository. Our side is train_grpo.py itself, the whole script; the peer is
TRL's trainer (pip install -r experiments/requirements-trl.txt; without it only ours is measured). Both sample
with the transformers model, or on a GPU both with vLLM (on a CPU TRL cannot); exactly `tokens` tokens for
every completion, since end tokens are banned. CPU seconds are those of all threads of the process: unlike
wall seconds they hardly change while other programs run. The last line of stdout is JSON: an object, or with
--sweep a list of them.
"""

import importlib.util
import json
import math
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with  python -m experiments.bench --key=value
# model, of random weights
hidden = 128              # width of language model and vision tower, a multiple of 32
layers = 4                # of each of them
shape = ""                # instead: 'qwen2_vl_2b', 'qwen2_5_vl_3b' or 'qwen2_5_vl_7b', the published shapes
# work of a step
prompts = 4
group = 8                 # completions per prompt
tokens = 64               # of each completion
image = 112               # width in pixels; 28 x 28 are one visual token
image_height = 0          # 0 = square
beta = 0.04               # 0.0: no reference model
dtype = "float32"
# measurement
steps = 10                # of each run
warmup = 2                # of these, left out
rounds = 3                # ours and the peer in turns, so often
device = "cpu"            # or 'cuda'
threads = 1               # on the CPU
rollout = "hf"            # sampler of both: 'hf' or 'vllm'
flags = ""                # more knobs of train_grpo.py: "--compile_layers=True --lora_rank=16"
peer = "trl"              # 'trl' or 'none'
peer_batch = 0            # completions in one of the peer's forward passes; 0 = all of the step
peer_flags = ""           # more of the peer's arguments, as JSON: '{"gradient_checkpointing": true}'
sweep = ""                # name of a knob of the work, and its values
values = ""
out_dir = "out/bench"
side = ""                 # set by this script for the processes that it starts
# -----------------------------------------------------------------------------
# fmt: on

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = ("hidden", "layers", "prompts", "group", "tokens", "image", "beta")
PHASES = ("rollout", "reward", "reference", "update", "sync")
# what counts: CPU seconds, or wall seconds where a GPU does the work
CLOCK = {"cpu": "step_cpu_s", "cuda": "step_s"}


def letters(completion: str, row: dict) -> float:
    """A reward, the share of vowels: hardly ever equal in a group, so the update leaves no group out."""
    return sum(letter in "aeiou" for letter in completion) / max(1, len(completion))


# -----------------------------------------------------------------------------
# model and rows
# -----------------------------------------------------------------------------

# fmt: off
# What the config.json files of Qwen's checkpoints say of the language model
TEXT_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "vocab_size", "tie_word_embeddings")
SHAPES = {
    "qwen2_vl_2b":   ("qwen2_vl",   (1536,  8960, 28, 12, 2, 151936, True)),
    "qwen2_5_vl_3b": ("qwen2_5_vl", (2048, 11008, 36, 16, 2, 151936, True)),
    "qwen2_5_vl_7b": ("qwen2_5_vl", (3584, 18944, 28, 28, 4, 152064, False)),
}
# fmt: on


def text_config(shape: str) -> dict:
    """What SHAPES says, and the rest."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    published = dict(zip(TEXT_KEYS, SHAPES[shape][1], strict=True))
    return published | {"rope_parameters": rope, "max_position_embeddings": 32768}


def vision_config(family: str, width: int) -> dict:
    """The vision tower of a family; `width` is that of the language model that it feeds."""
    common = {
        "depth": 32,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        return common | {"embed_dim": 1280, "hidden_size": width, "mlp_ratio": 4}
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    return common | windows | {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": width}


def shape_model(shape: str, ids: dict | None = None):
    """transformers' model of a published shape, random weights, default device; ids of the special tokens."""
    import transformers

    family, _ = SHAPES[shape]
    text = text_config(shape)
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision_config(family, text["hidden_size"]),
        tie_word_embeddings=text["tie_word_embeddings"],
        **(ids or {}),
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def fill_vocabulary(tokenizer, size: int) -> None:
    """As many entries as the model has. No merge leads to the new ones: they are only sampled."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for i in range(len(vocabulary), size):
        vocabulary[f"unused {i}"] = i
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


def build_shape(path: str, shape: str) -> None:
    """A checkpoint of a published shape in bfloat16, with a tokenizer of as many entries as the model has."""
    import torch

    import data
    import qwen

    if shape not in SHAPES:
        raise SystemExit(f"shape: '{shape}' is none of {', '.join(SHAPES)}")
    family, _ = SHAPES[shape]
    processor = qwen.tiny_processor(data.tiny_corpus(), family)
    fill_vocabulary(processor.tokenizer, text_config(shape)["vocab_size"])
    end, pad = qwen.end_ids(processor)
    special = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {name: processor.tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    net = shape_model(shape, ids)  # on the CPU: what this process leaves on the GPU its children would lack
    torch.set_default_dtype(torch.float32)
    net.generation_config.eos_token_id = [end, pad]
    net.generation_config.pad_token_id = pad
    net.save_pretrained(path)
    processor.save_pretrained(path)


def prepare(work: Path) -> None:
    """Model and rows of a point, once: both sides read these files."""
    import data
    import qwen
    from tasks import scenes

    model = work / "model"
    if not (model / "config.json").exists():
        if shape:
            build_shape(str(model), shape)
        else:
            sizes = {"hidden": hidden, "layers": layers, "vision_layers": layers}
            qwen.build_tiny(str(model), data.tiny_corpus(), **sizes)
    rows = []
    for i in range(prompts * steps):
        scene = scenes.sample_scene(i, layout="grid", min_objects=1, max_objects=8, size=(112, 112))
        picture = scenes.draw_scene(scene).resize((image, image_height or image))
        picture.save(work / f"{i}.png")
        count = str(len(scene["objects"]))
        rows.append(json.dumps({"image": f"{i}.png", "problem": scenes.COUNT_ALL[0], "solution": count}))
    (work / "rows.jsonl").write_text("\n".join(rows))


def work_folder(config: dict) -> Path:
    """The folder of a point, named after its model and rows."""
    names = ("shape", "hidden", "layers", "prompts", "group", "tokens", "image")
    return Path(out_dir, "-".join(str(config[name]) for name in names if config[name]))


def max_pixels() -> int:
    return max(image * (image_height or image), 12544)


# -----------------------------------------------------------------------------
# a side: it runs in a process of its own, and prints what it measured
# -----------------------------------------------------------------------------


class Mark(NamedTuple):
    """A moment between two steps."""

    wall: float
    cpu: float  # seconds of all threads of this process
    facts: dict


def mark(facts: dict) -> Mark:
    return Mark(time.time(), time.process_time(), facts)


def seconds_a_step(marks: list[Mark]) -> dict:
    """From the first mark to the last."""
    first, last, between = marks[0], marks[-1], len(marks) - 1
    return {"step_s": (last.wall - first.wall) / between, "step_cpu_s": (last.cpu - first.cpu) / between}


def check_lengths(lengths: list[float]) -> None:
    """Of the completions, in every step."""
    if set(lengths) != {tokens}:
        raise SystemExit(f"bench: completions of {set(lengths)} tokens: the work is not what it should be")


def finish(report: dict, torch_peak_mib: float) -> None:
    """Print what a side measured as the last line, and leave."""
    import torch

    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device == "cuda":
        # of the whole device, vLLM's share included, at the end of a step; the most that torch held in one
        free, total = torch.cuda.mem_get_info()
        report |= {"gpu_mib": (total - free) / 2**20, "torch_peak_mib": torch_peak_mib}
    print("\n" + json.dumps({name: round(value, 5) for name, value in report.items()}), flush=True)
    os._exit(0)  # engines and trainers take seconds to come down, and have nothing more to say


def ban_end_tokens() -> None:
    """qwen.banned_ids with the end tokens: every completion is exactly as long as it may be."""
    import qwen

    banned_ids = qwen.banned_ids

    def with_end_tokens(config, processor) -> list[int]:
        return sorted({*banned_ids(config, processor), *qwen.end_ids(processor)})

    qwen.banned_ids = with_end_tokens


# -----------------------------------------------------------------------------
# our side
# -----------------------------------------------------------------------------


def our_knobs(work: Path) -> dict:
    """The knobs of train_grpo.py."""
    return {
        "model": work / "model",
        "data_source": work / "rows.jsonl",
        "out_dir": work / "ours",
        "dtype": dtype,
        "rollout": rollout,
        "prompts_per_step": prompts,
        "group_size": group,
        "max_completion_length": tokens,
        "max_prompt_length": 2048,
        "steps": steps,
        "max_pixels": max_pixels(),
        "temperature": 1.0,
        "beta": beta,
        "learning_rate": 1e-6,
        "lr_schedule": "constant",
        "reward_weights": {"accuracy": 1.0, "format": 1.0, "experiments.bench:letters": 1.0},
        "reward_workers": 0,
        "eval_interval": 0,
        "zero_stage": 0 if device == "cpu" else 2,
        "grad_checkpointing": False,
        "show_interval": 0,
        "resume": False,
        "thumbnails": 0,
    }


def run_ours(work: Path) -> None:
    """train_grpo.py as it is, but for the ban and for a mark at the end of each step."""
    import common

    ban_end_tokens()
    marks = []
    write = common.Log.write

    def write_and_mark(self, record: dict) -> None:
        marks.append(mark(record))
        write(self, record)

    common.Log.write = write_and_mark
    knobs = [f"--{name}={value}" for name, value in our_knobs(work).items()]
    sys.argv = ["train_grpo.py", *knobs, *flags.split()]
    runpy.run_path(str(ROOT / "train_grpo.py"), run_name="__main__")

    used = marks[warmup - 1 :]  # the first one is the end of the warm-up
    check_lengths([end.facts["length"] for end in used])
    report = seconds_a_step(used)
    for phase in PHASES:
        report[f"{phase}_s"] = statistics.fmean(end.facts[f"seconds_{phase}"] for end in used[1:])
    # train_grpo.py resets torch's peak in every phase, and logs it
    finish(report, max(end.facts["memory_gib"] for end in used) * 1024)


# -----------------------------------------------------------------------------
# the peer
# -----------------------------------------------------------------------------


class Stopwatch:
    """Seconds spent in methods of the trainer so far."""

    def __init__(self):
        self.seconds = {"generate": 0.0, "score": 0.0, "logps": 0.0}
        self.scoring = False

    def watch(self, trainer, method: str, name: str) -> None:
        """Log-probs count (as those of the reference) only inside the scoring of rollouts."""
        call = getattr(trainer, method)

        def timed(*arguments, **more):
            if name == "logps" and not self.scoring:
                return call(*arguments, **more)
            started = time.time()
            if name == "score":
                self.scoring = True
            try:
                return call(*arguments, **more)
            finally:
                self.seconds[name] += time.time() - started
                if name == "score":
                    self.scoring = False

        setattr(trainer, method, timed)


def trl_rows(work: Path):
    """The rows that our side reads, with the same prompt, as a Dataset."""
    from datasets import Dataset
    from PIL import Image

    import data

    records = []
    for line in (work / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        text = data.TEMPLATES["think"].format(problem=row["problem"])
        records.append(
            {
                "prompt": [{"role": "user", "content": text}],
                "image": Image.open(work / row["image"]),
                "solution": row["solution"],
            }
        )
    return Dataset.from_list(records)


def trl_rewards() -> list:
    """Ours, in the shape that TRL calls; the name of a function is that of its column."""
    import rewards

    def part_of_ours(part: str):
        def reward(completions, solution, **more) -> list[float]:
            scores = []
            for completion, truth in zip(completions, solution, strict=True):
                row = {"solution": truth, "task": "count", "problem": ""}
                scores.append(rewards.score(completion[0]["content"], row)[part])
            return scores

        reward.__name__ = part
        return reward

    def vowels(completions, **more) -> list[float]:
        return [letters(completion[0]["content"], {}) for completion in completions]

    return [part_of_ours("accuracy"), part_of_ours("format"), vowels]


def trl_arguments(work: Path, banned: list[int]) -> dict:
    """Of GRPOConfig: our step, with one optimizer step for a batch of rollouts."""
    completions = prompts * group
    batch = peer_batch or completions
    arguments = {
        "output_dir": str(work / "trl"),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "num_generations": group,
        "beta": beta,
        "gradient_accumulation_steps": completions // batch,
        "generation_batch_size": completions,
        "max_completion_length": tokens,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "loss_type": "grpo",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "bf16": dtype == "bfloat16",
        "fp16": False,
        "use_cpu": device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
    }
    # on a CPU TRL fails to hand new weights to vLLM, so there it samples with transformers in any case
    if rollout == "vllm" and device == "cuda":
        arguments |= {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.4,
            "vllm_enable_sleep_mode": True,
            "generation_kwargs": {"logit_bias": dict.fromkeys(banned, -100.0)},
        }
    else:
        arguments["generation_kwargs"] = {"suppress_tokens": banned}
    return arguments | json.loads(peer_flags or "{}")


def run_trl(work: Path) -> None:
    """TRL's trainer on the same rows, with the same prompt, rewards and bans."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    import qwen

    ban_end_tokens()
    processor = qwen.load_processor(str(work / "model"))
    processor.tokenizer.padding_side = "left"
    net = AutoModelForImageTextToText.from_pretrained(work / "model", dtype=qwen.DTYPES[dtype])
    stopwatch = Stopwatch()
    marks = []

    class Marks(TrainerCallback):
        def on_train_begin(self, *arguments, **more):
            marks.append(mark(dict(stopwatch.seconds)))

        def on_step_end(self, *arguments, **more):
            marks.append(mark(dict(stopwatch.seconds)))

    trainer = GRPOTrainer(
        model=net,
        reward_funcs=trl_rewards(),
        args=GRPOConfig(**trl_arguments(work, qwen.banned_ids(net.config, processor))),
        train_dataset=trl_rows(work),
        processing_class=processor,
        callbacks=[Marks()],
    )
    trainer.remove_callback(PrinterCallback)
    stopwatch.watch(trainer, "_generate_single_turn", "generate")
    stopwatch.watch(trainer, "_generate_and_score_completions", "score")
    stopwatch.watch(trainer, "_get_per_token_logps_and_entropies", "logps")
    trainer.train()

    key = "completions/mean_length"
    check_lengths([log[key] for log in trainer.state.log_history if key in log])
    used = marks[warmup:]
    report = seconds_a_step(used)
    first, last = used[0].facts, used[-1].facts
    spent = {name: (last[name] - first[name]) / (len(used) - 1) for name in first}
    report |= {
        "rollout_s": spent["generate"],
        "reference_s": spent["logps"],
        "sync_s": 0.0,
        "reward_s": spent["score"] - spent["generate"] - spent["logps"],
        "update_s": report["step_s"] - spent["score"],
    }
    finish(report, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0)


# -----------------------------------------------------------------------------
# measurements
# -----------------------------------------------------------------------------


def measure(which: str, work: Path, config: dict) -> dict:
    """One run of a side in a process of its own."""
    knobs = [f"--{name}={value}" for name, value in (config | {"side": which}).items()]
    command = [sys.executable, "-m", "experiments.bench", *knobs]
    environment = dict(os.environ)
    if device == "cpu":
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    if sys.platform == "linux" and device == "cpu" and threads == 1:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    log = work / f"{which}.log"
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"bench: {which} failed, see {log}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def matmul_peak() -> float:
    """Operations per second in a large matrix product of `dtype`, on a CPU by `threads` threads."""
    import torch

    torch.set_num_threads(threads)
    cuda = device == "cuda"
    n = 8192 if cuda else 1024
    clock = time.time if cuda else time.process_time  # CPU seconds are the sum over threads
    matrix = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    best = math.inf
    for _ in range(8):
        started = clock()
        matrix @ matrix
        if cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return 2 * n**3 / best * (1 if cuda else threads)


def arithmetic(work: Path) -> dict:
    """What a step has to compute, from the shapes: tokens in the language model, images in the tower, FLOPs.

    A forward pass costs 2 operations a parameter and token, a backward pass twice that; attention scores are
    left out. Ours reads a prompt once for its group, the peer once for each completion.
    """
    import data
    import qwen

    processor = qwen.load_processor(str(work / "model"))
    net = qwen.load_model(str(work / "model"), dtype, say=lambda line: None)
    size = sum(weight.numel() for weight in net.model.language_model.parameters())
    tower = sum(weight.numel() for weight in net.model.visual.parameters())
    row = data.load_rows(str(work / "rows.jsonl"))[0]
    encoded = data.encode_prompt(row, processor, max_prompt_length=4096, max_pixels=max_pixels())
    prompt = len(encoded["input_ids"])
    # as the processor makes them: sides rounded to 28 pixels, 4 patches for 28 x 28 of them
    patches = 4 * round(image / 28) * round((image_height or image) / 28)
    reference = 1 if beta > 0 else 0
    forward_passes = 2 + reference  # rollout, reference, update
    cost = forward_passes + 2  # in forward passes: the update's backward pass is worth two
    facts = {"parameters": size + tower, "prompt_tokens": prompt, "patches": patches}
    for name, copies in (("ours", 1), ("trl", group)):
        in_pass = prompts * (copies * prompt + group * tokens)
        flops = 2 * (size * in_pass + tower * prompts * copies * patches)
        facts[name] = {
            "tokens": in_pass * forward_passes,
            "images": prompts * copies * forward_passes,
            "flops": cost * flops,
            "update_flops": (cost - 1) * flops,  # all but the rollout's
        }
    return facts


# -----------------------------------------------------------------------------
# tables
# -----------------------------------------------------------------------------


def median(runs: list[dict]) -> dict:
    """The median of every figure over the runs of a side."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def print_row(title: str, cells: list[str]) -> None:
    print(f"{title:<34}" + "".join(f"{cell:>12}" for cell in cells))


def print_table(middle: dict[str, dict], facts: dict, peak: float) -> None:
    """middle: the figures of each side; facts: of arithmetic(); peak: of matmul_peak()."""
    sides = list(middle)
    where = f"{threads} CPU thread(s)" if device == "cpu" else "GPU"
    samples = f"{prompts} prompts of {facts['prompt_tokens']} tokens x {group} completions x {tokens} tokens"
    print(f"\n{facts['parameters'] / 1e6:.1f} M parameters, {samples}, beta {beta}, {where}\n")
    print_row(f"median of {rounds} run(s)", sides)

    titles = {"step_cpu_s": "CPU seconds a step", "step_s": "wall seconds a step"}
    titles |= {f"{phase}_s": f"  {phase}" for phase in PHASES}
    titles["peak_mib"] = "peak memory, MiB"
    titles["gpu_mib"] = "GPU memory in use, MiB"
    titles["torch_peak_mib"] = "  most that torch held"
    for name, title in titles.items():
        if name in middle["ours"]:
            digits = 0 if name.endswith("mib") else 3
            print_row(title, [f"{middle[s][name]:.{digits}f}" for s in sides])

    step = {s: middle[s][CLOCK[device]] for s in sides}
    update = {s: middle[s]["reference_s"] + middle[s]["update_s"] for s in sides}
    second = "CPU second" if device == "cpu" else "second"
    print_row(f"completions per {second}", [f"{prompts * group / step[s]:.1f}" for s in sides])
    print_row("tokens through the language model", [f"{facts[s]['tokens']:,}" for s in sides])
    print_row("images through the vision tower", [f"{facts[s]['images']:,}" for s in sides])
    print_row("GFLOP a step", [f"{facts[s]['flops'] / 1e9:.1f}" for s in sides])
    print_row("  reference and update", [f"{facts[s]['update_flops'] / 1e9:.1f}" for s in sides])
    # CPU seconds go with the peak of one thread, the phases' wall seconds with that of all
    step_peak = peak / threads if device == "cpu" else peak
    shares = [facts[s]["flops"] / step[s] / step_peak for s in sides]
    print_row("share of the matmul peak", [f"{share:.1%}" for share in shares])
    shares = [facts[s]["update_flops"] / update[s] / peak for s in sides]
    print_row("  reference and update", [f"{share:.1%}" for share in shares])


def print_limit(work: Path, facts: dict, seconds: float) -> None:
    """Our step beside what the card could do at best, see limit.py."""
    import torch

    from experiments import limit

    name = torch.cuda.get_device_name()
    gpu = limit.gpu_named(name)
    if not gpu:
        print(
            f"limit: '{name}' is none of {', '.join(limit.GPUS)}; its data sheet's figures go into limit.GPUS"
        )
        return
    visual = facts["patches"] // 4
    knobs = {"prompts": prompts, "group": group, "tokens": tokens, "image": image, "beta": beta}
    knobs |= {"image_height": image_height, "text_tokens": facts["prompt_tokens"] - visual}
    knobs["grad_checkpointing"] = "--grad_checkpointing=True" in flags
    print("\n" + limit.text(limit.read_shape(str(work / "model")), limit.work_of(knobs), gpu, 0.5, seconds))


def peer_ratios(runs: dict[str, list[dict]]) -> dict[str, list[float]]:
    """The peer's seconds by ours, round by round."""
    clock = CLOCK[device]
    ratios = {"step": [], "wall": [], "update": []}
    for theirs, ours in zip(runs["trl"], runs["ours"], strict=True):
        ratios["step"].append(theirs[clock] / ours[clock])
        ratios["wall"].append(theirs["step_s"] / ours["step_s"])
        their_update = theirs["update_s"] + theirs["reference_s"]
        ratios["update"].append(their_update / (ours["update_s"] + ours["reference_s"]))
    return ratios


def compare(config: dict) -> dict:
    """Both sides in turns at one point; prints the table and returns its figures."""
    work = work_folder(config)
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    runs = {"ours": [], "trl": []} if peer == "trl" else {"ours": []}
    for r in range(rounds):
        for which in runs:
            run = measure(which, work, config)
            runs[which].append(run)
            seconds = f"{run['step_cpu_s']:.2f} CPU s, {run['step_s']:.2f} s a step"
            print(f"round {r + 1}/{rounds} {which}: {seconds}", flush=True)
    facts, peak = arithmetic(work), matmul_peak()
    middle = {which: median(of_side) for which, of_side in runs.items()}
    print_table(middle, facts, peak)
    if device == "cuda":
        print_limit(work, facts, middle["ours"]["step_s"])
    machine = f"{os.cpu_count()} CPU cores"
    result = {"ours": middle["ours"], "machine": machine, "matmul_gflops": round(peak / 1e9, 1)}
    if peer == "trl":
        ratios = peer_ratios(runs)
        memory = middle["trl"]["peak_mib"] / middle["ours"]["peak_mib"]
        operations = facts["trl"]["update_flops"] / facts["ours"]["update_flops"]
        print(
            f"\npeer / ours, median (spread): step {spread(ratios['step'])}, wall {spread(ratios['wall'])}, "
            f"update {spread(ratios['update'])}, memory {memory:.2f}; "
            f"by operations alone the update's would be {operations:.2f}"
        )
        result["trl"] = middle["trl"]
        result |= {f"ratio_{name}": round(statistics.median(ratios[name]), 3) for name in ratios}
    return result


def print_growth(points: list[dict]) -> None:
    """How the seconds of a step grow with the knob of the sweep: as a power of it, and as a line."""
    for which in ("ours", "trl"):
        if which not in points[0]:
            continue
        xs = [point[sweep] for point in points]
        ys = [point[which][CLOCK[device]] for point in points]
        power = statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope
        slope, start = statistics.linear_regression(xs, ys)
        print(
            f"{which}: seconds a step grow as {sweep}^{power:.2f}; "
            f"as a line {start:.3f} + {slope:.4f} * {sweep}"
        )


# -----------------------------------------------------------------------------
# main
# -----------------------------------------------------------------------------

if __name__ == "__main__":
    arguments = sys.argv[1:]
    started_by_us = any(argument.startswith("--side=") for argument in arguments)
    config = configure(globals(), arguments, __file__, rank=1 if started_by_us else 0)
    if side == "ours":
        run_ours(work_folder(config))  # does not return, nor does the other
    if side == "trl":
        run_trl(work_folder(config))

    if peer == "trl" and not importlib.util.find_spec("trl"):
        print(
            "bench: trl is not installed (pip install -r experiments/requirements-trl.txt), "
            "so only ours is measured"
        )
        arguments.append("--peer=none")
        config = configure(globals(), arguments, __file__, rank=1)
    if sweep and sweep not in SWEEPS:
        raise SystemExit(f"sweep: '{sweep}' is none of {', '.join(SWEEPS)}")
    if bool(sweep) != bool(values):
        raise SystemExit("sweep: name a knob and its values, as in --sweep=group --values=4,8,16")
    if not sweep:
        print(json.dumps(compare(config)))
        sys.exit()
    points = []
    for value in values.split(","):
        print(f"\n== {sweep} = {value}")
        config = configure(globals(), [*arguments, f"--{sweep}={value}"], __file__, rank=1)
        points.append(compare(config) | {sweep: float(value)})
    if len(points) > 1:
        print_growth(points)
    print(json.dumps(points if len(points) > 1 else points[0]))
