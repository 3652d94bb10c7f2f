"""Speed and memory of a GRPO step beside TRL's GRPOTrainer: the same model, rows and number of tokens, in turns, on this machine.

    python bench.py                                     # 2 M parameters, 4 prompts x 8 completions x 64 tokens, one CPU thread
    python bench.py --hidden=256 --layers=8             # 13 M
    python bench.py --image=448                         # 256 visual tokens a prompt
    python bench.py --sweep=group --values=4,8,16       # how the cost of a step grows; also prompts, tokens, image, hidden
    python bench.py --peer=none                         # ours alone

Our side is train_grpo.py itself, the whole script; the peer is TRL's trainer with transformers' generate (pip install -r
bench/requirements-trl.txt; without it only ours is measured). Both sample exactly `tokens` tokens for every completion, since end tokens
are banned. CPU seconds are those of all threads of the process: unlike wall seconds they hardly change while other programs run.
The last line of stdout is one JSON object.
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

# -----------------------------------------------------------------------------
# default config; override with  bench.py --key=value
# model
hidden = 128              # width of language model and vision tower, a multiple of 32
layers = 4                # of each of them
# work of a step
prompts = 4
group = 8                 # completions per prompt
tokens = 64               # of each completion
image = 112               # side in pixels; 28 x 28 are one visual token
beta = 0.04               # 0.0: no reference model
dtype = "float32"
# measurement
steps = 10                # of each run
warmup = 2                # of these, left out
rounds = 3                # ours and the peer in turns, so often
threads = 1
row_tokens = 0            # of train_grpo.py; 0 = one group a row, which is best on a CPU (configs/tiny.py)
rollout = "vllm"          # our sampler: 'vllm' or 'hf'
peer = "trl"              # 'trl' or 'none'
sweep = ""                # name of a knob of the work, and its values
values = ""
out_dir = "out/bench"
side = ""                 # set by this script for the processes that it starts
# -----------------------------------------------------------------------------

PHASES = ("rollout", "reward", "reference", "update", "sync")


def letters(completion: str, row: dict) -> float:
    """A reward that is hardly ever equal in a group, so that no group is left out of the update: the share of vowels."""
    return sum(c in "aeiou" for c in completion) / max(1, len(completion))


def prepare(work: Path) -> None:
    """Model and rows of a point, once: both sides read these files."""
    import data
    import model
    import scenes

    if not (work / "model/config.json").exists():
        model.build_tiny(str(work / "model"), data.tiny_corpus(), hidden=hidden, layers=layers, vision_layers=layers)
    lines = []
    for i in range(prompts * steps):
        scene = scenes.sample_scene(i, layout="grid", min_objects=1, max_objects=8, size=(112, 112))
        scenes.draw_scene(scene).resize((image, image)).save(work / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "problem": scenes.COUNT_ALL[0], "solution": str(len(scene["objects"]))}))
    (work / "rows.jsonl").write_text("\n".join(lines))


def ban_end_tokens(models) -> None:
    """model.banned_ids with the end tokens: every completion is exactly as long as it may be."""
    banned_ids = models.banned_ids
    models.banned_ids = lambda config, processor: sorted({*banned_ids(config, processor), *models.end_ids(processor)})


def run_ours(work: Path) -> None:
    """train_grpo.py as it is, but for the ban and for a note of CPU time at each step."""
    import common
    import model as models

    ban_end_tokens(models)
    marks, write = [], common.Log.write

    def noted(self, record):
        marks.append((time.time(), time.process_time(), record))
        write(self, record)

    common.Log.write = noted
    flags = {
        "model": work / "model", "data_source": work / "rows.jsonl", "out_dir": work / "ours", "dtype": dtype, "rollout": rollout,
        "prompts_per_step": prompts, "group_size": group, "max_completion_length": tokens, "max_prompt_length": 2048, "steps": steps,
        "max_pixels": max(image**2, 12544), "temperature": 1.0, "beta": beta, "learning_rate": 1e-6, "lr_schedule": "constant",
        "reward_weights": {"accuracy": 1.0, "format": 1.0, "bench:letters": 1.0}, "reward_workers": 0, "eval_interval": 0, "zero_stage": 0,
        "row_tokens": row_tokens or group * tokens + (image // 28) ** 2 + 100,
        "grad_checkpointing": False, "show_interval": 0, "resume": False, "thumbnails": 0,
    }  # fmt: skip
    sys.argv = ["train_grpo.py", *(f"--{k}={v}" for k, v in flags.items())]
    runpy.run_path("train_grpo.py", run_name="__main__")
    used = marks[warmup - 1 :]
    n = len(used) - 1
    assert all(r["length"] == tokens for _, _, r in used), "a completion ended early: the work is not what it should be"
    report = {"step_s": (used[-1][0] - used[0][0]) / n, "step_cpu_s": (used[-1][1] - used[0][1]) / n}
    report |= {f"{p}_s": sum(r[f"seconds_{p}"] for _, _, r in used[1:]) / n for p in PHASES}
    finish(report)


def run_trl(work: Path) -> None:
    """TRL's trainer on the same rows, with the same prompt, rewards and bans; one optimizer step for a batch of rollouts."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    torch.set_num_threads(threads)
    from datasets import Dataset
    from PIL import Image
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    import data
    import model as models
    import rewards

    ban_end_tokens(models)
    processor = models.load_processor(str(work / "model"))
    processor.tokenizer.padding_side = "left"
    net = models.load_model(str(work / "model"), dtype, say=lambda line: None)
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
    text = data.TEMPLATES["think"].format(problem=rows[0]["problem"])
    records = [{"prompt": [{"role": "user", "content": text}], "image": Image.open(work / r["image"]), "solution": r["solution"]}
               for r in rows]  # fmt: skip
    batch, marks, spent, inside = prompts * group, [], dict.fromkeys(("generate", "score", "logps"), 0.0), [False]

    def mean_of(part):
        def reward(completions, solution, **more):
            pairs = zip(completions, solution, strict=True)
            return [rewards.score(c[0]["content"], {"solution": s, "task": "count", "problem": ""})[part] for c, s in pairs]

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
        output_dir=str(work / "trl"), max_steps=steps, per_device_train_batch_size=batch, num_generations=group, beta=beta,
        max_completion_length=tokens, learning_rate=1e-6, lr_scheduler_type="constant", optim="adamw_torch", loss_type="grpo",
        temperature=1.0, top_p=1.0, top_k=0, generation_kwargs={"suppress_tokens": models.banned_ids(net.config, processor)},
        gradient_checkpointing=False, bf16=False, fp16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        shuffle_dataset=False, logging_steps=1, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = GRPOTrainer(model=net, reward_funcs=[mean_of("accuracy"), mean_of("format"), vowels], args=arguments,
                          train_dataset=Dataset.from_list(records), processing_class=processor, callbacks=[Marks()])  # fmt: skip
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
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    assert set(lengths) == {tokens}, f"completions of {set(lengths)} tokens: the work is not what it should be"
    report = {"step_s": (used[-1][0] - used[0][0]) / n, "step_cpu_s": (used[-1][1] - used[0][1]) / n}
    parts = {k: (used[-1][2][k] - used[0][2][k]) / n for k in spent}
    report |= {"rollout_s": parts["generate"], "reference_s": parts["logps"], "sync_s": 0.0,
               "reward_s": parts["score"] - parts["generate"] - parts["logps"], "update_s": report["step_s"] - parts["score"]}  # fmt: skip
    finish(report)


def finish(report: dict) -> None:
    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps({k: round(v, 5) for k, v in report.items()}), flush=True)
    os._exit(0)  # engines and trainers take seconds to come down, and have nothing more to say


def measure(which: str, work: Path) -> dict:
    """One run of a side in a process of its own."""
    command = [sys.executable, __file__, f"--side={which}", *(f"--{k}={config[k]}" for k in WORK), f"--out_dir={out_dir}"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    bind = ["taskset", "-c", "0"] if threads == 1 and sys.platform == "linux" else []
    with open(work / f"{which}.log", "w") as log:
        done = subprocess.run(bind + command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"bench: {which} failed, see {work / f'{which}.log'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


WORK = ("hidden", "layers", "prompts", "group", "tokens", "image", "beta", "dtype", "steps", "warmup", "threads", "row_tokens", "rollout")


def matmul_peak() -> float:
    """Floating-point operations per second of this machine, float32 matrices of 1024 x 1024, with `threads` threads."""
    import torch

    torch.set_num_threads(threads)
    a, best = torch.randn(1024, 1024), math.inf
    for _ in range(8):
        t = time.process_time()
        a @ a
        best = min(best, time.process_time() - t)
    return 2 * 1024**3 / best * threads


def arithmetic(work: Path) -> dict:
    """What a step has to compute, from the shapes: tokens through the language model, images through the vision tower, FLOPs.

    A forward pass costs 2 operations a parameter and token, a backward pass twice that; attention scores are left out. Ours reads a
    prompt once for its group, the peer once for each completion.
    """
    import data
    import model as models

    processor = models.load_processor(str(work / "model"))
    net = models.load_model(str(work / "model"), dtype, say=lambda line: None)
    size = sum(p.numel() for p in net.model.language_model.parameters())
    tower = sum(p.numel() for p in net.model.visual.parameters())
    row = data.load_rows(str(work / "rows.jsonl"))[0]
    prompt = len(data.encode_prompt(row, processor, max_prompt_length=4096, max_pixels=max(image**2, 12544))["input_ids"])
    patches, passes = (image // 14) ** 2, 4 + (beta > 0)  # rollout 1, reference 1, update 3 forward passes' worth
    out = {"parameters": size + tower, "prompt_tokens": prompt}
    for name, copies in (("ours", 1), ("trl", group)):
        in_pass = prompts * (copies * prompt + group * tokens)
        out[name] = {"tokens": in_pass * (2 + (beta > 0)), "images": prompts * copies * (2 + (beta > 0)),
                     "flops": 2 * passes * (size * in_pass + tower * prompts * copies * patches)}  # fmt: skip
    return out


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def compare() -> dict:
    """Both sides in turns at one point; prints the table and returns its figures."""
    work = Path(out_dir, "-".join(f"{config[k]}" for k in WORK[:6]))
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    sides = {"ours": [], **({"trl": []} if peer == "trl" else {})}
    for r in range(rounds):
        for which, runs in sides.items():
            runs.append(measure(which, work))
            print(f"round {r + 1}/{rounds} {which}: {runs[-1]['step_cpu_s']:.2f} CPU s, {runs[-1]['step_s']:.2f} s a step", flush=True)
    facts, peak = arithmetic(work), matmul_peak()
    def row(title, cell):
        print(f"{title:<34}" + "".join(f"{cell(s):>12}" for s in sides))

    print(f"\n{facts['parameters'] / 1e6:.1f} M parameters, {prompts} prompts of {facts['prompt_tokens']} tokens x {group} completions x "
          f"{tokens} tokens, beta {beta}, {threads} thread(s)\n")  # fmt: skip
    row(f"median of {rounds} run(s)", str)
    names = {"step_cpu_s": "CPU seconds a step", "step_s": "wall seconds a step", **{f"{p}_s": f"  {p}" for p in PHASES},
             "peak_mib": "peak memory, MiB"}  # fmt: skip
    middle = {s: {k: statistics.median(r[k] for r in runs) for k in names} for s, runs in sides.items()}
    for k, title in names.items():
        row(title, lambda s, k=k: f"{middle[s][k]:.{0 if k == 'peak_mib' else 3}f}")
    row("completions per CPU second", lambda s: f"{prompts * group / middle[s]['step_cpu_s']:.1f}")
    row("tokens through the language model", lambda s: f"{facts[s]['tokens']:,}")
    row("images through the vision tower", lambda s: f"{facts[s]['images']:,}")
    row("GFLOP a step", lambda s: f"{facts[s]['flops'] / 1e9:.1f}")
    row("share of the matmul peak", lambda s: f"{facts[s]['flops'] / middle[s]['step_cpu_s'] / peak * threads:.1%}")
    result = {"ours": middle["ours"], "machine": f"{os.cpu_count()} CPU cores", "matmul_gflops": round(peak / 1e9, 1)}
    if "trl" in sides:
        pairs = list(zip(sides["trl"], sides["ours"], strict=True))
        both = ("update_s", "reference_s")
        ratios = {"ratio_step": [a["step_cpu_s"] / b["step_cpu_s"] for a, b in pairs],
                  "ratio_wall": [a["step_s"] / b["step_s"] for a, b in pairs],
                  "ratio_update": [sum(a[k] for k in both) / sum(b[k] for k in both) for a, b in pairs]}  # fmt: skip
        print("\npeer / ours, median (spread): " + ", ".join(f"{k.removeprefix('ratio_')} {spread(v)}" for k, v in ratios.items())
              + f", memory {middle['trl']['peak_mib'] / middle['ours']['peak_mib']:.2f}")  # fmt: skip
        result |= {"trl": middle["trl"]} | {k: round(statistics.median(v), 3) for k, v in ratios.items()}
    return result


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__, rank=1 if "--side=" in " ".join(sys.argv) else 0)
    if side:
        {"ours": run_ours, "trl": run_trl}[side](Path(out_dir, "-".join(f"{config[k]}" for k in WORK[:6])))
    if peer == "trl":
        import importlib.util

        if not importlib.util.find_spec("trl"):
            print("bench: trl is not installed (pip install -r bench/requirements-trl.txt), so only ours is measured")
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
            at = [(math.log(p[sweep]), math.log(p[s]["step_cpu_s"])) for p in points if s in p]
            if len(at) > 1:
                x, y = zip(*at, strict=True)
                slope = statistics.linear_regression(x, y).slope
                print(f"{s}: CPU seconds a step grow as {sweep}^{slope:.2f}")
    print(json.dumps(points[0] if len(points) == 1 else points))
