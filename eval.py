"""Evaluate checkpoints on benchmarks, or on any file, folder, hub id or drawn scenes that data.py reads.

The scorer is rewards.py, the same that paid the policy during training. Every question, output, extracted answer and
verdict goes into one JSON per source and into one page for the browser, so a number can be checked by reading.

    python eval.py configs/tiny_eval.py --model=out/tiny_grpo/step-000160                    # in and out of distribution
    python eval.py --model=out/grpo/step-000100 --data_source=my.jsonl --template=direct     # own rows, answer-only prompt
    torchrun --nproc_per_node=8 eval.py configs/eval.py --model=...                          # benchmarks, data parallel over 8 GPUs
    python eval.py --model=BASE,TRAINED --bench=superclevr200,mmmu --out_dir=out/forgetting  # what was learnt, what was lost

Two modes need no model and start at once:

    python eval.py --regrade=out/old.json                       # outputs of R1-V, OpenV-R1 or ours, graded again
    python eval.py --compare=a/superclevr200.json,b/superclevr200.json     # which rows flipped, and is it more than chance?

Reported per source, over n rows (k samples each; a row counts with the mean over its samples):
  accuracy   strict: the last <answer> tag is right, as in training; with its 95 % Wilson interval
  lenient    a right answer in a \\boxed{} or a plain final statement counts too: tells missing tags from wrong answers
  published  by the rule of the benchmark's original script (benchmarks.py): for comparison with published numbers
  format     <think>...</think> <answer>...</answer> and nothing else
  length     response tokens
  maj@k, pass@k   the most frequent answer of k samples is right; at least one of k is (strict both)

Files in out_dir per source: NAME.json (ours), NAME.seed.json (R1-V's layout), and eval.html for all. Finished batches are kept in
NAME.part-RANK.jsonl: the same command goes on where a killed one was, also with another number of processes.
"""

import json
import sys
import time
from pathlib import Path

import report
import results
import rewards
from configurator import configure
from tasks import benchmarks

# fmt: off
# -----------------------------------------------------------------------------
# default config: greedy, each benchmark's own prompt; override with  eval.py configs/x.py --key=value
# policy
model = ""                # checkpoint folder or hub id; several with commas: a table of what each gained and lost against the first
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # only for --backend=hf
backend = "vllm"          # 'vllm' or 'hf' (the transformers model alone)
# data
bench = ""                # names from benchmarks.py, 'superclevr200,mmmu'; 'name@folder' for a local copy
data_source = ""          # or one source, see data.py; its results are called 'eval'
sources = {"": ""}        # or several, {"name": "source"}
data_split = "test"       # of sources; benchmarks have their own
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows that do not name one: 'count', 'choice', 'math', 'grounding', 'text' or 'auto'
template = "auto"         # prompt: 'auto' (the benchmark's or data set's own, else 'think'), 'think', 'direct' (answer only), 'box', ...
limit = 0                 # the first so many rows of each source; 0 = all
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped and counted
max_completion_length = 0 # 0 = the benchmark's own; 256 for other sources
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
box_frame = "auto"        # in which it writes boxes: 'resized' or 'original' image, 'thousand' (by a thousand); auto: its family's
# sampling
samples = 1               # k, completions per row
temperature = 0.0         # 0 = greedy
top_p = 1.0
top_k = 0                 # 0 = off
seed = 0
batch_rows = 512          # rows handed to the engine, and written, at a time
score_workers = 4         # processes that score beside each sampling one; 0 = in the same
vllm_gpu_memory = 0.85    # share of each GPU for vLLM
# output
out_dir = ""              # default: eval/ inside the checkpoint folder; with several models a folder for each in here
resume = True             # go on with what is in out_dir; False starts over
show_categories = False   # print accuracy by category, too (it always is in the JSON and on the page)
page_rows = 500           # rows of each source on the page, images included; 0 = no page
# without a model
regrade = ""              # files to grade again
compare = ""              # 'a.json,b.json': the same rows, two checkpoints
metric = "accuracy"       # for compare: 'accuracy', 'lenient' or 'published'
# -----------------------------------------------------------------------------
# fmt: on


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)
    if metric not in results.METRICS:
        raise SystemExit(f"metric: {metric!r} is none of {', '.join(results.METRICS)}")
    if regrade or compare:  # before torch is imported

        def rule_for(path):  # --bench=mmmu, or a file that is called mmmu.json
            named = next(iter(benchmarks.choose(bench)), path.stem)
            return benchmarks.BENCHMARKS[named].rule if named in benchmarks.BENCHMARKS else None

        for path in map(Path, filter(None, regrade.split(","))):
            folder = Path(out_dir) if out_dir else path.parent
            record = results.regrade(path, folder, task, rule_for(path))
            report.eval_page(
                folder / f"{path.stem}.regraded.html",
                str(path),
                "graded again",
                {"": {path.stem: record}},
                {},
                page_rows,
            )
        if compare:
            paths = [Path(p) for p in compare.split(",")]
            if len(paths) != 2:
                raise SystemExit(
                    f"compare: {len(paths)} file(s); name two, as in --compare=before.json,after.json"
                )
            found = results.compare(
                *(results.read_graded(path, task, rule_for(path), metric) for path in paths), metric
            )
            results.print_comparison(found, paths)
            if out_dir:
                results.write(Path(out_dir, "compare.json"), json.dumps(found, indent=1, ensure_ascii=False))
        sys.exit()

    scorer = rewards.Scorer(score_workers)  # before CUDA and the engine, which its processes must not inherit
    import common
    import data
    import qwen
    import sampling

    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    chosen = (
        benchmarks.choose(bench)
        | {k: v for k, v in sources.items() if v}
        | ({"eval": data_source} if data_source else {})
    )
    paths = [path.strip().rstrip("/") for path in model.split(",") if path.strip()]
    if not paths or not chosen:
        raise SystemExit(
            "eval: name a checkpoint and rows, as in: eval.py --model=out/tiny_grpo/step-000160 --data_source=rows.jsonl"
        )
    common.check_choices(config)
    if samples > 1 and temperature == 0:
        raise SystemExit(
            f"samples: {samples} greedy completions would all be the same; set --temperature=1.0 or --samples=1"
        )
    labels = results.short_names(paths)
    folders = {
        path: Path(out_dir, labels[path] if len(paths) > 1 else "") if out_dir else Path(path, "eval")
        for path in paths
    }

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    facts = {
        name: benchmarks.BENCHMARKS.get(name) for name in chosen
    }  # None for a source that is no benchmark
    tokens = {name: max_completion_length or (b.tokens if b else 256) for name, b in facts.items()}
    rules = {name: b.rule if b else None for name, b in facts.items()}
    wording = "own prompts" if template == "auto" else f"{template} prompt"
    loaded, missing = {}, []
    for name, source in chosen.items():
        try:
            loaded[name] = data.load_rows(
                source, facts[name].split if facts[name] else data_split, columns, image_root, task
            )
        except (
            SystemExit
        ) as problem:  # all at once: nobody wants to learn of the second missing download after the first
            missing.append(str(problem))
    if missing:
        raise SystemExit("\n".join(missing))

    # -------------------------------------------------------------------------
    # policy
    # -------------------------------------------------------------------------
    from transformers import AutoConfig

    def shape(path):
        text = AutoConfig.from_pretrained(path).get_text_config()
        return (
            text.model_type,
            text.hidden_size,
            text.num_hidden_layers,
            text.intermediate_size,
            text.vocab_size,
        )

    def start(path, policy):
        """The sampler with the weights of `path`. vLLM starts once and then takes the next checkpoint's weights, as in training."""
        if backend == "hf":
            return qwen.load_model(path, dtype, attn, device, say)
        if policy is None:
            return sampling.start_vllm(
                path,
                dtype,
                max_prompt_length + max(tokens.values()),
                data.MAX_IMAGES,
                data.processor_limits(processor, max_pixels),
                gpu_memory=vllm_gpu_memory,
                seed=seed,
                cuda=device.type == "cuda",
            )
        if shape(path) != shape(ready):
            raise SystemExit(
                f"model: '{path}' is of another size or family than '{ready}', so one vLLM engine cannot take both in turn; "
                f"what is done is kept: run the same command again, and it goes on with '{path}'"
            )
        sampling.sync_weights(
            policy, qwen.load_model(path, dtype, say=say).named_parameters(remove_duplicate=False)
        )
        return policy

    # -------------------------------------------------------------------------
    # generate and score
    # -------------------------------------------------------------------------
    draw, policy, ready = sampling.rollout_vllm if backend == "vllm" else sampling.rollout_hf, None, ""
    started, tables, records, reader = (
        time.time(),
        {path: {} for path in paths},
        {path: {} for path in paths},
        data.reader_threads(),
    )
    for path in paths:
        folder, processor = folders[path], qwen.load_processor(path)
        tokenizer = processor.tokenizer
        settings = {
            "top_p": top_p,
            "top_k": top_k,
            "banned": qwen.banned_ids(AutoConfig.from_pretrained(path), processor),
            "end": qwen.end_ids(processor),
            "progress": rank == 0,
        }
        for name, rows in loaded.items():
            # what an earlier run has done; the checkpoint counts by its weights, since a path can be trained anew
            fixed = (
                "dtype",
                "backend",
                "template",
                "max_prompt_length",
                "min_pixels",
                "max_pixels",
                "box_frame",
                "samples",
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "columns",
                "image_root",
                "task",
            )
            knobs = {k: config[k] for k in fixed}
            knobs |= {"source": chosen[name], "tokens": tokens[name], "weights": results.fingerprint(path)}
            if not resume and rank == 0:
                results.forget(folder, name)
            common.all_gather(None)  # nobody reads before that, and nobody writes before all have read
            done, total = results.read_progress(folder, name, knobs), min(len(rows), limit or len(rows))
            common.all_gather(None)
            todo = [index for index in range(total) if index not in done]
            say(
                f"eval: {name}: {total} rows, {wording}"
                + (f", {total - len(todo)} of them done before" if done else "")
            )
            if todo and ready != path:
                policy = policy if backend == "vllm" else None  # two models may not fit beside each other
                policy, ready = start(path, policy), path
            mine = todo[rank::world]
            batches = [mine[i : i + batch_rows] for i in range(0, len(mine), batch_rows)]

            def read(index, rows=rows, processor=processor):
                """(index, prompt, "") or, of a row that cannot be used, (index, None, why): no row may end the run."""
                try:
                    row = rows[index]
                    return (
                        index,
                        data.encode_prompt(
                            row, processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
                        ),
                        "",
                    )
                except Exception as problem:
                    kind = (
                        ""
                        if isinstance(problem, data.BadRow)
                        else f"row {rows.name}:{index}: {type(problem).__name__}: "
                    )
                    return index, None, f"{kind}{problem}"

            progress, new = results.Progress(folder, name, rank, knobs) if mine else None, {}
            ahead = [reader.submit(read, index) for index in batches[0]] if batches else []
            for b in range(len(batches)):
                part, fresh = [future.result() for future in ahead], []
                if b + 1 < len(batches):  # images of the next batch are decoded while this one is answered
                    ahead = [reader.submit(read, index) for index in batches[b + 1]]
                good = [(index, prompt) for index, prompt, _ in part if prompt]
                seeds, groups = [sampling.sample_seed(seed, 0, index) for index, _ in good], []
                if good:
                    groups = draw(
                        policy,
                        [p for _, p in good],
                        samples,
                        seeds,
                        temperature,
                        max_tokens=tokens[name],
                        **settings,
                    )
                waiting = []
                for (index, prompt), group in zip(good, groups, strict=True):
                    entry = {"index": index} | {
                        k: prompt["row"][k] for k in results.FACTS if k in prompt["row"]
                    }
                    entry["outputs"] = [
                        {
                            "text": tokenizer.decode(c.ids, skip_special_tokens=True),
                            "tokens": len(c.ids),
                            "finished": c.finished,
                        }
                        for c in group
                    ]
                    waiting.append((entry, scorer.run(results.grade, entry, rules[name])))
                for entry, graded in waiting:
                    try:
                        fresh.append(graded())
                    except Exception as problem:
                        why = f"row {entry['id']}: cannot be scored ({type(problem).__name__}: {problem})"
                        part.append((entry["index"], None, why))
                for index, prompt, why in part:
                    if prompt is None:
                        print(f"data: skipped: {why}")
                        fresh.append({"index": index, "skipped": why})
                progress.add(fresh)
                new |= {entry["index"]: entry for entry in fresh}

            for part in common.all_gather(new):
                done |= part
            entries = [
                done[index] for index in sorted(done) if index < total and "skipped" not in done[index]
            ]
            bad = {
                index: entry["skipped"]
                for index, entry in sorted(done.items())
                if index < total and "skipped" in entry
            }
            if not entries:
                say(
                    f"eval: none of the {total} rows of '{name}' can be used; the first: {next(iter(bad.values()))}"
                )
                continue
            tables[path][name] = results.summary(entries, len(bad))
            records[path][name] = {
                "name": name,
                "model": path,
                "source": chosen[name],
                **tables[path][name],
                "skipped_rows": bad,
                "knobs": knobs,
                "config": config,
                "results": entries,
            }
            if (
                rank == 0 and len(done) <= total
            ):  # a second look with a smaller --limit does not cut what is there
                results.write_results(folder, name, records[path][name])
                results.forget(folder, name, parts_only=True)
    # -------------------------------------------------------------------------
    # tables and page
    # -------------------------------------------------------------------------
    if not all(tables.values()):
        raise SystemExit("eval: there is nothing to report; the lines above say why")
    how = f"{wording}, {'greedy' if temperature == 0 else f'{samples} samples at temperature {temperature}'}"
    for path in paths:
        say(f"\n{path}, {how}")
        results.print_table(tables[path], show_categories, say)
    if rank == 0:
        top = folders[paths[-1]] if len(paths) == 1 or not out_dir else Path(out_dir)
        named = {labels[path]: records[path] for path in paths}
        matrix = results.matrix(named) if len(paths) > 1 else None
        if matrix:
            results.print_matrix(matrix)
            results.write(top / "matrix.json", json.dumps(matrix, indent=1))
        report.eval_page(top / "eval.html", ", ".join(labels.values()), how, named, loaded, page_rows, matrix)
    say(
        f"{common.clock(time.time() - started)}, every output in {', '.join(f'{folder}/' for folder in folders.values())}"
    )
    scorer.close()
    common.finish(policy)
