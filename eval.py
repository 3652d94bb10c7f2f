"""Evaluate a checkpoint on rows: drawn scenes, or any file, folder or hub id that data.py reads.

The scorer is rewards.py, the same that paid the policy during training. Every question, output, extracted answer and
verdict goes into one JSON per source, so a number can be checked by reading.

    python eval.py configs/tiny_eval.py --model=out/tiny_grpo/step-000200                    # in and out of distribution
    python eval.py --model=out/grpo/step-000100 --data_source=my.jsonl --template=direct     # own rows, answer-only prompt
    torchrun --nproc_per_node=8 eval.py --model=... --data_source=...                        # data parallel over 8 GPUs

Reported per source, over n rows (k samples each; a row counts with the mean over its samples):
  accuracy   strict: the last <answer> tag is right, as in training; with its 95 % Wilson interval
  lenient    a right answer in a \\boxed{} or a plain final statement counts too: tells missing tags from wrong answers
  format     <think>...</think> <answer>...</answer> and nothing else
  length     response tokens
"""

import json
import sys
import time
from pathlib import Path

import common
import data
import model as models
import rewards
import sampling
from configurator import configure
from report import wilson

# -----------------------------------------------------------------------------
# default config: greedy, R1-V's prompt; override with  eval.py configs/x.py --key=value
# policy
model = ""                # checkpoint folder or hub id
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # only for --backend=hf
backend = "vllm"          # 'vllm' or 'hf' (transformers' generate)
# data
data_source = ""          # one source, see data.py; its results are called 'eval'
sources = {"": ""}        # or several, {"name": "source"}
data_split = "test"
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows that do not name one: 'count', 'choice', 'math', 'text' or 'auto'
template = "think"        # prompt: 'think' (R1-V's), 'direct' (answer only), 'box', 'zero'
limit = 0                 # the first so many rows of each source; 0 = all
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped and counted
max_completion_length = 256
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
# sampling
samples = 1               # k, completions per row
temperature = 0.0         # 0 = greedy
top_p = 1.0
top_k = 0                 # 0 = off
seed = 0
batch_rows = 512          # rows handed to the engine at a time
vllm_gpu_memory = 0.85    # share of each GPU for vLLM
# output
out_dir = ""              # default: eval/ inside the checkpoint folder
# -----------------------------------------------------------------------------


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    chosen = {"eval": data_source} if data_source else {k: v for k, v in sources.items() if v}
    if not model or not chosen:
        raise SystemExit("eval: name a checkpoint and rows, as in: eval.py --model=out/tiny_grpo/step-000200 --data_source=rows.jsonl")
    common.check_choices(config)
    if samples > 1 and temperature == 0:
        raise SystemExit(f"samples: {samples} greedy completions would all be the same; set --temperature=1.0 or --samples=1")

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    processor = models.load_processor(model)
    tokenizer, end = processor.tokenizer, models.end_ids(processor)

    def encode(row):
        return data.encode_prompt(row, processor, template, max_prompt_length, min_pixels, max_pixels)

    loaded = {name: data.load_rows(source, data_split, columns, image_root, task) for name, source in chosen.items()}

    # -------------------------------------------------------------------------
    # policy
    # -------------------------------------------------------------------------
    from transformers import AutoConfig

    banned = models.banned_ids(AutoConfig.from_pretrained(model), processor)
    if backend == "vllm":
        draw, policy = sampling.rollout_vllm, sampling.start_vllm(
            model, dtype, max_prompt_length + max_completion_length, data.MAX_IMAGES, data.processor_limits(processor, max_pixels),
            gpu_memory=vllm_gpu_memory, seed=seed, cuda=device.type == "cuda",
        )  # fmt: skip
    else:
        policy, draw = models.load_model(model, dtype, attn, device, say), sampling.rollout_hf

    # -------------------------------------------------------------------------
    # generate and score
    # -------------------------------------------------------------------------
    settings = {"top_p": top_p, "top_k": top_k, "max_tokens": max_completion_length, "banned": banned, "end": end, "progress": rank == 0}
    folder = Path(out_dir or Path(model, "eval"))
    started, table = time.time(), {}
    for name, rows in loaded.items():
        results, skipped, total = [], 0, min(len(rows), limit or len(rows))
        say(f"eval: {name}: {total} rows, {template} prompt")
        for first in range(0, total, batch_rows * world):  # in batches: images of 70,000 rows do not fit into memory
            part, bad = data.take_all(rows, encode, rank, world, first, min(first + batch_rows * world, total), print)
            skipped += bad
            seeds = [sampling.sample_seed(seed, 0, index) for index, _ in part]
            groups = draw(policy, [p for _, p in part], samples, seeds, temperature, **settings)
            for (index, prompt), group in zip(part, groups, strict=True):
                row, outputs = prompt["row"], []
                for c in group:
                    text = tokenizer.decode(c.ids, skip_special_tokens=True)
                    outputs.append({
                        "text": text, "answer": rewards.extract_answer(text, strict=False), **rewards.score(text, row),
                        "lenient": rewards.accuracy_reward(text, row, strict=False), "tokens": len(c.ids), "finished": c.finished,
                    })  # fmt: skip
                results.append({"index": index, **{k: row[k] for k in ("id", "problem", "solution", "task")}, "outputs": outputs})
        results = sorted((r for part in common.all_gather(results) for r in part), key=lambda r: r["index"])
        skipped = sum(common.all_gather(skipped))
        if not results:
            raise SystemExit(f"eval: none of the {total} rows of '{name}' can be used; the lines above say why")

        def mean(key, results=results):
            return sum(o[key] for r in results for o in r["outputs"]) / sum(len(r["outputs"]) for r in results)

        n = len(results)
        low, high = wilson(mean("accuracy") * n, n)
        table[name] = {"n": n, "skipped": skipped, "accuracy": mean("accuracy"), "interval": [low, high], "lenient": mean("lenient"),
                       "format": mean("format"), "length": mean("tokens"), "finished": mean("finished")}  # fmt: skip
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            record = {"name": name, "source": chosen[name], **table[name], "config": config, "results": results}
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    say(f"\n{model}, {template} prompt, {'greedy' if temperature == 0 else f'{samples} samples at temperature {temperature}'}")
    say(f"{'source':<14}{'n':>6}{'accuracy':>10}{'95 % interval':>17}{'lenient':>9}{'format':>8}{'length':>8}{'skipped':>9}")
    for name, t in table.items():
        low, high = t["interval"]
        say(f"{name:<14}{t['n']:>6}{t['accuracy']:>10.1%}{f'{low:.1%} - {high:.1%}':>17}{t['lenient']:>9.1%}{t['format']:>8.1%}"
            f"{t['length']:>8.1f}{t['skipped']:>9}")  # fmt: skip
    say(f"{common.clock(time.time() - started)}, every output in {folder}/")
    common.finish(policy)
