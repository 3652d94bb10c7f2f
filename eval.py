"""Evaluate checkpoints on benchmarks, or on any file, folder, hub id or drawn scenes that data.py reads.

The scorer is rewards.py, the same that paid the policy during training. Every question, output, extracted
answer and verdict goes into one JSON per source and into one page for the browser, so a number can be checked
by reading.

    # in and out of distribution
    python eval.py configs/tiny_eval.py --model=out/tiny_grpo/step-000160
    # own rows, answer-only prompt
    python eval.py --model=out/grpo/step-000100 --data_source=my.jsonl --template=direct
    # benchmarks, data parallel over 8 GPUs
    torchrun --nproc_per_node=8 eval.py configs/eval.py --model=...
    # what was learnt, what was lost
    python eval.py --model=BASE,TRAINED --bench=superclevr200,mmmu --out_dir=out/forgetting

Two modes need no model and start at once:

    # outputs of ours or of other evaluators (docs/benchmarks.md), graded again
    python eval.py --regrade=out/old.json
    # which rows flipped, and is it more than chance?
    python eval.py --compare=a/superclevr200.json,b/superclevr200.json

Reported per source, over n rows (k samples each; a row counts with the mean over its samples). "8 of 900" is
no result of that benchmark: the rest was left out by --limit, is not in the copy, or could not be used.
  accuracy   strict: the last <answer> tag is right, as in training; with its 95 % Wilson interval. For the
             tasks relaxed, anls and vqa (tasks/metrics.py) the mean of values from 0 to 1
  lenient    a right \\boxed{} or plain final statement counts too: tells missing tags from wrong answers
  published  by the original script's rule (tasks/benchmarks.py): for comparison with published numbers
  format     <think>...</think> <answer>...</answer> and nothing else
  length     response tokens
  maj@k, pass@k   the most frequent answer of k samples is right; at least one of k is (strict both)
  your own   --metric=my_metrics:f1, a function f(completion, row) -> number: its mean. row has all columns of
             the data set, the images, problem, solution and options. Rows that were evaluated before are
             measured without being answered again; --metric=anls is the metric of another task

Files in out_dir per source: NAME.json (ours), NAME.seed.json (R1-V's layout), and eval.html for all. Finished
batches are kept in NAME.part-RANK.jsonl: the same command goes on where a killed one was, also with another
number of processes.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import report
import results
import rewards
from configurator import configure
from tasks import benchmarks
from tasks.outputs import refuse_other_set

# common, data, qwen and sampling are imported in main(): they bring torch, and two modes do without

# fmt: off
# -----------------------------------------------------------------------------
# default config: greedy, each benchmark's own prompt; override with  eval.py configs/x.py --key=value
# policy
model = ""                # checkpoint folder or hub id; several with commas: compared with the first
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # only for --backend=hf
backend = "vllm"          # 'vllm' or 'hf' (the transformers model alone)
# data
bench = ""                # names in tasks/benchmarks.py, 'superclevr200,mmmu'; 'name@folder': a local copy
data_source = ""          # or one source, see data.py; its results are called 'eval'
sources = {"": ""}        # or several, {"name": "source"}
data_split = "test"       # of sources; benchmarks have their own
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows without one: 'count', 'choice', 'math', 'grounding', 'text', 'relaxed',
                          # 'anls', 'vqa' or 'auto'
template = "auto"         # prompt: the data set's own, else 'think'; or 'direct' (answer only), 'box', ...
limit = 0                 # the first so many rows of each source; 0 = all
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped and counted
max_completion_length = 0 # 0 = the benchmark's own; 256 for other sources
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
box_frame = "auto"        # of coordinates: 'auto' (the policy's own), 'resized', 'thousand', 'original'
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
out_dir = ""              # default: eval/ in the checkpoint folder; several models: a folder for each in here
resume = True             # go on with what is in out_dir; False starts over
show_categories = False   # print accuracy by category, too (it always is in the JSON and on the page)
page_rows = 500           # rows of each source on the page, images included; 0 = no page
# without a model
regrade = ""              # files to grade again
compare = ""              # 'a.json,b.json': the same rows, two checkpoints
# what is measured
metric = "accuracy"       # one more: 'module:function' or a task ('anls'); also what --compare compares:
                          # 'accuracy', 'lenient', 'published' or one of those
# -----------------------------------------------------------------------------
# fmt: on

# knobs that decide what a row's outputs are: results that were made with others are not gone on with
FIXED = ("dtype", "backend", "template", "max_prompt_length", "min_pixels", "max_pixels", "box_frame")
FIXED += ("samples", "temperature", "top_p", "top_k", "seed", "columns", "image_root", "task")

# -----------------------------------------------------------------------------
# without a model
# -----------------------------------------------------------------------------


def regrade_files(scorer) -> None:
    """Grade the files of --regrade again, each with a page of its own."""
    for name in regrade.split(","):
        if not name:
            continue
        path = Path(name)
        folder = Path(out_dir) if out_dir else path.parent
        known = benchmark_of(path)
        rule = published_rule(known)
        record = results.regrade(path, folder, task, rule, bench=known, metric=metric, scorer=scorer)
        page = folder / f"{path.stem}.regraded.html"
        report.eval_page(page, str(path), "graded again", {"": {path.stem: record}}, {}, page_rows)


def compare_files(scorer) -> None:
    """Print how the two files of --compare differ; with out_dir, compare.json there names all rows."""
    paths = [Path(name) for name in compare.split(",")]
    if len(paths) != 2:
        raise SystemExit(f"compare: {len(paths)} file(s); name two, as in --compare=before.json,after.json")
    rules = [published_rule(benchmark_of(path)) for path in paths]
    graded = [
        results.read_graded(path, task, rule, metric, scorer) for path, rule in zip(paths, rules, strict=True)
    ]
    found = results.compare(graded[0], graded[1], metric)
    results.print_comparison(found, paths)
    if out_dir:
        results.write(Path(out_dir, "compare.json"), json.dumps(found, indent=1, ensure_ascii=False))


def benchmark_of(path: Path) -> str:
    """The benchmark that --bench names, or a result file: mmmu.json. "" if neither does."""
    names = list(benchmarks.choose(bench)) or [path.stem]
    return names[0] if names[0] in benchmarks.BENCHMARKS else ""


def published_rule(name: str) -> Callable | None:
    """The rule of a benchmark's original script; None if it has none, or the name is ""."""
    return benchmarks.BENCHMARKS[name].rule if name else None


# -----------------------------------------------------------------------------
# sources
# -----------------------------------------------------------------------------


class Source(NamedTuple):
    spec: str  # as data.load_rows takes it
    rows: Sequence[dict]
    indices: Sequence[int]  # of the rows that are evaluated
    of: int  # rows of the whole set
    tokens: int  # limit on a completion
    rule: Callable | None  # the published one, if it is a benchmark that has one


def choose_sources() -> dict[str, str]:
    """{name: spec} of the knobs bench, sources and data_source."""
    chosen = benchmarks.choose(bench)
    for name, spec in sources.items():
        if spec:
            chosen[name] = spec
    if data_source:
        chosen["eval"] = data_source
    return chosen


def load_sources(chosen: dict[str, str], say) -> dict[str, Source]:
    """{name: Source}. SystemExit if some cannot be read or are of another set, naming all of them.

    Nobody wants to learn of the second missing download after the first.
    """
    loaded = {}
    missing = []
    for name, spec in chosen.items():
        benchmark = benchmarks.BENCHMARKS.get(name)  # None for a source that is no benchmark
        split, tokens, rule, published = data_split, 256, None, 0
        if benchmark:
            split, tokens, rule = benchmark.split, benchmark.tokens, benchmark.rule
            published = benchmark.rows
        try:
            rows = data.load_rows(spec, split, columns, image_root, task, say)
            if benchmark:
                refuse_other_set(Path(spec), "", first_rows(rows), name)
        except SystemExit as problem:
            missing.append(str(problem))
            continue
        of = published or len(rows)
        loaded[name] = Source(spec, rows, chosen_rows(rows), of, max_completion_length or tokens, rule)
    if missing:
        raise SystemExit("\n".join(missing))
    return loaded


def chosen_rows(rows: Sequence[dict]) -> Sequence[int]:
    """Indices of the first `limit` rows, of a mixture of the first of each of its sources; 0 = all."""
    if not limit or not isinstance(rows, data.Mixture):
        return range(min(len(rows), limit or len(rows)))
    indices = []
    for start, source in zip(rows.starts, rows.sources, strict=False):
        indices += range(start, start + min(limit, len(source)))
    return indices


def first_rows(rows: Sequence[dict], most: int = 20) -> list[dict]:
    """The first rows that can be used."""
    found = []
    for i in range(min(most, len(rows))):
        with contextlib.suppress(data.BadRow):  # named when its turn comes
            found.append(rows[i])
    return found


# -----------------------------------------------------------------------------
# policy
# -----------------------------------------------------------------------------


def start_policy(path: str, processor, longest: int, device, say):
    """The weights of a checkpoint in a model, or in a vLLM engine for `longest` tokens, prompt included."""
    if backend == "hf":
        return qwen.load_model(path, dtype, attn, device, say)
    limits = data.processor_limits(processor, max_pixels)
    settings = {"gpu_memory": vllm_gpu_memory, "seed": seed, "cuda": device.type == "cuda"}
    return sampling.start_vllm(path, dtype, longest, data.MAX_IMAGES, limits, **settings)


def take_weights(engine, path: str, before: str, say) -> None:
    """Give vLLM, started once with checkpoint `before`, the weights of the next, as in training."""
    if model_shape(path) != model_shape(before):
        raise SystemExit(
            f"model: '{path}' is of another size or family than '{before}', so one vLLM engine cannot take "
            f"both in turn; what is done is kept: run the same command again, and it goes on with '{path}'"
        )
    net = qwen.load_model(path, dtype, say=say)
    sampling.sync_weights(engine, net.named_parameters(remove_duplicate=False))


def model_shape(path: str) -> tuple:
    text = AutoConfig.from_pretrained(path).get_text_config()
    sizes = (text.hidden_size, text.num_hidden_layers, text.intermediate_size, text.vocab_size)
    return (text.model_type, *sizes)


def sampler_settings(path: str, processor, rank: int) -> dict:
    """What the rollout of a checkpoint needs beside prompts, seeds and temperature."""
    return {
        "top_p": top_p,
        "top_k": top_k,
        "banned": qwen.banned_ids(AutoConfig.from_pretrained(path), processor),
        "end": qwen.end_ids(processor),
        "progress": rank == 0,
    }


# -----------------------------------------------------------------------------
# one checkpoint on one source
# -----------------------------------------------------------------------------


def earlier_results(folder: Path, name: str, knobs: dict, rank: int) -> dict[int, dict]:
    """{index: entry} of what earlier runs have finished, none of it with resume=False. ALL RANKS."""
    if not resume and rank == 0:
        results.forget(folder, name)
    common.all_gather(None)  # nobody reads before that
    done = results.read_progress(folder, name, knobs)
    common.all_gather(None)  # nobody writes before all have read
    return done


def answer_rows(
    policy, source: Source, indices: list[int], processor, settings: dict, scorer, reader, progress
) -> dict[int, dict]:
    """{index: graded entry, or {"index", "skipped": reason}} of these rows; `settings`: of the sampler."""
    answered = {}
    named = 0  # rows that were skipped
    for batch in prompt_batches(source.rows, indices, processor, reader):
        prompts = {}
        skipped = {}
        for index, prompt, reason in batch:
            if prompt:
                prompts[index] = prompt
            else:
                skipped[index] = reason
        entries = generate(policy, source, prompts, processor.tokenizer, settings)
        finished, failed = grade_entries(entries, source.rule, scorer)
        for index, reason in (skipped | failed).items():
            named += 1
            data.say_skipped(reason, named, print)
            finished.append({"index": index, "skipped": reason})
        progress.add(finished)
        for entry in finished:
            answered[entry["index"]] = entry
    return answered


def prompt_batches(rows: Sequence[dict], indices: list[int], processor, reader) -> Iterator[list[tuple]]:
    """What read_prompt gives, batch_rows at a time; the next images are decoded while a batch is answered."""
    batches = [indices[start : start + batch_rows] for start in range(0, len(indices), batch_rows)]
    ahead = []
    for batch in [*batches, []]:  # a last turn without new rows yields the last batch
        reading = ahead
        ahead = [reader.submit(read_prompt, rows, index, processor) for index in batch]
        if reading:
            yield [future.result() for future in reading]


def read_prompt(rows: Sequence[dict], index: int, processor) -> tuple[int, dict | None, str]:
    """(index, prompt, "") or, of a row that cannot be used, (index, None, reason): no row may end the run."""
    try:
        prompt = data.encode_prompt(
            rows[index], processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
        )
        return index, prompt, ""
    except data.BadRow as problem:
        return index, None, str(problem)
    except Exception as problem:
        return index, None, f"row {rows.name}:{index}: {type(problem).__name__}: {problem}"


def generate(policy, source: Source, prompts: dict[int, dict], tokenizer, settings: dict) -> list[dict]:
    """Entries with the outputs, not yet graded, of {row index: prompt}."""
    if not prompts:
        return []
    rollout = sampling.rollout_vllm if backend == "vllm" else sampling.rollout_hf
    seeds = [sampling.sample_seed(seed, 0, index) for index in prompts]
    groups = rollout(
        policy, list(prompts.values()), samples, seeds, temperature, max_tokens=source.tokens, **settings
    )
    entries = []
    for index, group in zip(prompts, groups, strict=True):
        row = prompts[index]["row"]
        opened = prompts[index]["opened"]  # by the chat template: "<think>"
        entry = {"index": index}
        entry |= {key: row[key] for key in results.FACTS if key in row}
        entry["outputs"] = []
        for completion in group:
            text = opened + tokenizer.decode(completion.ids, skip_special_tokens=True)
            output = {"text": text, "tokens": len(completion.ids), "finished": completion.finished}
            entry["outputs"].append(output)
        entries.append(entry)
    return entries


def grade_entries(entries: list[dict], rule, scorer) -> tuple[list[dict], dict[int, str]]:
    """The entries with their verdicts, and {index: reason} of those that cannot be graded."""
    waiting = [scorer.run(results.grade, entry, rule) for entry in entries]
    graded = []
    failed = {}
    for entry, wait in zip(entries, waiting, strict=True):
        try:
            graded.append(wait())
        except Exception as problem:
            reason = f"cannot be scored ({type(problem).__name__}: {problem})"
            failed[entry["index"]] = f"row {entry['id']}: {reason}"
    return graded, failed


def measure_rows(source: Source, entries: list[dict], scorer, reader, progress) -> dict[int, dict]:
    """{index: entry} of these entries, --metric measured, batch_rows at a time; their rows are read again."""
    for start in range(0, len(entries), batch_rows):
        batch = entries[start : start + batch_rows]
        rows = list(reader.map(source.rows.__getitem__, [entry["index"] for entry in batch]))
        results.measure(batch, rows, metric, scorer)
        progress.add(batch)
    return {entry["index"]: entry for entry in entries}


def lacks_metric(entry: dict) -> bool:
    """Is it an entry with outputs of which --metric, one beside those of every evaluation, is not known?"""
    if metric in results.METRICS:
        return False
    return any(metric not in output for output in entry.get("outputs", ()))


def split_results(done: dict[int, dict], indices: Sequence[int]) -> tuple[list[dict], dict[int, str]]:
    """Graded entries in order, and {index: reason} of the skipped rows, of the rows with these indices."""
    entries = []
    skipped = {}
    for index in indices:  # in `done` may be more, of an earlier run with a larger --limit
        entry = done[index]
        if "skipped" in entry:
            skipped[index] = entry["skipped"]
        else:
            entries.append(entry)
    return entries, skipped


# -----------------------------------------------------------------------------
# folders and page
# -----------------------------------------------------------------------------


def output_folders(paths: list[str], labels: dict[str, str]) -> dict[str, Path]:
    """{checkpoint: folder for its results}."""
    folders = {}
    for path in paths:
        if not out_dir:
            folders[path] = Path(path, "eval")
        elif len(paths) == 1:
            folders[path] = Path(out_dir)
        else:
            folders[path] = Path(out_dir, labels[path])
    return folders


def write_page(folder: Path, records: dict[str, dict], loaded: dict[str, Source], how: str) -> None:
    """eval.html; of several checkpoints also the table of gains and losses, and matrix.json."""
    matrix = None
    if len(records) > 1:
        matrix = results.matrix(records)
        results.print_matrix(matrix)
        results.write(folder / "matrix.json", json.dumps(matrix, indent=1))
    rows = {name: source.rows for name, source in loaded.items()}
    report.eval_page(folder / "eval.html", ", ".join(records), how, records, rows, page_rows, matrix)


def main():
    global AutoConfig, common, data, qwen, sampling
    config = configure(globals(), sys.argv[1:], __file__)
    results.check_metric(metric)
    if regrade or compare:
        scorer = rewards.Scorer(0, [metric])
        if regrade:
            regrade_files(scorer)
        if compare:
            compare_files(scorer)
        sys.exit()
    # first of all: its processes must not inherit a GPU or an engine
    scorer = rewards.Scorer(score_workers, [metric])

    from transformers import AutoConfig

    import common
    import data
    import qwen
    import sampling

    # -------------------------------------------------------------------------
    # processes, checks
    # -------------------------------------------------------------------------
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    chosen = choose_sources()
    paths = [path.strip().rstrip("/") for path in model.split(",") if path.strip()]
    example = "eval.py --model=out/tiny_grpo/step-000160 --data_source=rows.jsonl"
    common.require(bool(paths and chosen), f"eval: name a checkpoint and rows, as in: {example}")
    common.check_choices(config)
    common.check_device(config)
    if backend == "vllm":
        common.check_compiler("set --backend=hf")
    common.require(
        samples <= 1 or temperature > 0,
        f"samples: {samples} greedy completions would all be the same; set --temperature=1.0 or --samples=1",
    )
    labels = results.short_names(paths)
    folders = output_folders(paths, labels)

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    loaded = load_sources(chosen, say)
    longest = max_prompt_length + max(source.tokens for source in loaded.values())
    wording = "own prompts" if template == "auto" else f"{template} prompt"

    # -------------------------------------------------------------------------
    # the loop: every checkpoint on every source
    # -------------------------------------------------------------------------
    started = time.time()
    reader = data.reader_threads()
    policy = None
    held = ""  # the checkpoint whose weights the policy has
    records = {path: {} for path in paths}
    for path in paths:
        folder = folders[path]
        weights = results.fingerprint(path)  # and not the name alone: a path can be trained anew
        processor = qwen.load_processor(path)
        settings = sampler_settings(path, processor, rank)
        for name, source in loaded.items():
            # 1) what an earlier run has done
            knobs = {key: config[key] for key in FIXED}
            knobs |= {"source": source.spec, "tokens": source.tokens, "weights": weights}
            done = earlier_results(folder, name, knobs, rank)
            total = len(source.indices)
            todo = [index for index in source.indices if index not in done]
            before = f", {total - len(todo)} of them done before" if done else ""
            say(f"eval: {name}: {total} rows, {wording}{before}")

            # 2) the policy with the weights of this checkpoint
            if todo and held != path:
                if policy is not None and backend == "vllm":
                    take_weights(policy, path, held, say)
                else:
                    policy = None  # first, since two models may not fit beside each other
                    policy = start_policy(path, processor, longest, device, say)
                held = path

            # 3) generate and score, strided over the processes
            mine = todo[rank::world]
            answered = {}
            if mine:
                progress = results.Progress(folder, name, rank, knobs)
                answered = answer_rows(policy, source, mine, processor, settings, scorer, reader, progress)
            for part in common.all_gather(answered):
                done |= part

            # 4) the metric of --metric, also of rows that were answered before
            todo = [index for index in source.indices if lacks_metric(done[index])]
            mine = [done[index] for index in todo[rank::world]]
            measured = {}
            if mine:
                progress = results.Progress(folder, name, rank, knobs)
                measured = measure_rows(source, mine, scorer, reader, progress)
            for part in common.all_gather(measured):
                done |= part

            # 5) figures and files
            entries, skipped = split_results(done, source.indices)
            if not entries:
                reason = next(iter(skipped.values()))
                say(f"eval: none of the {total} rows of '{name}' can be used; the first: {reason}")
                continue
            records[path][name] = {
                "name": name,
                "model": path,
                "source": source.spec,
                **results.summary(entries, len(skipped), source.of, metric),
                "skipped_rows": skipped,
                "knobs": knobs,
                "config": config,
                "results": entries,
            }
            # a second look with a smaller --limit does not cut what is there
            if rank == 0 and len(done) <= total:
                results.write_results(folder, name, records[path][name])
                results.forget(folder, name, parts_only=True)

    # -------------------------------------------------------------------------
    # tables and page
    # -------------------------------------------------------------------------
    common.require(all(records.values()), "eval: there is nothing to report; the lines above say why")
    drawn = "greedy" if temperature == 0 else f"{samples} samples at temperature {temperature}"
    for path in paths:
        say(f"\n{path}, {wording}, {drawn}")
        results.print_table(records[path], show_categories, say)
    if rank == 0:
        top = Path(out_dir) if len(paths) > 1 and out_dir else folders[paths[-1]]
        named = {labels[path]: records[path] for path in paths}
        write_page(top, named, loaded, f"{wording}, {drawn}")
    where = ", ".join(f"{folder}/" for folder in folders.values())
    say(f"{common.clock(time.time() - started)}, every output in {where}")
    scorer.close()
    common.finish(policy)


if __name__ == "__main__":
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # several processes
        import common

        common.run(main)
    else:
        main()
