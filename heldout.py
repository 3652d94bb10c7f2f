"""Held-out rows while a model is trained: its greedy answers, judged as in training. For both trainers."""

from torch.utils.data import Subset

import common
import data
import rewards


def load(config: dict, encode, rank: int, world: int, say) -> list[dict]:
    """This rank's share of the first `eval_rows` rows as prompts; [] without an evaluation. ALL RANKS.

    Of a mixture the first rows of each source, by its weight. SystemExit if no row can be used.
    """
    spec, most = config["eval_source"], config["eval_rows"]
    if not (spec and config["eval_interval"]):
        return []
    names = ("eval_split", "columns", "image_root", "task")
    rows = data.load_rows(spec, *[config[name] for name in names], say)
    if isinstance(rows, data.Mixture):
        rows = Subset(rows, first_of_each(rows, most))
    numbered, _ = data.take_all(rows, encode, rank, world, 0, min(most, len(rows)), say)
    prompts = [prompt for _, prompt in numbered]
    common.require(
        sum(common.all_gather(len(prompts))) > 0,
        f"eval_source: none of the first {most} rows of '{spec}' can be used; the lines above say why",
    )
    return prompts


def first_of_each(mixture: data.Mixture, most: int) -> list[int]:
    """Indices of the first rows of each source, by its weight; about `most` in all."""
    indices = []
    for source, start, count in zip(mixture.sources, mixture.starts, mixture.counts, strict=False):
        share = max(1, round(most * count / sum(mixture.counts)))
        indices += range(start, start + min(share, len(source)))
    return indices


def evaluate(prompts: list[dict], sample, decode, scorer, metric: str, when: str, say) -> dict:
    """Greedy accuracy, format rate and length on these prompts, for the log; says them. ALL RANKS.

    sample and decode as in the trainers; `metric`: one more task, reward part or function, by name, or "".
    With several sources or tasks also the accuracy of each: {"eval_accuracy/geoqa": 0.5, "eval_n/geoqa": 20}.
    """
    groups = sample(prompts, 1, [0] * len(prompts), 0.0)  # also without prompts: see samplers.py
    completions = [group[0] for group in groups]
    texts = [[decode(prompt, one)] for prompt, one in zip(prompts, completions, strict=True)]
    rows = [prompt["row"] | {"reward_func": None} for prompt in prompts]  # all judged alike
    parts = [scored[0] for scored in scorer.score(texts, rows)]

    tally = common.Tally()
    for one, completion in zip(parts, completions, strict=True):
        tally.add(accuracy=one["accuracy"], format=one["format"], length=len(completion.ids))
    if metric:
        tally.add(metric=measure(texts, rows, metric, scorer))
    found = tally.means()
    n = sum(common.all_gather(len(prompts)))
    record = {"eval_n": n} | {f"eval_{name}": mean for name, mean in found.items()}
    line = f"{when} | held-out accuracy {found['accuracy']:.1%}"
    accuracies = common.Kinds().accuracies(rows, parts)
    for name, (mean, count) in accuracies.items():
        record |= {f"eval_accuracy/{name}": mean, f"eval_n/{name}": int(count)}
    if accuracies:
        line += " (" + ", ".join(f"{name} {mean:.1%}" for name, (mean, _) in accuracies.items()) + ")"
    line += f" format {found['format']:.1%} length {found['length']:.0f}"
    if "metric" in found:
        line += f" {metric} {found['metric']:.4g}"
    say(f"{line} ({n} rows)")
    return record


def measure(texts: list[list[str]], rows: list[dict], metric: str, scorer) -> list[float]:
    """What the metric gives for each text; without those to which the user's function does not apply."""
    name = metric
    if metric in rewards.VERIFIERS:  # a task: the answers are judged by its rule
        name = "accuracy"
        rows = [row | {"task": metric} for row in rows]
    scored = [parts[0] for parts in scorer.score(texts, rows, (name,))]
    return [parts[name] for parts in scored if name in parts]
