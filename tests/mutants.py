"""Do the tests notice a wrong algorithm? Each entry is one mistake; the tests named with it must fail on it.

    python tests/mutants.py                 # all of them, in scratch copies of the project
    python tests/mutants.py sampling loss   # those whose file or text holds one of these words

Not part of the suite. A mistake is one replacement in one file (the old text stands there exactly once). It
is `killed` if the tests fail, `ALIVE` if they pass. Each test is first run on the right code: it must pass.
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2  # copies at a time


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest


def step(run: str) -> str:
    """One run of tests/test_step.py: gradient, log, weights."""
    return f"tests/test_step.py -k {run}"


GRPO, SFT, QWEN, COMMON = "train_grpo.py", "train_sft.py", "qwen.py", "common.py"
CHECKPOINT, SAMPLING, SAMPLERS = "checkpoint.py", "sampling.py", "samplers.py"
DATA, REWARDS = "data.py", "rewards.py"
MATH = "tests/test_math.py"
LEARNING = "tests/test_learning.py"
PACKED = "tests/test_qwen.py -k packed"
RUNS = "tests/test_runs.py"
FOLDER = "tests/test_checkpoint.py"

MUTANTS = [
    # the signs and factors of the loss
    Mutant(
        GRPO,
        "engine.backward(loss * world * real)",
        "engine.backward(-loss * world * real)",
        f"{LEARNING} -k reward_rises",
    ),
    Mutant(GRPO, "engine.backward(loss * world * real)", "engine.backward(loss * real)", step("batch")),
    Mutant(GRPO, "policy_loss + beta * kl", "policy_loss - beta * kl", f"{LEARNING} -k beta"),
    Mutant(GRPO, "policy_loss + beta * kl", "policy_loss + kl", step("batch")),
    Mutant(GRPO, "policy_loss + beta * kl", "policy_loss + beta * kl.mean()", step("gspo")),
    Mutant(GRPO, "policy_loss + beta * kl", "policy_loss", step("dr_grpo")),
    Mutant(GRPO, "k3(logp, ref_logp[token])", "k3(ref_logp[token], logp)", step("batch")),
    Mutant(GRPO, "ref_logp = fixed_logps(reference)", "ref_logp = fixed_logps(engine)", step("batch")),
    Mutant(GRPO, "return d.exp() - d - 1", "return -d", step("batch")),
    Mutant(
        GRPO,
        "return -torch.minimum(gain, clipped_gain)",
        "return -torch.maximum(gain, clipped_gain)",
        step("dapo"),
    ),
    Mutant(GRPO, "return -torch.minimum(gain, clipped_gain)", "return -clipped_gain", step("dapo")),
    Mutant(
        GRPO,
        "ratio.clamp(1 - clip_low, 1 + clip_high)",
        "ratio.clamp(1 - clip_high, 1 + clip_low)",
        step("dapo"),
    ),
    Mutant(GRPO, "log_ratio = logp - old_logp", "log_ratio = old_logp - logp", step("dapo")),
    Mutant(GRPO, "clipped_gain < gain\n", "clipped_gain > gain\n", step("dapo")),
    Mutant(GRPO, "mean = total / tokens", "mean = total", step("gspo")),
    Mutant(GRPO, "(old_logp - rollout_logp).exp()", "(rollout_logp - old_logp).exp()", step("batch")),
    Mutant(GRPO, ".clamp_max(cap).detach()", ".detach()", step("frozen")),
    Mutant(GRPO, "policy_loss = importance * policy_loss", "policy_loss = policy_loss", step("batch")),
    Mutant(GRPO, "if importance_cap:", "if not importance_cap:", step("batch")),
    Mutant(
        GRPO,
        "old_logp[token] if updates_per_rollout > 1 else logp.detach()",
        "logp.detach()",
        step("dapo"),
    ),
    Mutant(GRPO, "old_logp = fixed_logps(engine)", "old_logp = rollout_logp", step("dapo")),
    Mutant(GRPO, 'logps[batch["token"]] = logp', 'logps[batch["token"].flip(0)] = logp', step("batch")),
    Mutant(
        GRPO,
        "set_gradient_accumulation_boundary(batch is batches[-1])",
        "set_gradient_accumulation_boundary(batch is batches[0])",
        step("batch"),
    ),
    Mutant(
        GRPO,
        "token_weight = (weight * used).to(device)[sequence]",
        "token_weight = (weight / weight.sum()).to(device)[sequence]",
        step("batch"),
    ),
    Mutant(
        GRPO,
        "importance_weight(old, rollout_logp[token]",
        "importance_weight(logp, rollout_logp[token]",
        step("frozen"),
    ),
    Mutant(GRPO, "importance_cap or math.inf", "importance_cap or 1.0", step("gspo_token")),
    Mutant(GRPO, "old_logp = fixed_logps(engine)", "old_logp = fixed_logps(reference)", step("frozen")),
    Mutant(
        GRPO,
        "token_advantage[token], sequence",
        "token_advantage[: len(token)], sequence",
        step("dr_grpo"),
    ),
    Mutant(GRPO, "qwen.Policy(net, banned, temperature)", "qwen.Policy(net, banned)", step("dr_grpo")),
    Mutant(
        GRPO,
        "qwen.Policy(net, banned, temperature)",
        "qwen.Policy(net, [], temperature)",
        step("dr_grpo"),
    ),
    Mutant(GRPO, "qwen.Policy(start, banned, temperature)", "qwen.Policy(start, banned)", step("dr_grpo")),
    # advantages, and the weights of the tokens
    Mutant(GRPO, "r - r.mean(dim=1, keepdim=True)", "r - r.mean(dim=0, keepdim=True)", step("batch")),
    Mutant(
        GRPO,
        "r.std(dim=1, keepdim=True) + eps",
        "r.std(dim=1, keepdim=True, correction=0) + eps",
        step("frozen"),
    ),
    Mutant(GRPO, "centred / (r.std() + eps)", "centred / (r.std(dim=1, keepdim=True) + eps)", step("batch")),
    Mutant(GRPO, "all_advantages[rank * P : rank * P + P]", "all_advantages[:P]", step("batch")),
    Mutant(
        GRPO,
        "return 1 / (n_sequences * lengths)",
        "return 1 / (n_sequences * lengths.mean() + 0 * lengths)",
        step("gspo"),
    ),
    Mutant(
        GRPO,
        "torch.full_like(lengths, 1 / n_tokens)",
        "torch.full_like(lengths, 1 / lengths.sum())",
        step("dapo"),
    ),
    Mutant(GRPO, "1 / (n_sequences * max_length)", "1 / (n_sequences * lengths.max())", step("dr_grpo")),
    Mutant(GRPO, "lengths[used].sum().item()]", "lengths.sum().item()]", step("dapo")),
    Mutant(GRPO, "used &= ~flat", "used &= flat", step("dapo")),
    Mutant(GRPO, "used &= finished", "used &= ~finished", step("dapo")),
    Mutant(GRPO, ".repeat_interleave(G)", ".repeat(G)", step("dapo")),
    Mutant(
        GRPO,
        "torch.arange(S), lengths.long())",
        "torch.arange(S), lengths.long().flip(0))",
        step("dapo"),
    ),
    Mutant(GRPO, "group_advantages(all_rewards, adv_norm)", "group_advantages(all_rewards)", step("dr_grpo")),
    Mutant(GRPO, "if mask_truncated:", "if not mask_truncated:", step("gspo")),
    # what the loop asks for and what it logs
    Mutant(
        GRPO,
        "sample_seed(seed, step, p * world + rank)",
        "sample_seed(seed, 0, p * world + rank)",
        step("batch"),
    ),
    Mutant(GRPO, "sample_seed(seed, step, p * world + rank)", "sample_seed(seed, step, p)", step("batch")),
    Mutant(
        GRPO,
        "common.learning_rate(step, steps,",
        "common.learning_rate(step + 1, steps,",
        step("dr_grpo"),
    ),
    Mutant(GRPO, "/ updates_per_rollout\n", "/ 1\n", step("dapo")),
    Mutant(GRPO, "all_rewards.std(1).mean()", "all_rewards.std(0).mean()", step("batch")),
    Mutant(
        GRPO,
        "mismatch = (old - rollout_logp[token]).abs()",
        "mismatch = old - rollout_logp[token]",
        step("batch"),
    ),
    Mutant(
        GRPO,
        "one at a time\n        sampler.sync(",
        "one at a time\n        list(",
        "tests/test_engines.py",
    ),
    Mutant(GRPO, "rewards.total(of_one, part_weights)", "sum(of_one.values())", step("dr_grpo")),
    Mutant(GRPO, "texts[p * G : p * G + G] for", "texts[p * G : p * G + G][::-1] for", step("dr_grpo")),
    Mutant(GRPO, "stream.take(P)", "stream.take(P + 1)[:P]", step("dr_grpo")),
    Mutant(GRPO, "start(prompts, G, seeds, temperature)", "start(prompts, G, seeds, 1.0)", step("dr_grpo")),
    Mutant(GRPO, "tally.add(real, clip_fraction", "tally.add(clip_fraction", step("idle")),
    Mutant(
        GRPO,
        "one at a time\n        sampler.sync(",
        "one at a time\n        step % 2 or sampler.sync(",
        "tests/test_engines.py",
    ),
    Mutant(
        SAMPLERS,
        "jobs = [trainer.recv() for trainer in trainers]",
        "jobs = [trainer.recv() for trainer in trainers[::-1]]",
        "tests/test_samplers.py -k two_trainers",
    ),
    Mutant(
        COMMON,
        "(total + real * values.sum(), count + real * values.numel())",
        "(total + values.sum(), count + values.numel())",
        f"{MATH} -k tally",
    ),
    # packing
    Mutant(
        QWEN,
        "[begin + width - 1, *range(first, first + len(ids) - 1)]",
        "[*range(first, first + len(ids))]",
        PACKED,
    ),
    Mutant(QWEN, "prompt_place.max() + 1 + torch.arange", "prompt_place.max() + torch.arange", PACKED),
    Mutant(
        QWEN,
        "segments.append((first, len(ids), begin, width))",
        "segments.append((first, len(ids), 0, width))",
        PACKED,
    ),
    Mutant(
        QWEN,
        "torch.ones(C, C, dtype=torch.bool, device=device).tril()",
        "torch.ones(C, C, dtype=torch.bool, device=device)",
        PACKED,
    ),
    Mutant(
        QWEN,
        "start += len(completion)\n",
        "start += len(completion) if used[s] else 0\n",
        "tests/test_qwen.py -k micro_batches",
    ),
    Mutant(QWEN, "real = 1.0 if m < len(batches) else 0.0", "real = 1.0", step("sft")),
    Mutant(
        QWEN,
        "(logits.float() / temperature).masked_fill(banned, -1e9)",
        "logits.float().masked_fill(banned, -1e9)",
        step("dr_grpo"),
    ),
    Mutant(
        QWEN,
        "(logits.float() / temperature).masked_fill(banned, -1e9)",
        "logits.float() / temperature",
        step("batch"),
    ),
    Mutant(QWEN, "lora_alpha=alpha", "lora_alpha=rank", step("lora")),
    Mutant(QWEN, "layer.enable_adapters(False)", "layer.enable_adapters(True)", step("lora")),
    # the sampler
    Mutant(
        SAMPLING,
        "if not llm.reset_prefix_cache():",
        "if False:",
        "tests/test_vllm.py -k through_updates",
    ),
    Mutant(SAMPLING, "manual_seed(seed + i)", "manual_seed(seed)", "tests/test_qwen.py -k frequencies"),
    Mutant(
        SAMPLING,
        "logits = logits / temperature",
        "logits = logits * temperature",
        "tests/test_qwen.py -k rollout",
    ),
    Mutant(
        SAMPLING,
        "Completion(ids[: t + 1], logps[: t + 1], finished=True)",
        "Completion(ids[:t], logps[:t], finished=True)",
        "tests/test_qwen.py -k cut",
    ),
    Mutant(
        SAMPLING,
        "index_fill(1, banned, -torch.inf)",
        "index_fill(1, banned, 0.0)",
        "tests/test_qwen.py -k rollout",
    ),
    Mutant(SAMPLING, "(cache.position + t)", "(cache.position + t + 1)", "tests/test_qwen.py -k rollout"),
    Mutant(SAMPLING, "    llm.llm_engine.reset_mm_cache()", "    pass", "tests/test_engines.py"),
    # saving and going on
    Mutant(
        CHECKPOINT,
        "weight = weight + layer.get_delta_weight",
        "weight = weight - layer.get_delta_weight",
        "tests/test_step.py -k exported",
    ),
    Mutant(CHECKPOINT, 'stream.cursor = loop["cursors"][rank]', "stream.cursor = 0", f"{RUNS} -k killed"),
    Mutant(CHECKPOINT, "written <= step:", "written < step:", FOLDER),
    Mutant(CHECKPOINT, "elif step > 0 and", "elif", MATH),
    Mutant(CHECKPOINT, "for old in exports[:-keep]", "for old in exports[:keep]", FOLDER),
    Mutant(CHECKPOINT, "[-KEEP_STATES:]", "[:KEEP_STATES]", FOLDER),
    Mutant(CHECKPOINT, "weights_only=True", "weights_only=False", FOLDER),
    Mutant(CHECKPOINT, "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", FOLDER),
    Mutant(CHECKPOINT, "!= digest", "== digest", FOLDER),
    Mutant(CHECKPOINT, r"step-\d{6,}", r"step-\d+", FOLDER),
    Mutant(CHECKPOINT, "12 * trained", "8 * trained", FOLDER),
    Mutant(CHECKPOINT, "if knob not in FREE_KNOBS:", "if knob in FREE_KNOBS:", FOLDER),
    Mutant(
        CHECKPOINT,
        'stream.skipped = loop["skipped"][rank]',
        "stream.skipped = 0",
        "tests/test_bad_input.py -k counted",
    ),
    # the optimizer
    Mutant(COMMON, 'group["lr"] = lr', 'group["lr"] = group["lr"]', step("dr_grpo")),
    Mutant(COMMON, '"gradient_clipping": grad_clip', '"gradient_clipping": 0.0', step("dr_grpo")),
    Mutant(COMMON, "betas=betas, weight_decay=weight_decay", "betas=betas", step("frozen")),
    Mutant(
        COMMON,
        "return peak * (step + 1) / warmup",
        "return peak * step / warmup",
        f"{MATH} -k learning_rate",
    ),
    # supervised fine-tuning
    Mutant(SFT, "loss = -logp.sum() / n_tokens", "loss = logp.sum() / n_tokens", f"{LEARNING} -k sft"),
    Mutant(SFT, "loss = -logp.sum() / n_tokens", "loss = -logp.mean()", step("sft")),
    Mutant(SFT, "engine.backward(loss * world * real)", "engine.backward(loss * real)", step("sft")),
    Mutant(SFT, "input_ids + [end[0]]", "input_ids", step("sft")),
    Mutant(SFT, "qwen.Policy(net, banned=[])", "qwen.Policy(net, banned=banned)", step("sft")),
    Mutant(
        SFT,
        "sum(common.all_gather(sum(len(sequence) for sequence in ids)))",
        "sum(len(sequence) for sequence in ids)",
        step("sft"),
    ),
    Mutant(SFT, "(batch is batches[-1])", "(True)", step("sft")),
    # data and rewards
    Mutant(DATA, 'f"{self.seed}-{epoch}"', 'f"{self.seed}"', "tests/test_data.py"),
    Mutant(DATA, "place * self.world + self.rank", "place * self.world", "tests/test_data.py"),
    Mutant(REWARDS, "weights.get(name, 1.0) * part", "part", "tests/test_rewards.py"),
    Mutant(REWARDS, "scale if is_right > 0.5 else", "scale if is_right < 0.5 else", "tests/test_rewards.py"),
    # files, layouts, pictures and answers of other projects, soft metrics, result files of other evaluators
    Mutant(
        "tasks/files.py",
        '{"keep_default_na": False, "na_values": [""]}',
        '{"keep_default_na": True}',
        "tests/test_files.py -k cells",
    ),
    Mutant(
        "tasks/files.py",
        "load_dataset(kind, size, data_files",
        "load_dataset(kind, data_files",
        "tests/test_files.py -k changed",
    ),
    Mutant("tasks/files.py", 'max(",;\\t", key=header.count)', '","', "tests/test_files.py -k text_files"),
    Mutant(
        "tasks/files.py", "group[suffix.lower()] =", "group[suffix] =", "tests/test_files.py -k webdataset"
    ),
    Mutant(
        "tasks/files.py",
        'groups.setdefault((path, f"{folder}/{name}"), {})',
        'groups.setdefault(f"{folder}/{name}", {})',
        "tests/test_files.py -k tars",
    ),
    Mutant("tasks/files.py", "files = metadata or files", "files = files", "tests/test_files.py -k one_list"),
    Mutant(
        "tasks/files.py",
        'text.count("\\n", 0, place) + 1',
        'text.count("\\n", 0, place)',
        "tests/test_files.py -k damaged",
    ),
    Mutant(
        "tasks/layouts.py",
        "given[0] if given else answer or None",
        "answer or (given[0] if given else None)",
        "tests/test_layouts.py -k wins",
    ),
    Mutant(
        "tasks/layouts.py",
        'turn["content"] = split_reply(turn["content"])[1]',
        "pass",
        "tests/test_layouts.py -k before",
    ),
    Mutant(
        "tasks/layouts.py",
        'text.replace(IMAGE_MARK, "") if several else text',
        "text",
        "tests/test_layouts.py -k parts",
    ),
    Mutant(
        "tasks/layouts.py",
        "return IMAGE_MARK * marks + question",
        "return problem",
        "tests/test_layouts.py -k same_row",
    ),
    Mutant(
        "tasks/layouts.py",
        "thinking.strip(), text[closing.end() :].strip()",
        '"", text[closing.end() :].strip()',
        "tests/test_layouts.py -k reasoning",
    ),
    Mutant("tasks/layouts.py", '"assistant")[-1:]', '"assistant")', "tests/test_layouts.py -k same_row"),
    Mutant("tasks/pictures.py", "if orientation(image) != 1:", "if False:", "tests/test_pictures.py"),
    Mutant(
        "tasks/pictures.py",
        'Image.new("RGB", image.size, "white")',
        'Image.new("RGB", image.size, "black")',
        "tests/test_pictures.py",
    ),
    Mutant("tasks/pictures.py", "low, high = 0, 65535", "low, high = 0, 255", "tests/test_pictures.py"),
    Mutant("tasks/pictures.py", '.replace("-", "+").replace("_", "/")', "", "tests/test_pictures.py"),
    Mutant(
        "tasks/answers.py",
        "return 0 if has_zero else 1",
        "return 1 if has_zero else 0",
        "tests/test_answers.py",
    ),
    Mutant("tasks/answers.py", "LETTERS[number - base]", "LETTERS[number]", "tests/test_answers.py"),
    Mutant(
        "tasks/answers.py", "while texts and is_empty(texts[-1]):", "while False:", "tests/test_answers.py"
    ),
    Mutant("data.py", "derived * 2 >= len(pairs)", "derived > 0", "tests/test_answers.py"),
    Mutant("data.py", "if marks not in (0, len(images)):", "if False:", "tests/test_answers.py"),
    Mutant("data.py", 'f"</think> {answer}" if is_open else answer', "answer", "tests/test_answers.py"),
    Mutant("data.py", 'opened[0] if opened else ""', '""', "tests/test_answers.py"),
    Mutant("data.py", "            unplaced = 0\n", "", "tests/test_answers.py"),
    Mutant("data.py", "refuse_unanswerable(row)", "pass", "tests/test_answers.py"),
    Mutant(
        "tasks/metrics.py",
        "TOLERANCE * abs(wanted)",
        "TOLERANCE * abs(given)",
        "tests/test_metrics.py -k relaxed",
    ),
    Mutant(
        "tasks/metrics.py",
        "return number / 100 if percent else number",
        "return number",
        "tests/test_metrics.py -k relaxed",
    ),
    Mutant(
        "tasks/metrics.py",
        "if distance < TAU else",
        "if distance <= TAU else",
        "tests/test_metrics.py -k anls_is",
    ),
    Mutant(
        "tasks/metrics.py",
        "(sum(same) - is_same) / ENOUGH",
        "sum(same) / ENOUGH",
        "tests/test_metrics.py -k vqa_counts",
    ),
    Mutant(
        "tasks/grading/__init__.py",
        "best = max(best, float(is_right(answer, solution, row)))",
        "best = float(is_right(answer, solution, row))",
        "tests/test_metrics.py -k tasks_pay",
    ),
    Mutant(
        "tasks/grading/__init__.py",
        "if is_right in TAKES_ALL:",
        "if False:",
        "tests/test_metrics.py -k tasks_pay",
    ),
    Mutant(
        "rewards.py",
        "value if is_right > 0.5 else min(0.0, value)",
        "value if is_right >= 1 else min(0.0, value)",
        "tests/test_metrics.py -k other_parts",
    ),
    Mutant(
        "results.py",
        'output["accuracy"] > 0.5 for output in entry["outputs"][:samples]',
        'output["accuracy"] == 1 for output in entry["outputs"][:samples]',
        "tests/test_metrics.py -k a_value_over",
    ),
    Mutant(
        "results.py",
        'found["of"] = of',
        'found["of"] = len(entries)',
        "tests/test_metrics.py -k an_incomplete",
    ),
    Mutant(
        "tasks/intervals.py",
        "statistics.stdev(values)",
        "statistics.pstdev(values)",
        "tests/test_metrics.py -k compare_of_values",
    ),
    Mutant(
        "tasks/benchmarks.py",
        "return best if best >= 0.5 else 0.0",
        "return best if best > 0.5 else 0.0",
        "tests/test_metrics.py -k docvqa_rule",
    ),
    Mutant(
        "eval.py", "opened + tokenizer.decode", "tokenizer.decode", "tests/test_metrics.py -k what_the_chat"
    ),
    Mutant(
        "eval.py",
        "start + min(limit, len(source))",
        "start + len(source)",
        "tests/test_metrics.py -k another_set",
    ),
    Mutant(
        "tasks/adapters.py",
        "LETTERS[options.index(answer)]",
        "LETTERS[0]",
        "tests/test_adapters.py -k mathvista",
    ),
    Mutant(
        "tasks/outputs.py",
        'or re.match(rb"\\x80[\\x02-\\x05]", content):',
        ":",
        "tests/test_outputs.py -k pickle",
    ),
    Mutant(
        "tasks/outputs.py", "elif set(numbers) <= {-1, 1}:", "elif False:", "tests/test_outputs.py -k verl"
    ),
    Mutant(
        "tasks/outputs.py",
        "found[name] = (0, 100)",
        "found[name] = (0, 1)",
        "tests/test_outputs.py -k layout",
    ),
    Mutant("tasks/outputs.py", "10 < high <= 100", "1 < high <= 100", "tests/test_outputs.py -k scale"),
    Mutant(
        "tasks/outputs.py",
        "if not outputs or (is_output and",
        "if not outputs and (is_output and",
        "tests/test_outputs.py -k swapped",
    ),
    Mutant(
        "tasks/outputs.py",
        'references.insert(references.index("solution"), "answer")',
        'references.append("answer")',
        "tests/test_outputs.py -k worked",
    ),
    Mutant("tasks/outputs.py", "record = row | own", "record = own | row", "tests/test_outputs.py -k lmms"),
    Mutant(
        "tasks/outputs.py",
        'delimiter = max("\\t,;", key=header.count)',
        'delimiter = ","',
        "tests/test_outputs.py -k vlmevalkit",
    ),
    Mutant("results.py", "of = BENCHMARKS[bench].rows", "of = 0", "tests/test_outputs.py -k incomplete"),
    Mutant("report.py", "PICTURE_SIDE = 1600", "PICTURE_SIDE = 240", "tests/test_report.py -k whole"),
    Mutant("report.py", "room -= sum(map(len, whole))", "room -= 0", "tests/test_report.py -k room"),
    # a user's own rewards, held-out rows, the parts that a row asks for
    Mutant(
        "rewards.py",
        "                self.sends_all = True\n",
        "                pass\n",
        "tests/test_row_rewards.py",
    ),
    Mutant(
        "rewards.py",
        'heavy = ("images", "thinking", "context", "columns")',
        'heavy = ("thinking",)',
        "tests/test_row_rewards.py",
    ),
    Mutant(
        "rewards.py",
        "        if value is not None:\n            parts[name] = value",
        "        parts[name] = value or 0.0",
        "tests/test_row_rewards.py",
    ),
    Mutant("own_rewards.py", "if row.asked:  # even", "if False:  # even", "tests/test_row_rewards.py"),
    Mutant("own_rewards.py", "values = row | columns", "values = columns | row", "tests/test_row_rewards.py"),
    Mutant("own_rewards.py", "if value or name not in columns}", "}", "tests/test_row_rewards.py"),
    Mutant(
        "own_rewards.py",
        'for method in ("__iter__", "__or__",',
        'for method in ("__or__",',
        "tests/test_row_rewards.py",
    ),
    Mutant("own_rewards.py", "if not isinstance(prompt, str):", "if True:", "tests/test_row_rewards.py"),
    Mutant("common.py", "if len(self.seen[kind]) > 1", "if True", "tests/test_row_rewards.py"),
    Mutant("common.py", "self.seen[kind].add(name)", "self.seen[kind] = {name}", "tests/test_row_rewards.py"),
    Mutant("heldout.py", '{"reward_func": None}', "{}", "tests/test_row_rewards.py"),
    Mutant("heldout.py", "[decode(prompt, one)] for", "[one.text] for", "tests/test_row_rewards.py"),
    Mutant(
        "heldout.py",
        "* count / sum(mixture.counts)",
        "/ len(mixture.counts) + 1",
        "tests/test_row_rewards.py",
    ),
    Mutant(
        "train_grpo.py",
        'return prompt["opened"] + tokenizer',
        "return tokenizer",
        "tests/test_row_rewards.py -k mixture_a_picture",
    ),
    Mutant(
        "train_grpo.py",
        "[of_one[name] for of_one in parts if name in of_one]",
        "[of_one.get(name, 0.0) for of_one in parts]",
        "tests/test_row_rewards.py -k mixture_a_picture",
    ),
    # another number of processes
    Mutant(CHECKPOINT, "offset = number * old_size", "offset = 0", "tests/test_world.py -k slices"),
    Mutant(DATA, "p * stream.world + lane", "lane * share + p", "tests/test_world.py -k same_prompts"),
    # the GPU path
    Mutant(
        COMMON, "if zero_stage > 1 else {}", "if False else {}", "tests/test_bfloat16.py -k micro_batches"
    ),
    Mutant(
        "memory.py",
        "return s.layers * layer + D",
        "return s.layers * layer",
        "tests/test_memory.py -k parameters",
    ),
    Mutant("experiments/limit.py", "4 if w.recomputes else 3", "4", "tests/test_limit.py"),
    # the grader
    Mutant(
        "tasks/grading/quantities.py",
        "ROUNDING = Fraction(5, 1000)",
        "ROUNDING = Fraction(5, 100)",
        "tests/test_same_math.py",
    ),
]


def copy_project(folder: Path) -> Path:
    """The files that git knows or would add, in a folder of their own."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: str) -> bool:
    """Whether these tests pass in that copy; the first failure ends them."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *tests.split()]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):  # 1: a test failed; anything else: there was none to run
        raise SystemExit(f"mutants: {' '.join(command)} ended with {run.returncode}:\n{run.stdout[-2000:]}")
    return run.returncode == 0


def judge(mutant: Mutant) -> tuple[Mutant, str, float]:
    """(mutant, "killed", "ALIVE" or what is wrong with it, seconds)."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_project(Path(scratch))
        text = (folder / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            return mutant, f"STALE: {text.count(mutant.old)} such lines", 0.0
        (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        verdict = "ALIVE" if passes(folder, mutant.tests) else "killed"
    return mutant, verdict, time.time() - started


def main(words: list[str]) -> None:
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.file} {m.old} {m.tests}" for word in words)]
    alive = 0
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool, tempfile.TemporaryDirectory() as scratch:
        folder = copy_project(Path(scratch))
        suites = sorted({mutant.tests for mutant in chosen})
        for tests, good in zip(suites, pool.map(lambda tests: passes(folder, tests), suites), strict=True):
            if not good:
                raise SystemExit(f"mutants: {tests} fails on the right code")
        for mutant, verdict, seconds in pool.map(judge, chosen):
            alive += verdict != "killed"
            change = f"{mutant.old!r} -> {mutant.new!r}"
            print(f"{verdict:<8} {seconds:4.0f} s  {mutant.file}: {change}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    sys.exit(alive > 0)


if __name__ == "__main__":
    main(sys.argv[1:])
