"""Speed and memory of a GRPO step beside TRL's GRPOTrainer: the same model, rows and number of tokens, in turns, on this machine.

    python -m experiments.bench                                     # 2 M parameters, 4 prompts x 8 completions x 64 tokens, one CPU thread
    python -m experiments.bench --hidden=256 --layers=9             # 12.5 M
    python -m experiments.bench --image=448                         # 256 visual tokens a prompt
    python -m experiments.bench --sweep=group --values=4,8,16       # how the cost of a step grows; also prompts, tokens, image, hidden
    python -m experiments.bench --peer=none                         # ours alone
    bash experiments/bench_gpu.sh                                   # models of Qwen's real shapes on a GPU

Our side is train_grpo.py itself, the whole script; the peer is TRL's trainer (pip install -r experiments/requirements-trl.txt; without it only
ours is measured). Both sample with the transformers model, or on a GPU both with vLLM (on a CPU TRL cannot); exactly `tokens` tokens
for every completion, since end tokens are banned. CPU seconds are those of all threads of the process: unlike wall seconds they hardly
change while other programs run. The last line of stdout is one JSON object.
"""

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

from configurator import configure

ROOT = Path(__file__).resolve().parent.parent

# fmt: off
# -----------------------------------------------------------------------------
# default config; override with  bench.py --key=value
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

PHASES = ("rollout", "reward", "reference", "update", "sync")


def letters(completion: str, row: dict) -> float:
    """A reward that is hardly ever equal in a group, so that no group is left out of the update: the share of vowels."""
    return sum(c in "aeiou" for c in completion) / max(1, len(completion))


# what the config.json files of Qwen's checkpoints say
SHAPES = {
    "qwen2_vl_2b": (
        "qwen2_vl",
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    ),
    "qwen2_5_vl_3b": (
        "qwen2_5_vl",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    "qwen2_5_vl_7b": (
        "qwen2_5_vl",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
}


def shape_model(shape: str, ids: dict | None = None):
    """transformers' model of a published shape with random weights, on the default device; ids of the special tokens."""
    import transformers as tf

    family, text, vision = SHAPES[shape]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = text | {"rope_parameters": rope, "max_position_embeddings": 32768}
    vision = vision | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
    config = getattr(tf, f"{name}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"], **(ids or {})
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config)


def build_shape(path: str, shape: str) -> None:
    """A checkpoint of a published shape in bfloat16, with a tokenizer of as many entries as the model has."""
    import torch
    from tokenizers import Tokenizer

    import data
    import qwen

    if shape not in SHAPES:
        raise SystemExit(f"shape: '{shape}' is none of {', '.join(SHAPES)}")
    family, text, _ = SHAPES[shape]
    processor = qwen.tiny_processor(data.tiny_corpus(), family)
    content = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {
        f"unused {i}": i for i in range(len(vocabulary), text["vocab_size"])
    }  # no merge leads to these: only sampled
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    end, pad = qwen.end_ids(processor)
    special = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        net = shape_model(
            shape, {k: processor.tokenizer.convert_tokens_to_ids(t) for k, t in special.items()}
        )
    torch.set_default_dtype(torch.float32)
    net.generation_config.eos_token_id, net.generation_config.pad_token_id = [end, pad], pad
    net.save_pretrained(path)
    processor.save_pretrained(path)


def prepare(work: Path) -> None:
    """Model and rows of a point, once: both sides read these files."""
    import data
    import qwen
    from tasks import scenes

    if not (work / "model/config.json").exists():
        if shape:
            build_shape(str(work / "model"), shape)
        else:
            qwen.build_tiny(
                str(work / "model"), data.tiny_corpus(), hidden=hidden, layers=layers, vision_layers=layers
            )
    lines = []
    for i in range(prompts * steps):
        scene = scenes.sample_scene(i, layout="grid", min_objects=1, max_objects=8, size=(112, 112))
        scenes.draw_scene(scene).resize((image, image_height or image)).save(work / f"{i}.png")
        lines.append(
            json.dumps(
                {"image": f"{i}.png", "problem": scenes.COUNT_ALL[0], "solution": str(len(scene["objects"]))}
            )
        )
    (work / "rows.jsonl").write_text("\n".join(lines))


def work_folder() -> Path:
    return Path(out_dir, "-".join(str(config[k]) for k in ("shape", *WORK[:6]) if config[k]))


def max_pixels() -> int:
    return max(image * (image_height or image), 12544)


def ban_end_tokens() -> None:
    """qwen.banned_ids with the end tokens: every completion is exactly as long as it may be."""
    import qwen

    banned_ids = qwen.banned_ids
    qwen.banned_ids = lambda config, processor: sorted(
        {*banned_ids(config, processor), *qwen.end_ids(processor)}
    )


def run_ours(work: Path) -> None:
    """train_grpo.py as it is, but for the ban and for a note of CPU time at each step."""
    import common

    ban_end_tokens()
    marks, write = [], common.Log.write

    def noted(self, record):
        marks.append((time.time(), time.process_time(), record))
        write(self, record)

    common.Log.write = noted
    knobs = {
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
    sys.argv = ["train_grpo.py", *(f"--{k}={v}" for k, v in knobs.items()), *flags.split()]
    runpy.run_path(str(ROOT / "train_grpo.py"), run_name="__main__")
    used = marks[warmup - 1 :]
    n = len(used) - 1
    assert all(r["length"] == tokens for _, _, r in used), (
        "a completion ended early: the work is not what it should be"
    )
    report = {"step_s": (used[-1][0] - used[0][0]) / n, "step_cpu_s": (used[-1][1] - used[0][1]) / n}
    report |= {f"{p}_s": sum(r[f"seconds_{p}"] for _, _, r in used[1:]) / n for p in PHASES}
    # train_grpo.py resets torch's peak in every phase, and logs it
    finish(report, max(r["memory_gib"] for _, _, r in used) * 1024)


def run_trl(work: Path) -> None:
    """TRL's trainer on the same rows, with the same prompt, rewards and bans; one optimizer step for a batch of rollouts."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    import data
    import qwen
    import rewards

    ban_end_tokens()
    processor = qwen.load_processor(str(work / "model"))
    processor.tokenizer.padding_side = "left"
    net = AutoModelForImageTextToText.from_pretrained(work / "model", dtype=qwen.DTYPES[dtype])
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
    text = data.TEMPLATES["think"].format(problem=rows[0]["problem"])
    records = [
        {
            "prompt": [{"role": "user", "content": text}],
            "image": Image.open(work / r["image"]),
            "solution": r["solution"],
        }
        for r in rows
    ]
    batch, banned = peer_batch or prompts * group, qwen.banned_ids(net.config, processor)
    # on a CPU TRL fails to hand new weights to vLLM, so there it samples with transformers in any case
    sampler = {"generation_kwargs": {"suppress_tokens": banned}}
    if rollout == "vllm" and device == "cuda":
        sampler = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.4,
            "vllm_enable_sleep_mode": True,
            "generation_kwargs": {"logit_bias": dict.fromkeys(banned, -100.0)},
        }
    marks, spent, inside = [], dict.fromkeys(("generate", "score", "logps"), 0.0), [False]

    def mean_of(part):
        def reward(completions, solution, **more):
            pairs = zip(completions, solution, strict=True)
            return [
                rewards.score(c[0]["content"], {"solution": s, "task": "count", "problem": ""})[part]
                for c, s in pairs
            ]

        reward.__name__ = part
        return reward

    def vowels(completions, **more):
        return [letters(c[0]["content"], {}) for c in completions]

    class Marks(TrainerCallback):
        def on_train_begin(self, *arguments, **more):
            marks.append((time.time(), time.process_time(), dict(spent)))

        def on_step_end(self, *arguments, **more):
            marks.append((time.time(), time.process_time(), dict(spent)))

    arguments = GRPOConfig(
        output_dir=str(work / "trl"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        num_generations=group,
        beta=beta,
        gradient_accumulation_steps=prompts * group // batch,
        generation_batch_size=prompts * group,
        max_completion_length=tokens,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        loss_type="grpo",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        bf16=dtype == "bfloat16",
        fp16=False,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        logging_steps=1,
        max_grad_norm=1.0,
        **({"gradient_checkpointing": False} | sampler | json.loads(peer_flags or "{}")),
    )
    trainer = GRPOTrainer(
        model=net,
        reward_funcs=[mean_of("accuracy"), mean_of("format"), vowels],
        args=arguments,
        train_dataset=Dataset.from_list(records),
        processing_class=processor,
        callbacks=[Marks()],
    )
    trainer.remove_callback(PrinterCallback)

    def timed(name, method):
        """Sum the seconds of a method; log-probs count as reference only inside the scoring of rollouts."""
        f = getattr(trainer, method)

        def g(*a, **k):
            if name == "logps" and not inside[0]:
                return f(*a, **k)
            t, inside[0] = time.time(), inside[0] or name == "score"
            try:
                return f(*a, **k)
            finally:
                spent[name] += time.time() - t
                inside[0] = inside[0] and name != "score"

        setattr(trainer, method, g)

    timed("generate", "_generate_single_turn")
    timed("score", "_generate_and_score_completions")
    timed("logps", "_get_per_token_logps_and_entropies")
    trainer.train()
    used = marks[warmup:]
    n = len(used) - 1
    lengths = [
        log["completions/mean_length"]
        for log in trainer.state.log_history
        if "completions/mean_length" in log
    ]
    assert set(lengths) == {tokens}, (
        f"completions of {set(lengths)} tokens: the work is not what it should be"
    )
    report = {"step_s": (used[-1][0] - used[0][0]) / n, "step_cpu_s": (used[-1][1] - used[0][1]) / n}
    parts = {k: (used[-1][2][k] - used[0][2][k]) / n for k in spent}
    report |= {
        "rollout_s": parts["generate"],
        "reference_s": parts["logps"],
        "sync_s": 0.0,
        "reward_s": parts["score"] - parts["generate"] - parts["logps"],
        "update_s": report["step_s"] - parts["score"],
    }
    finish(report, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0)


def finish(report: dict, torch_peak_mib: float) -> None:
    """Print what a side measured as the last line, and leave."""
    import torch

    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if (
        device == "cuda"
    ):  # of the whole device, vLLM's share included, at the end of a step; and the most that torch held in one
        free, total = torch.cuda.mem_get_info()
        report |= {"gpu_mib": (total - free) / 2**20, "torch_peak_mib": torch_peak_mib}
    print("\n" + json.dumps({k: round(v, 5) for k, v in report.items()}), flush=True)
    os._exit(0)  # engines and trainers take seconds to come down, and have nothing more to say


def measure(which: str, work: Path) -> dict:
    """One run of a side in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "experiments.bench",
        f"--side={which}",
        *(f"--{k}={config[k]}" for k in WORK),
        f"--out_dir={out_dir}",
    ]
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env = os.environ | (on_cpu if device == "cpu" else {})
    bind = (
        ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
        if sys.platform == "linux" and device == "cpu" and threads == 1
        else []
    )
    with open(work / f"{which}.log", "w") as log:
        done = subprocess.run(bind + command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"bench: {which} failed, see {work / f'{which}.log'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


WORK = (
    "hidden",
    "layers",
    "prompts",
    "group",
    "tokens",
    "image",
    "beta",
    "dtype",
    "steps",
    "warmup",
    "threads",
    "rollout",
    "shape",
    "image_height",
    "device",
    "flags",
    "peer_batch",
    "peer_flags",
)


def matmul_peak() -> float:
    """Floating-point operations per second of this machine in a large matrix product of `dtype`, with `threads` threads on a CPU."""
    import torch

    torch.set_num_threads(threads)
    cuda, n, best = device == "cuda", 1024 if device == "cpu" else 8192, math.inf
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    for _ in range(8):
        t = time.time() if cuda else time.process_time()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (time.time() if cuda else time.process_time()) - t)
    return 2 * n**3 / best * (1 if cuda else threads)


def arithmetic(work: Path) -> dict:
    """What a step has to compute, from the shapes: tokens through the language model, images through the vision tower, FLOPs.

    A forward pass costs 2 operations a parameter and token, a backward pass twice that; attention scores are left out. Ours reads a
    prompt once for its group, the peer once for each completion.
    """
    import data
    import qwen

    processor = qwen.load_processor(str(work / "model"))
    net = qwen.load_model(str(work / "model"), dtype, say=lambda line: None)
    size = sum(p.numel() for p in net.model.language_model.parameters())
    tower = sum(p.numel() for p in net.model.visual.parameters())
    row = data.load_rows(str(work / "rows.jsonl"))[0]
    prompt = len(
        data.encode_prompt(row, processor, max_prompt_length=4096, max_pixels=max_pixels())["input_ids"]
    )
    # patches as the processor makes them: sides rounded to 28 pixels; rollout 1, reference 1, update 3 forward passes' worth
    patches, passes = 4 * round(image / 28) * round((image_height or image) / 28), 4 + (beta > 0)
    out = {"parameters": size + tower, "prompt_tokens": prompt}
    for name, copies in (("ours", 1), ("trl", group)):
        in_pass = prompts * (copies * prompt + group * tokens)
        flops = 2 * (size * in_pass + tower * prompts * copies * patches)
        out[name] = {
            "tokens": in_pass * (2 + (beta > 0)),
            "images": prompts * copies * (2 + (beta > 0)),
            "flops": passes * flops,
            "update_flops": (passes - 1) * flops,
        }
    return out


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


CLOCK = {
    "cpu": "step_cpu_s",
    "cuda": "step_s",
}  # what counts: CPU seconds, or wall seconds where a GPU does the work


def compare() -> dict:
    """Both sides in turns at one point; prints the table and returns its figures."""
    clock = CLOCK[device]
    work = work_folder()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    sides = {"ours": [], **({"trl": []} if peer == "trl" else {})}
    for r in range(rounds):
        for which, runs in sides.items():
            runs.append(measure(which, work))
            print(
                f"round {r + 1}/{rounds} {which}: {runs[-1]['step_cpu_s']:.2f} CPU s, {runs[-1]['step_s']:.2f} s a step",
                flush=True,
            )
    facts, peak = arithmetic(work), matmul_peak()

    def row(title, cell):
        print(f"{title:<34}" + "".join(f"{cell(s):>12}" for s in sides))

    print(
        f"\n{facts['parameters'] / 1e6:.1f} M parameters, {prompts} prompts of {facts['prompt_tokens']} tokens x {group} completions x "
        f"{tokens} tokens, beta {beta}, {f'{threads} CPU thread(s)' if device == 'cpu' else 'GPU'}\n"
    )
    row(f"median of {rounds} run(s)", str)
    names = {
        "step_cpu_s": "CPU seconds a step",
        "step_s": "wall seconds a step",
        **{f"{p}_s": f"  {p}" for p in PHASES},
        "peak_mib": "peak memory, MiB",
        "gpu_mib": "GPU memory in use, MiB",
        "torch_peak_mib": "  most that torch held",
    }
    middle = {
        s: {k: statistics.median(r[k] for r in runs) for k in names if k in runs[0]}
        for s, runs in sides.items()
    }
    for k, title in names.items():
        if k in middle["ours"]:
            row(title, lambda s, k=k: f"{middle[s][k]:.{0 if k.endswith('mib') else 3}f}")
    row(
        f"completions per {'CPU ' if device == 'cpu' else ''}second",
        lambda s: f"{prompts * group / middle[s][clock]:.1f}",
    )
    row("tokens through the language model", lambda s: f"{facts[s]['tokens']:,}")
    row("images through the vision tower", lambda s: f"{facts[s]['images']:,}")
    row("GFLOP a step", lambda s: f"{facts[s]['flops'] / 1e9:.1f}")
    row("  reference and update", lambda s: f"{facts[s]['update_flops'] / 1e9:.1f}")
    scale = peak / threads if device == "cpu" else peak
    row("share of the matmul peak", lambda s: f"{facts[s]['flops'] / middle[s][clock] / scale:.1%}")
    row(
        "  reference and update",
        lambda s: (
            f"{facts[s]['update_flops'] / (middle[s]['reference_s'] + middle[s]['update_s']) / peak:.1%}"
        ),
    )
    result = {
        "ours": middle["ours"],
        "machine": f"{os.cpu_count()} CPU cores",
        "matmul_gflops": round(peak / 1e9, 1),
    }
    if "trl" in sides:
        pairs = list(zip(sides["trl"], sides["ours"], strict=True))
        both = ("update_s", "reference_s")
        ratios = {
            "ratio_step": [a[clock] / b[clock] for a, b in pairs],
            "ratio_wall": [a["step_s"] / b["step_s"] for a, b in pairs],
            "ratio_update": [sum(a[k] for k in both) / sum(b[k] for k in both) for a, b in pairs],
        }
        print(
            "\npeer / ours, median (spread): "
            + ", ".join(f"{k.removeprefix('ratio_')} {spread(v)}" for k, v in ratios.items())
            + f", memory {middle['trl']['peak_mib'] / middle['ours']['peak_mib']:.2f}; by operations alone the update's would be "
            f"{facts['trl']['update_flops'] / facts['ours']['update_flops']:.2f}"
        )
        result |= {"trl": middle["trl"]} | {k: round(statistics.median(v), 3) for k, v in ratios.items()}
    return result


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__, rank=1 if "--side=" in " ".join(sys.argv) else 0)
    if side:
        {"ours": run_ours, "trl": run_trl}[side](work_folder())
    if peer == "trl":
        import importlib.util

        if not importlib.util.find_spec("trl"):
            print(
                "bench: trl is not installed (pip install -r experiments/requirements-trl.txt), so only ours is measured"
            )
            peer = config["peer"] = "none"
    if sweep and sweep not in WORK[:7]:
        raise SystemExit(f"sweep: '{sweep}' is none of {', '.join(WORK[:7])}")
    if bool(sweep) != bool(values):
        raise SystemExit("sweep: name a knob and its values, as in --sweep=group --values=4,8,16")
    points = []
    for value in values.split(",") if sweep else [""]:
        if sweep:
            globals()[sweep] = config[sweep] = type(config[sweep])(value)
            print(f"\n== {sweep} = {value}")
        points.append(compare() | ({sweep: float(value)} if sweep else {}))
    if len(points) > 1:
        for s in ("ours", "trl"):
            at = [(p[sweep], p[s][CLOCK[device]]) for p in points if s in p]
            if at:
                power = statistics.linear_regression(
                    *zip(*((math.log(x), math.log(y)) for x, y in at), strict=True)
                ).slope
                line = statistics.linear_regression(*zip(*at, strict=True))
                print(
                    f"{s}: seconds a step grow as {sweep}^{power:.2f}; as a line {line.intercept:.3f} + {line.slope:.4f} * {sweep}"
                )
    print(json.dumps(points[0] if len(points) == 1 else points))
