"""GRPO (DeepSeekMath, arXiv:2402.03300) on a Qwen-VL policy with rule-based rewards: the whole of R1-V in one loop.

Where this code departs from the paper, and why:
 1. No value model and no reward model: the reward is a rule that reads the answer tag (rewards.py). As in DeepSeek-R1.
 2. One update per rollout by default, so ratio = 1 and the clip never binds: the gradient is REINFORCE with a group baseline.
    Set updates_per_rollout > 1 and the clip (with separate bounds, DAPO) starts to matter.
 3. All G completions of a prompt share one reading of it (qwen.py): the image is encoded once per group, not G times.
 4. Completions come from vLLM, whose log-probs differ a little from the trainer's: a truncated importance weight corrects
    for it, and its size is logged. With identical kernels it is 1.
 5. A group whose rewards are all equal has advantage 0; `drop_flat_groups` leaves it out of the update (and its KL with it).

One step (the numbers stand in the loop below):
 1) prompts      the next P prompts, strided over the processes
 2) rollout      G completions of each, from the current policy
 3) reward       r = sum_k weight_k * part_k(completion)
 4) advantage    A_i = (r_i - mean of group) / (std of group + eps)
 5) log-probs    of the reference policy (if beta > 0) and of the old policy (if it is not the current one)
 6) update       minimise  -min(ratio * A, clip(ratio) * A) + beta * KL,  mean over the response tokens
 7) sync         the new weights into vLLM, its caches emptied
 8) log          one line, metrics.jsonl, rollouts.jsonl       9) evaluate, save

Symbols: P prompts of a process, G completions per prompt, S = P * G sequences (completion s belongs to prompt s // G), L response
tokens of all S sequences laid end to end, N response tokens of one micro-batch. The end token is a response token.

    torchrun --nproc_per_node=2 train_grpo.py configs/tiny.py      # 2 CPU cores, about a minute, after the cold start (README)
    torchrun --nproc_per_node=8 train_grpo.py configs/clevr.py     # R1-V's run: Qwen2-VL-2B counts CLEVR objects, 8 GPUs
    torchrun --nproc_per_node=1 train_grpo.py configs/clevr_1gpu.py configs/ablate_no_kl.py --seed=2

Writes to out_dir: config.json, run.json, metrics.jsonl, rollouts.jsonl, curves.png, rollouts.html, step-000100/ (Hugging Face
checkpoints), resume/ (everything needed to go on: the same command continues a run that was stopped or killed).
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch

import checkpoint
import common
import data
import qwen
import rewards
import sampling
from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config: R1-V's, Qwen2-VL-2B counting CLEVR objects on 8 GPUs; override with  train_grpo.py configs/x.py --key=value
# run
out_dir = "out/grpo"
seed = 0
resume = True             # go on from out_dir/resume if it is there; False starts over
# policy
model = "Qwen/Qwen2-VL-2B-Instruct"  # checkpoint folder or hub id; also the reference policy
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # 'varlen' = FlashAttention, for GPUs and 16 bits; 'sdpa' = any machine; 'auto' = the best
freeze_vision = False     # train the language model only: less memory; costs accuracy where vision is the weak part
lora_rank = 0             # 0 = train all weights; else LoRA of this rank on the language model, the vision tower frozen
lora_alpha = 32.0         # its update is scaled by lora_alpha / lora_rank
grad_checkpointing = True # recompute activations in the backward pass: less memory, about 30 % slower
compile_layers = False    # torch.compile the language model's layers: costs a minute; no gain on CPUs (docs/speed.md); not under ZeRO-3
# data
data_source = "leonardPKU/clevr_cogen_a_train"  # see data.py: scenes:..., file, folder or hub id
data_split = "train"
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows that do not name one: 'count', 'choice', 'math', 'text' or 'auto'
template = "auto"         # prompt: the row's own, else 'think' (R1-V's); or 'direct' (answer only), 'box', 'zero' for all rows
box_frame = "auto"        # coordinates of boxes: the policy's own; or 'resized' pixels, 'thousand'ths, 'original' pixels
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped, never cut
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
eval_source = ""          # held-out rows, same forms as data_source; '' = no evaluation
eval_split = "test"
eval_rows = 200           # the first so many of them
# rollout
rollout = "vllm"          # 'vllm' or 'hf' (the transformers model itself: for small models on CPUs, and without vLLM)
prompts_per_step = 16     # over all processes; each gives one group
group_size = 8            # G, completions per prompt; the advantage is relative within this group
max_completion_length = 256  # tokens; longer completions are cut off
temperature = 0.9         # R1-V's; log-probs are taken at the same temperature (R1-V takes them at 1)
top_p = 1.0               # below 1 the sampler's distribution is no longer the trainer's: the importance weights are then biased
top_k = 0                 # 0 = off; as top_p
vllm_gpu_memory = 0.4     # share of each GPU for vLLM's weights and KV cache
vllm_sleep = True         # on GPUs: vLLM gives its memory back during the update
# reward
reward_weights = {"accuracy": 1.0, "format": 1.0}  # named parts of rewards.py, or your own "module:function", and their weights
reward_workers = 4        # processes for scoring beside each training process; 0 = in the training process, enough for counting
# objective
adv_norm = "group"        # divide by the std of the 'group' | of all rewards of the step, 'batch' | 'none' (Dr. GRPO)
drop_flat_groups = False  # leave groups without spread out of the update
loss_norm = "sequence"    # 'sequence': mean of per-sequence means (GRPO) | 'token': mean over all tokens (DAPO) | 'constant' (Dr. GRPO)
ratio_level = "token"     # 'token' | 'sequence' (GSPO)
clip_low = 0.2            # the ratio is clipped to [1 - clip_low, 1 + clip_high]
clip_high = 0.2           # DAPO: 0.28
beta = 0.04               # weight of KL(policy || reference); 0.0 also skips loading the reference
importance_cap = 2.0      # truncation of the vLLM-trainer importance weight; 0.0 = no correction
mask_truncated = False    # leave completions that were cut off out of the update
updates_per_rollout = 1   # optimizer steps on the same completions (mu in the paper)
# optimization
steps = 1000
learning_rate = 1e-6
lr_schedule = "linear"    # after the warm-up: 'constant', 'linear', 'cosine' (both to 0)
warmup_steps = 0
weight_decay = 0.0
adam_betas = (0.9, 0.999)
grad_clip = 1.0
micro_tokens = 0          # tokens of one forward pass; 0 = as many as the GPU's free memory holds, 8,192 on a CPU
zero_stage = 2            # DeepSpeed ZeRO: 0 = none, 1 = optimizer, 2 = + gradients, 3 = + weights sharded
offload_optimizer = False # optimizer state in CPU memory
# logs and checkpoints
eval_interval = 50        # steps between evaluations; 0 = never
save_interval = 100       # steps between checkpoints; 0 = only at the end
keep = 3                  # newest checkpoints to keep; 0 = all
show_interval = 20        # steps between two full completions on the console; 0 = never
thumbnails = 2            # prompts per step and process whose image goes into rollouts.jsonl and rollouts.html
trackers = ""             # 'tensorboard', 'wandb' or both with a comma; metrics.jsonl is always written
# -----------------------------------------------------------------------------
# fmt: on


# -----------------------------------------------------------------------------
# the math: pure functions, tensors in, tensors out
# -----------------------------------------------------------------------------


def group_advantages(r: torch.Tensor, adv_norm: str = "group", eps: float = 1e-4) -> torch.Tensor:
    """Advantages (P, G) of rewards (P, G), one row per group.

    A_i = (r_i - mean_G(r)) / (std + eps), DeepSeekMath sec. 4.1.2; std with divisor n - 1, as R1-V. It is taken over
    the group ('group'), over all rewards given ('batch'), or the division is left out ('none', Dr. GRPO, arXiv:2503.20783).
    The eps keeps a flat group at exactly 0 instead of 0 / 0.
    """
    centred = r - r.mean(dim=1, keepdim=True)  # (P, G)
    if adv_norm == "group":
        return centred / (r.std(dim=1, keepdim=True) + eps)
    if adv_norm == "batch":
        return centred / (r.std() + eps)
    return centred


def token_weights(
    lengths: torch.Tensor, loss_norm: str, n_sequences: float, n_tokens: float, max_length: int
) -> torch.Tensor:
    """Weight (S,) of every token of each sequence, so that loss = sum over tokens of weight * token loss.

      sequence   1/n_sequences * 1/|o_i|     mean over a sequence, then over sequences: GRPO, eq. 3
      token      1/n_tokens                  every token counts the same: DAPO, arXiv:2503.14476, eq. 8
      constant   1/(n_sequences*max_length)  no length in the divisor, so no bias towards long wrong answers: Dr. GRPO

    n_sequences and n_tokens are those of the whole step, over all micro-batches and processes: then the gradient does not
    depend on how the batch was cut.
    """
    if loss_norm == "sequence":
        return 1 / (n_sequences * lengths)
    return torch.full_like(lengths, 1 / (n_tokens if loss_norm == "token" else n_sequences * max_length))


def clipped_policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantage: torch.Tensor,
    sequence: torch.Tensor,
    clip_low: float,
    clip_high: float,
    ratio_level: str = "token",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (N,) per token and whether the clip was active there (N,) bool; all arguments (N,), `sequence` = which one a token belongs to.

    GRPO eq. 3 / PPO:  loss_t = -min(ratio_t * A, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A),   ratio_t = exp(logp - old_logp)
    ratio_level 'sequence' (GSPO, arXiv:2507.18071, eq. 7):  ratio = exp(mean over the sequence's tokens of logp - old_logp)
    """
    log_ratio = logp - old_logp
    if ratio_level == "sequence":
        count = torch.bincount(sequence).clamp_min(
            1
        )  # tokens of each sequence; a completion is never split over micro-batches
        log_ratio = (log_ratio.new_zeros(len(count)).index_add(0, sequence, log_ratio) / count)[sequence]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantage, clipped * advantage), clipped * advantage < ratio * advantage


def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Estimate (N,) of KL(policy || reference) per token:  exp(d) - d - 1 with d = ref_logp - logp.  Always >= 0, unbiased.

    Estimator k3 of http://joschu.net/blog/kl-approx.html; DeepSeekMath eq. 4.
    """
    d = ref_logp - logp
    return d.exp() - d - 1


def importance_weight(old_logp: torch.Tensor, rollout_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """min(pi_trainer(token) / pi_vllm(token), cap), (N,): corrects for sampling from vLLM's slightly different distribution.

    Truncated importance sampling (https://fengyao.notion.site/off-policy-rl); a constant, no gradient flows through it.
    """
    return (old_logp - rollout_logp).exp().clamp_max(cap).detach()


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)
    part_weights = rewards.check_weights(reward_weights)
    scorer = rewards.Scorer(reward_workers)  # first of all: its processes must not inherit a GPU or an engine

    # -------------------------------------------------------------------------
    # processes, checks, logs
    # -------------------------------------------------------------------------
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    common.check_choices(config)
    if prompts_per_step % world:
        raise SystemExit(
            f"prompts_per_step: {prompts_per_step} prompts do not divide among {world} processes; use a multiple of {world}"
        )
    if group_size < 2:
        raise SystemExit(
            f"group_size: {group_size}; the advantage compares the completions of a group, which takes at least 2"
        )
    if temperature == 0:
        raise SystemExit(
            "temperature: 0 is greedy, all completions of a group would be the same; use a value above 0"
        )
    if compile_layers and zero_stage == 3:
        raise SystemExit(
            "compile_layers: zero_stage=3 gathers the weights layer by layer, which cannot be compiled; leave one of them out"
        )
    if rollout == "hf" and zero_stage == 3:
        raise SystemExit(
            "rollout: 'hf' needs whole weights in every process, zero_stage=3 shards them; use 'vllm' or --zero_stage=2"
        )
    P, G = prompts_per_step // world, group_size
    checkpoint.check_out_dir(out_dir, config, resume, rank)
    log = common.Log(out_dir, rank, config, trackers)
    if rank == 0:
        Path(out_dir, "run.json").write_text(json.dumps(common.run_header(sys.argv), indent=1))

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    processor = qwen.load_processor(model)
    tokenizer, end = processor.tokenizer, qwen.end_ids(processor)

    def encode(row):
        return data.encode_prompt(
            row, processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
        )

    rows = data.load_rows(data_source, data_split, columns, image_root, task)
    stream = data.Stream(rows, encode, seed, rank, world, say=say)
    eval_prompts = []
    if eval_source and eval_interval:
        held_out = data.load_rows(eval_source, eval_split, columns, image_root, task)
        eval_prompts, _ = data.take_all(held_out, encode, rank, world, 0, min(eval_rows, len(held_out)), say)
    say(
        f"data: {len(rows):,} rows | a step: {prompts_per_step} prompts x {G} completions = {prompts_per_step * G} sequences over {world} "
        f"process(es), {updates_per_rollout} update(s) | {steps} steps = {steps * prompts_per_step / len(rows):.2f} epochs"
    )

    # -------------------------------------------------------------------------
    # policy, reference, optimizer
    # -------------------------------------------------------------------------
    net = qwen.load_model(model, dtype, attn, device, say)
    banned = qwen.banned_ids(net.config, processor)
    if freeze_vision:
        net.model.visual.requires_grad_(False)
    if lora_rank:
        qwen.add_lora(net, lora_rank, lora_alpha)
    if compile_layers:
        qwen.compile_layers(net)
    if grad_checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    policy = qwen.Policy(net, banned, temperature).train()
    budget = qwen.TokenBudget(micro_tokens, device)
    ds_config = common.deepspeed_config(zero_stage, dtype, grad_clip, offload_optimizer)
    engine = common.start_deepspeed(policy, ds_config, learning_rate, weight_decay, adam_betas)
    reference = None
    if beta > 0 and lora_rank:
        reference = qwen.without_lora(engine)
    elif (
        beta > 0
    ):  # a frozen copy of the start; sharded like the policy under ZeRO-3, a copy per process otherwise
        reference = qwen.Policy(
            qwen.load_model(model, dtype, attn, device, say=lambda line: None), banned, temperature
        )
        reference = common.freeze(reference, ds_config)

    # -------------------------------------------------------------------------
    # rollout engine, resume
    # -------------------------------------------------------------------------
    llm = None
    if rollout == "vllm":
        limits = data.processor_limits(processor, max_pixels)
        llm = sampling.start_vllm(
            model,
            dtype,
            max_prompt_length + max_completion_length,
            data.MAX_IMAGES,
            limits,
            gpu_memory=vllm_gpu_memory,
            seed=seed,
            cuda=device.type == "cuda",
            sleep=vllm_sleep,
        )
    sleeps = llm is not None and vllm_sleep and device.type == "cuda"

    def sample(prompts, n, seeds, temperature):
        """n completions of each prompt from the current policy: per prompt a list of (token ids, their log-probs, finished)."""
        settings = {
            "top_p": top_p,
            "top_k": top_k,
            "max_tokens": max_completion_length,
            "banned": banned,
            "end": end,
        }
        if llm:
            return sampling.rollout_vllm(llm, prompts, n, seeds, temperature, **settings)
        return sampling.rollout_hf(net, prompts, n, seeds, temperature, **settings)

    def evaluate():
        """Greedy accuracy, format rate and length on the held-out rows. ALL RANKS."""
        sums = [0.0, 0.0, 0.0, 0.0]
        done = sample([p for _, p in eval_prompts], 1, [0] * len(eval_prompts), 0.0) if eval_prompts else []
        texts = [[tokenizer.decode(completion.ids, skip_special_tokens=True)] for (completion,) in done]
        for (completion,), (parts,) in zip(
            done, scorer.score(texts, [p["row"] for _, p in eval_prompts]), strict=True
        ):
            sums = [
                a + b
                for a, b in zip(
                    sums, (parts["accuracy"], parts["format"], len(completion.ids), 1), strict=True
                )
            ]
        accuracy, formatted, length, n = common.all_sum(sums, device)
        if n == 0:
            raise SystemExit(
                f"eval_source: none of the first {eval_rows} rows of '{eval_source}' can be used; the lines above say why"
            )
        say(
            f"step {step}/{steps} | held-out accuracy {accuracy / n:.1%} format {formatted / n:.1%} length {length / n:.0f} ({n:.0f} rows)"
        )
        return {
            "eval_accuracy": accuracy / n,
            "eval_format": formatted / n,
            "eval_length": length / n,
            "eval_n": int(n),
        }

    step, loop = 0, checkpoint.load_resume(engine, out_dir, rank, world) if resume else None
    if loop:
        step, stream.cursor, stream.skipped = loop["step"], loop["cursors"][rank], loop["skipped"][rank]
        if llm:
            sampling.sync_weights(llm, checkpoint.full_state(net, zero_stage))
        say(f"resume: step {step} of {out_dir}")
    if rank == 0:
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            checkpoint.truncate_log(f"{out_dir}/{name}", step)
    if eval_source and eval_interval and step == 0:
        log.write({"step": 0} | evaluate())

    # -------------------------------------------------------------------------
    # the loop
    # -------------------------------------------------------------------------
    stop = (
        common.StopSignal()
    )  # not before: until here a signal ends the run at once, as there is nothing to save
    started, first_step = time.time(), step
    while step < steps:
        t, seconds, memory = time.time(), {}, {}

        def lap(name):
            """Seconds since the last lap, and the peak of memory in it, under `name`."""
            global t
            seconds[name], t = time.time() - t, time.time()
            memory[name] = common.peak_memory(device)

        # 1) prompts
        prompts = stream.take(P)  # P encoded prompts
        lap("data")

        # 2) rollout: P groups of G completions; seeds from (step, prompt, sample): the same after a resume and on any number of processes
        seeds = [sampling.sample_seed(seed, step, i * world + rank) for i in range(P)]
        groups = sample(prompts, G, seeds, temperature)
        completions = [c for group in groups for c in group]  # S
        if sleeps:
            llm.sleep(level=1)  # weights to CPU memory, KV cache dropped
        lap("rollout")

        # 3) reward
        texts = [tokenizer.decode(c.ids, skip_special_tokens=True) for c in completions]
        scored = scorer.score(
            [texts[p * G : p * G + G] for p in range(P)],
            [p["row"] for p in prompts],
            tuple(part_weights),
            [[len(c.ids) for c in group] for group in groups],
            max_completion_length,
        )
        parts = [p for group in scored for p in group]  # S
        reward = torch.tensor([rewards.total(p, part_weights) for p in parts])  # (S,)
        rewards.debug_log(texts, [prompts[s // G]["row"] for s in range(P * G)], reward.tolist(), rank)
        if not reward.isfinite().all():
            s = int((~reward.isfinite()).nonzero()[0])
            row = prompts[s // G]["row"]
            raise SystemExit(
                f"reward: {parts[s]} at step {step}, the step was not applied; look at the reward of row {row['id']}, "
                f"problem {row['problem']!r}, completion {texts[s]!r}"
            )
        lap("reward")

        # 4) advantage; 'batch' needs the rewards of all processes
        everyone = torch.tensor(common.all_gather(reward.tolist())).view(world, P, G)
        advantage = (
            group_advantages(everyone.flatten(0, 1), adv_norm).view(world, P, G)[rank].flatten()
        )  # (S,)
        flat = (reward.view(P, G).max(1).values == reward.view(P, G).min(1).values).repeat_interleave(
            G
        )  # (S,) True: nothing to learn from
        lengths = torch.tensor([float(len(c.ids)) for c in completions])  # (S,)
        finished = torch.tensor([c.finished for c in completions])  # (S,)
        used = ~(flat if drop_flat_groups else torch.zeros_like(flat)) & (
            finished if mask_truncated else torch.ones_like(finished)
        )
        n_sequences, n_tokens = common.all_sum([used.sum().item(), lengths[used].sum().item()], device)

        # Response tokens are laid end to end: sequence s owns tokens starts[s] : starts[s] + lengths[s] of every (L,) tensor below.
        starts = (lengths.cumsum(0) - lengths).long().tolist()
        sequence = torch.repeat_interleave(torch.arange(P * G), lengths.long()).to(
            device
        )  # (L,) which sequence a token belongs to
        rollout_logp = torch.tensor([x for c in completions for x in c.logps], device=device)  # (L,)
        token_advantage = advantage.to(device)[sequence]  # (L,)
        used_any = n_sequences > 0
        if used_any:
            # a process with nothing to learn from still takes part in the collectives, with weight 0
            packed = used if used.any() else torch.arange(P * G) == 0
            weights = (
                token_weights(lengths, loss_norm, n_sequences, n_tokens, max_completion_length) * used
            )  # (S,)
            token_weight = weights.to(device)[sequence]  # (L,)
            members = [
                [(starts[s], completions[s].ids) for s in range(p * G, p * G + G) if packed[s]]
                for p in range(P)
            ]
            batches = qwen.pack(prompts, members, net, budget.tokens())
            batches, real = qwen.same_count(batches)
            batches = [qwen.to_device(b, device) for b in batches]

            # 5) log-probs that stay fixed during the updates, (L,) each
            def fixed_logps(model):
                logps = torch.zeros_like(rollout_logp)
                with torch.no_grad():
                    for batch in batches:
                        logps[batch["token"]] = model(batch)[0]
                return logps

            ref_logp = fixed_logps(reference) if beta > 0 else None
            lap("reference")
            # With one update the old policy IS the current one: old_logp = logp.detach() below, and this pass is not needed.
            old_logp = fixed_logps(engine) if updates_per_rollout > 1 else None
            lap("old")

            # 6) policy update
            sums = torch.zeros(7, device=device, dtype=torch.float64)
            for _ in range(updates_per_rollout):
                for m, batch in enumerate(batches):
                    i = batch["token"]  # (N,) places in the (L,) tensors
                    logp, entropy = engine(batch)  # (N,) each
                    old = logp.detach() if old_logp is None else old_logp[i]
                    # loss = sum_t weight_t * ( importance_t * -min(ratio_t A_t, clip(ratio_t) A_t) + beta * kl_t )
                    token_loss, clipped = clipped_policy_loss(
                        logp, old, token_advantage[i], sequence[i], clip_low, clip_high, ratio_level
                    )
                    mismatch = importance_weight(old, rollout_logp[i], importance_cap or math.inf)
                    if importance_cap:
                        token_loss = token_loss * mismatch
                    kl = k3(logp, ref_logp[i]) if beta > 0 else torch.zeros_like(logp)
                    loss = (token_weight[i] * (token_loss + beta * kl)).sum()
                    if not loss.isfinite():
                        s = int(sequence[i][~(token_loss + kl).isfinite()][:1].sum())
                        row = prompts[s // G]["row"]
                        raise SystemExit(
                            f"loss: {loss.item()} at step {step}, the step was not applied; lower learning_rate, or look at "
                            f"row {row['id']}, problem {row['problem']!r}, completion {texts[s]!r}"
                        )
                    # DeepSpeed averages gradients over the processes and the weights are those of the whole step: hence * world
                    engine.set_gradient_accumulation_boundary(m == len(batches) - 1)
                    engine.backward(loss * world * real[m])
                    with torch.no_grad():
                        off = (old - rollout_logp[i]).abs()
                        values = (
                            loss,
                            clipped.sum(),
                            entropy.sum(),
                            kl.sum(),
                            off.sum(),
                            mismatch.sum(),
                            torch.tensor(len(i)),
                        )
                        sums += real[m] * torch.stack([v.double().to(device) for v in values])
                budget.learn(batches)
                update_lr = common.learning_rate(step, steps, learning_rate, warmup_steps, lr_schedule)
                norm = common.optimizer_step(engine, update_lr, dtype)  # clip, AdamW, zero the gradients
            lap("update")

        # 7) sync the new weights into vLLM
        if llm and (used_any or sleeps):
            sampling.sync_weights(llm, checkpoint.full_state(net, zero_stage), sleeps)
        step += 1
        lap("sync")

        # 8) log: all numbers are over all processes
        S_all, L_all = prompts_per_step * G, common.all_sum([lengths.sum().item()], device)[0]
        total_seconds = sum(seconds.values())
        record = {"step": step, "seconds": total_seconds, **{f"seconds_{k}": v for k, v in seconds.items()}}
        keys = [
            "reward",
            "length",
            "finished",
            "flat_groups",
            "skipped_rows",
            *(f"reward_{k}" for k in reward_weights),
        ]
        values = [
            reward.sum().item(),
            lengths.sum().item(),
            finished.sum().item(),
            flat.sum().item(),
            stream.skipped * S_all,
            *(sum(p.get(k, 0.0) for p in parts) for k in reward_weights),
        ]
        record |= dict(zip(keys, [v / S_all for v in common.all_sum(values, device)], strict=True))
        record["reward_std"] = everyone.std(-1).mean().item()  # mean over groups of the std within
        if used_any:
            loss, *means, n = common.all_sum(sums.tolist(), device)
            record |= {"loss": loss / updates_per_rollout, "lr": update_lr, "grad_norm": norm}
            record |= dict(
                zip(
                    ("clip_fraction", "entropy", "kl", "mismatch", "importance"),
                    [v / n for v in means],
                    strict=True,
                )
            )
        record |= {
            f"memory_{k}": v for k, v in memory.items()
        }  # GiB; on a CPU the peak of the process so far
        record |= {
            "completions_per_s": S_all / total_seconds,
            "tokens_per_s": L_all / total_seconds,
            "memory_gib": max(memory.values()),
        }
        record["epoch"] = stream.epoch
        eta = (time.time() - started) / (step - first_step) * (steps - step)
        show = {k: record.get(k, 0.0) for k in ("kl", "clip_fraction", "entropy", "mismatch", "grad_norm")}
        say(
            f"step {step}/{steps} | reward {record['reward']:.3f} ("
            + ", ".join(f"{k} {record[f'reward_{k}']:.3f}" for k in reward_weights)
            + f") | length {record['length']:.0f} | kl {show['kl']:.4f} clip {show['clip_fraction']:.3f} entropy {show['entropy']:.3f} "
            f"mismatch {show['mismatch']:.1e} grad {show['grad_norm']:.2f} | flat {record['flat_groups']:.0%} | "
            + " ".join(f"{k} {v:.2f}" for k, v in seconds.items() if v >= 0.005)
            + f" s | {record['completions_per_s']:.0f} compl/s {record['tokens_per_s']:.0f} tok/s | {record['memory_gib']:.1f} GiB | "
            f"epoch {stream.epoch:.2f} skipped {record['skipped_rows']:.0f} | ETA {common.clock(eta)}",
            flush=True,
        )
        shown = []
        for p, prompt in enumerate(prompts):
            entry = {"step": step, **{k: prompt["row"][k] for k in ("id", "problem", "solution")}}
            entry["images"] = (
                [data.thumbnail(image) for image in prompt["row"]["images"]] if p < thumbnails else []
            )
            entry["completions"] = [
                {
                    "text": texts[s],
                    "reward": reward[s].item(),
                    "parts": parts[s],
                    "advantage": round(advantage[s].item(), 4),
                    "tokens": len(completions[s].ids),
                    "finished": completions[s].finished,
                }
                for s in range(p * G, p * G + G)
            ]
            shown.append(entry)
        shown = [entry for part in common.all_gather(shown) for entry in part]
        if rank == 0:
            with open(f"{out_dir}/rollouts.jsonl", "a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in shown)
        if show_interval and step % show_interval == 1:
            for pick in (max, min):
                c = pick(shown[0]["completions"], key=lambda c: c["reward"])
                say(
                    f"    {shown[0]['id']} {shown[0]['problem']!r} (answer {shown[0]['solution']}) reward {c['reward']:.1f}: {c['text']!r}"
                )

        # 9) evaluate, save
        if eval_source and eval_interval and (step % eval_interval == 0 or step == steps):
            record |= evaluate()
        log.write(record)
        stopping = stop.anywhere(device)
        if stopping or step == steps or (save_interval and step % save_interval == 0):
            loop = {
                "step": step,
                "cursors": common.all_gather(stream.cursor),
                "skipped": common.all_gather(stream.skipped),
            }
            checkpoint.save_all(engine, net, processor, out_dir, loop, zero_stage, rank, keep)
            if rank == 0:  # in the background: the curves should not cost training time
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("report.py")), out_dir],
                    stdout=subprocess.DEVNULL,
                )
        if stopping:
            say(f"stopped by a signal at step {step}; the same command goes on from here")
            break

    say(f"done: {step} steps, {common.clock(time.time() - started)}, checkpoint {out_dir}/step-{step:06d}")
    scorer.close()
    common.finish(llm)
