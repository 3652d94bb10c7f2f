"""GRPO (DeepSeekMath, arXiv:2402.03300) on a Qwen-VL policy with rule-based rewards: R1-V in one loop.

For a reader of the paper, what is particular here:
 1. No reward model: the reward is a rule that reads the answer tag (rewards.py), as in R1. The reference is
    the model before training, and stays it.
 2. One update per rollout, as in the paper's experiments, so ratio = 1 and the clip never binds: the gradient
    is REINFORCE with a group baseline. With updates_per_rollout > 1 the clip starts to matter.
 3. All G completions of a prompt share one reading of it (qwen.py): the image is encoded once per group.
 4. Completions come from vLLM, whose log-probs differ a little from the trainer's: a truncated importance
    weight corrects for it, and its size is logged. With identical kernels it is 1.
 5. A group whose rewards are all equal has advantage 0; `drop_flat_groups` leaves it out of the update, and
    its KL with it.

One step (the numbers stand in the loop below):
 1) prompts      the next P prompts of each process
 2) rollout      G completions of each, from the current policy
 3) reward       r = sum_k weight_k * part_k(completion)
 4) advantage    A_i = (r_i - mean of group) / (std of group + eps)
 5) log-probs    of the reference policy (if beta > 0), of the old policy (if it is not the current one)
 6) update       minimise  -w min(ratio A, clip(ratio) A) + beta KL,  mean per completion, then over all;
                 w is the importance weight of note 4
 7) sync         the new weights into vLLM, its caches emptied
 8) log          one line, metrics.jsonl, rollouts.jsonl       9) evaluate, save

Symbols: P prompts of a process, G completions per prompt, S = P * G sequences (completion s belongs to prompt
s // G), L response tokens of all S sequences laid end to end, N response tokens of one micro-batch. The end
token is a response token.

    torchrun --nproc_per_node=2 train_grpo.py configs/tiny.py     # 2 cores, a minute, after the cold start
    torchrun --nproc_per_node=8 train_grpo.py configs/clevr.py    # R1-V's run: Qwen2-VL-2B counts, 8 GPUs
    torchrun --nproc_per_node=8 train_grpo.py configs/openv_visual.py  # 7 GPUs train, 1 samples
    torchrun --nproc_per_node=1 train_grpo.py configs/clevr_1gpu.py configs/ablate_no_kl.py --seed=2

Writes to out_dir: config.json, run.json, metrics.jsonl, rollouts.jsonl, curves.png, rollouts.html;
step-000100/ (Hugging Face checkpoints), resume/ (the same command continues a run that was killed).
"""

import math
import subprocess
import sys
import time
from pathlib import Path

import torch

import checkpoint
import common
import data
import heldout
import memory
import qwen
import rewards
import samplers
import sampling
from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config: R1-V's, Qwen2-VL-2B counting CLEVR objects on 8 GPUs
# override with  train_grpo.py configs/x.py --key=value
# run
out_dir = "out/grpo"
seed = 0
resume = True             # go on from out_dir/resume if it is there; False starts over
# policy
model = "Qwen/Qwen2-VL-2B-Instruct"  # checkpoint folder or hub id; also the reference policy
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # 'varlen' = FlashAttention, for GPUs in 16 bits; 'sdpa' = any machine; 'auto'
freeze_vision = False     # train the language model only: less memory; costs accuracy where vision is weak
lora_rank = 0             # 0 = train all weights; else LoRA of this rank, the vision tower frozen
lora_alpha = 32.0         # its update is scaled by lora_alpha / lora_rank
grad_checkpointing = True # recompute activations in the backward pass: less memory, about 30 % slower
compile_layers = False    # torch.compile the language model's layers: costs a minute; no gain on CPUs
# data
data_source = "leonardPKU/clevr_cogen_a_train"  # see data.py: scenes:..., file, folder or hub id
data_split = "train"
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows without one: 'count', 'choice', 'math', 'grounding', 'text', 'relaxed' ...
template = "auto"         # 'auto': the row's own, else 'think' (R1-V's); or 'direct' (answer only), 'box' ...
box_frame = "auto"        # of coordinates: 'auto' (the policy's own), 'resized', 'thousand', 'original'
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped, never cut
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
eval_source = ""          # held-out rows, same forms as data_source; '' = no evaluation
eval_split = "test"
eval_rows = 200           # the first so many of them
eval_metric = ""          # beside accuracy: a task such as 'anls', or your own 'module:function'
# rollout
rollout = "vllm"          # 'vllm'; or 'hf', the transformers model itself: for small models on CPUs
prompts_per_step = 16     # over all processes; each gives one group
group_size = 8            # G, completions per prompt; the advantage is relative within this group
max_completion_length = 256  # tokens; longer completions are cut off
temperature = 0.9         # R1-V's; log-probs are taken at the same temperature (R1-V takes them at 1)
top_p = 1.0               # below 1 the sampler is not the trainer's policy: importance weights are biased
top_k = 0                 # 0 = off; as top_p
vllm_gpu_memory = 0.4     # share of each GPU that samples for vLLM's weights and KV cache
vllm_sleep = True         # on GPUs that also train: vLLM gives its memory back during the update
vllm_gpus = 0             # the last so many processes sample and never train; 0 = every trainer samples
vllm_tensor_parallel = 1  # processes over which an engine is spread: for models that fit no single GPU
# reward
reward_weights = {"accuracy": 1.0, "format": 1.0}  # parts of rewards.py, or your own "module:function"
reward_workers = 4        # scoring processes beside each training process; 0 = none (1 for your own parts)
# objective
adv_norm = "group"        # divide by the std of the 'group' | of all of the step, 'batch' | 'none' (Dr. GRPO)
drop_flat_groups = False  # leave groups without spread out of the update
loss_norm = "sequence"    # 'sequence' (GRPO) | 'token' (DAPO) | 'constant' (Dr. GRPO): see token_weights
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
micro_tokens = 0          # tokens of one forward pass; 0 = what the GPU's free memory holds, 8,192 on a CPU
zero_stage = 2            # DeepSpeed ZeRO: 0 = none, 1 = optimizer, 2 = + gradients, 3 = + weights sharded
offload_optimizer = False # optimizer state in CPU memory
# logs and checkpoints
eval_interval = 50        # steps between evaluations; 0 = never
save_interval = 100       # steps between checkpoints; 0 = only at the end
keep = 3                  # newest checkpoints to keep; 0 = all
show_interval = 20        # steps between two full completions on the console; 0 = never
thumbnails = 2            # prompts per step and process whose image goes into rollouts.jsonl and .html
trackers = ""             # 'tensorboard', 'wandb' or both with a comma; metrics.jsonl is always written
plan = ""                 # '8x80' (GPUs x GB) or True: print what the run takes of memory, and stop; 'off': a
                          # run that will not fit the GPU by these sums is started all the same
# -----------------------------------------------------------------------------
# fmt: on


# -----------------------------------------------------------------------------
# the math: pure functions, tensors in, tensors out
# -----------------------------------------------------------------------------


def group_advantages(r: torch.Tensor, adv_norm: str = "group", eps: float = 1e-4) -> torch.Tensor:
    """Advantages (P, G) of rewards (P, G), one row per group.

    A_i = (r_i - mean_G(r)) / (std + eps), DeepSeekMath sec. 4.1.2; std with divisor n - 1, as R1-V. It is
    taken over the group ('group'), over all rewards given ('batch'), or the division is left out ('none',
    Dr. GRPO, arXiv:2503.20783). The eps keeps a flat group at 0 instead of 0 / 0.
    """
    r = r.double()  # in float32 the mean of equal rewards is not always equal to them
    centred = r - r.mean(dim=1, keepdim=True)  # (P, G)
    if adv_norm == "group":
        centred = centred / (r.std(dim=1, keepdim=True) + eps)
    if adv_norm == "batch":
        centred = centred / (r.std() + eps)
    return centred.float()


def token_weights(
    lengths: torch.Tensor, loss_norm: str, n_sequences: float, n_tokens: float, max_length: int
) -> torch.Tensor:
    """Weight (S,) of the tokens of sequences of lengths (S,): loss = sum over tokens of weight * token loss.

      sequence   1/n_sequences * 1/lengths   mean over a sequence, then over sequences: GRPO, eq. 3
      token      1/n_tokens                  every token counts the same: DAPO, arXiv:2503.14476, eq. 8
      constant   1/(n_sequences*max_length)  no length in the divisor, no bias to long wrong answers: Dr. GRPO

    n_sequences and n_tokens are those of the whole step, over all micro-batches and processes: then the
    gradient does not depend on how the batch was cut. Only completions that are in the update count.
    """
    if loss_norm == "sequence":
        return 1 / (n_sequences * lengths)
    if loss_norm == "token":
        return torch.full_like(lengths, 1 / n_tokens)
    return torch.full_like(lengths, 1 / (n_sequences * max_length))


def clipped_policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantage: torch.Tensor,
    sequence: torch.Tensor,
    clip_low: float,
    clip_high: float,
    ratio_level: str = "token",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (N,) per token, and (N,) bool whether the clip was active there.

    All arguments (N,); `sequence` says which one a token belongs to. GRPO eq. 3 / PPO:
      ratio_t = exp(logp - old_logp)
      loss_t = -min(ratio_t * A, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A)
    ratio_level 'sequence' (GSPO, arXiv:2507.18071, eq. 7):
      ratio = exp(mean over the sequence's tokens of logp - old_logp)
    """
    log_ratio = logp - old_logp
    if ratio_level == "sequence":
        # a completion is never split over micro-batches, so all of its tokens are here
        tokens = torch.bincount(sequence).clamp_min(1)
        total = log_ratio.new_zeros(len(tokens)).index_add(0, sequence, log_ratio)
        mean = total / tokens
        log_ratio = mean[sequence]
    ratio = log_ratio.exp()
    gain = ratio * advantage
    clipped_gain = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return -torch.minimum(gain, clipped_gain), clipped_gain < gain


def k3(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Estimate (N,) of KL(policy || reference) per token:  exp(d) - d - 1 with d = ref_logp - logp.

    Always >= 0, unbiased. Estimator k3 of http://joschu.net/blog/kl-approx.html; DeepSeekMath eq. 4.
    """
    d = ref_logp - logp
    return d.exp() - d - 1


def importance_weight(old_logp: torch.Tensor, rollout_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """min(pi_trainer(token) / pi_vllm(token), cap), (N,): vLLM's distribution differs slightly from ours.

    Truncated importance sampling (https://fengyao.notion.site/off-policy-rl). A constant: no gradient flows
    through it.
    """
    return (old_logp - rollout_logp).exp().clamp_max(cap).detach()


def main():
    config = configure(globals(), sys.argv[1:], __file__)
    if memory.show(config):
        return
    samplers.check(config)
    if samplers.samples_here(vllm_gpus):  # this process never trains
        return samplers.serve(config)
    part_weights = rewards.check_weights(reward_weights)
    rewards.check_metric("eval_metric", eval_metric)
    # first of all: its processes must not inherit a GPU or an engine
    scorer = rewards.Scorer(reward_workers, [*part_weights, eval_metric])

    # -------------------------------------------------------------------------
    # processes, checks, logs
    # -------------------------------------------------------------------------
    parts = samplers.split(vllm_gpus)  # from here on the world is the trainers'
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None  # one process talks for all
    common.check_knobs(config, world)
    memory.check(config, world + vllm_gpus, memory.device_bytes())
    P = prompts_per_step // world
    G = group_size
    S = P * G
    checkpoint.open_folder(config, rank, say)

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    processor = qwen.load_processor(model)
    tokenizer = processor.tokenizer
    base = checkpoint.base_files(model)  # tokenizer, chat template ...: the exports carry them as they are

    def encode(row):
        """The prompt of a row as model inputs. BadRow if it cannot be used: the stream takes the next."""
        return data.encode_prompt(
            row, processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
        )

    rows = data.load_rows(data_source, data_split, columns, image_root, task, say)
    stream = data.Stream(rows, encode, seed, rank, world, say=say)
    eval_prompts = heldout.load(config, encode, rank, world, say)  # of this process
    say(
        f"data: {len(rows):,} rows | a step: {prompts_per_step} prompts x {G} completions "
        f"= {world * S} sequences over {world} process(es), {updates_per_rollout} update(s) | "
        f"{steps} steps = {steps * prompts_per_step / len(rows):.2f} epochs"
    )

    # -------------------------------------------------------------------------
    # policy, reference, optimizer
    # -------------------------------------------------------------------------
    net = qwen.load_model(model, dtype, attn, device, say)
    # never sampled, and masked in the trainer's logits: or sampler and trainer were two different policies
    banned = qwen.banned_ids(net.config, processor)
    if freeze_vision:
        net.model.visual.requires_grad_(False)
    if lora_rank:
        qwen.add_lora(net, lora_rank, lora_alpha)
    checkpoint.check_room(net, config, rank)
    if compile_layers:
        qwen.compile_layers(net)
    if grad_checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    # the net as a function of a packed micro-batch: log-probs at the temperature at which vLLM samples
    policy = qwen.Policy(net, banned, temperature).train()
    budget = qwen.TokenBudget(micro_tokens, device)  # tokens of a micro-batch
    ds_config = common.deepspeed_config(zero_stage, dtype, grad_clip, offload_optimizer)
    engine = common.start_deepspeed(policy, ds_config, learning_rate, weight_decay, adam_betas)
    reference = None
    if beta > 0 and lora_rank:
        reference = qwen.without_lora(engine)  # the policy with its adapters off: takes no memory
    elif beta > 0:
        # a frozen copy of the start: the KL term ties the policy to what it was before this run
        say("reference: loading the same model once more", flush=True)
        start = qwen.load_model(model, dtype, attn, device, say=lambda line: None)
        reference = common.freeze(qwen.Policy(start, banned, temperature), ds_config)

    # -------------------------------------------------------------------------
    # rollout engine, evaluation, resume
    # -------------------------------------------------------------------------
    sampler = samplers.start(config, net, processor, banned, device, parts, say)

    def decode(prompt, completion):
        """The text of a completion, with what the chat template has opened for it."""
        return prompt["opened"] + tokenizer.decode(completion.ids, skip_special_tokens=True)

    def blame(what, remedy, row, text):
        """End the run before a number that is not finite reaches the weights; names the completion."""
        raise SystemExit(
            f"{what} at step {step + 1}, this update was not applied; {remedy} row {row['id']}, "
            f"problem {row['problem']!r}, completion {text!r}"
        )

    def evaluate():
        """Greedy accuracy and more on the held-out rows. ALL RANKS."""
        when = f"step {step}/{steps}"
        return heldout.evaluate(eval_prompts, sampler.sample, decode, scorer, eval_metric, when, say)

    step = checkpoint.resume(engine, net, base, stream, config, rank, say)  # 0: from the start
    if step > 0:  # an engine has started with the weights of `model`
        sampler.sync(checkpoint.full_state(net, zero_stage))
    log = common.Log(out_dir, rank, config, trackers, step)
    flat_steps = common.FlatSteps()
    kinds = common.Kinds()  # sources and tasks of the rows
    if eval_source and eval_interval and step == 0:
        say("evaluation: the held-out rows, before the first step", flush=True)
        log.write({"step": 0} | evaluate())

    # -------------------------------------------------------------------------
    # the loop
    # -------------------------------------------------------------------------
    stop = common.StopSignal()  # not before: until here a signal ends the run at once
    started = time.time()
    first_step = step
    while step < steps:
        watch = common.Stopwatch(device)
        tally = common.Tally()

        # 1) prompts
        prompts = stream.take(P)
        watch.lap("data")

        # 2) rollout: seeds from (step, prompt), the same after a resume; as long as no row is skipped also on
        # any number of processes
        seeds = [sampling.sample_seed(seed, step, p * world + rank) for p in range(P)]
        sampler.start(prompts, G, seeds, temperature)
        groups = sampler.result()  # P groups of G completions
        completions = [completion for group in groups for completion in group]  # S
        watch.lap("rollout")

        # 3) reward
        texts = [decode(prompts[s // G], completions[s]) for s in range(S)]
        text_groups = [texts[p * G : p * G + G] for p in range(P)]
        token_counts = [[len(completion.ids) for completion in group] for group in groups]
        questions = [prompt["row"] for prompt in prompts]  # P rows, with the reference answers
        names = tuple(part_weights)
        scored = scorer.score(text_groups, questions, names, token_counts, max_completion_length)
        parts = [of_one for group in scored for of_one in group]  # S dicts {name of a part: value}
        reward = torch.tensor([rewards.total(of_one, part_weights) for of_one in parts])  # (S,)
        question_of = [questions[s // G] for s in range(S)]
        rewards.debug_log(texts, question_of, reward.tolist(), rank)
        watch.lap("reward")

        # 4) advantage, within each group; adv_norm 'batch' needs the rewards of all processes
        all_rewards = torch.tensor(common.all_gather(reward.tolist())).view(world * P, G)
        all_advantages = group_advantages(all_rewards, adv_norm)  # (world * P, G)
        advantage = all_advantages[rank * P : rank * P + P].flatten()  # (S,) of this process
        # which completions take part in the update; flat (S,): all rewards of its group are equal
        flat = (reward.view(P, G) == reward.view(P, G)[:, :1]).all(1).repeat_interleave(G)
        lengths = torch.tensor([float(len(completion.ids)) for completion in completions])  # (S,)
        finished = torch.tensor([completion.finished for completion in completions])  # (S,)
        used = torch.ones(S, dtype=torch.bool)
        if drop_flat_groups:
            used &= ~flat
        if mask_truncated:
            used &= finished
        # over all processes: the weights of the loss are those of the whole step
        n_sequences, n_tokens = common.all_sum([used.sum().item(), lengths[used].sum().item()], device)
        any_used = n_sequences > 0  # the same on every process, so that none waits for the others' update

        # From here on everything is per response token. With 2 prompts A, B and 2 completions of each:
        #
        #   S sequences                 a0       a1    b0    b1
        #   L tokens, end to end        a0 a0 a0 a1 a1 b0 b0 b1       sequence = 0 0 0 1 1 2 2 3
        #   N of a micro-batch with B                  b0 b0 b1       token    = 5 6 7, places among the L
        sequence = torch.repeat_interleave(torch.arange(S), lengths.long()).to(device)  # (L,)
        logps = [logp for completion in completions for logp in completion.logps]
        rollout_logp = torch.tensor(logps, device=device)  # (L,)
        token_advantage = advantage.to(device)[sequence]  # (L,)

        if any_used:
            weight = token_weights(lengths, loss_norm, n_sequences, n_tokens, max_completion_length)  # (S,)
            token_weight = (weight * used).to(device)[sequence]  # (L,)
            ids = [completion.ids for completion in completions]
            # groups packed behind their prompts, as many micro-batches on every process
            batches = qwen.micro_batches(prompts, ids, used, net, budget)

            # 5) log-probs that stay fixed during the updates, (L,) each
            def fixed_logps(forward):
                logps = torch.zeros_like(rollout_logp)  # stays 0 where a completion is not used
                with torch.no_grad():
                    for batch in batches:
                        logp, _ = forward(batch, entropy="none")
                        logps[batch["token"]] = logp
                return logps

            if beta > 0:
                ref_logp = fixed_logps(reference)
            watch.lap("reference")
            if updates_per_rollout > 1:
                old_logp = fixed_logps(engine)
            watch.lap("old")

            # 6) policy update
            loss_sum = 0.0
            for update in range(updates_per_rollout):
                for batch in batches:
                    token = batch["token"]  # (N,) places among the L response tokens, not ids
                    # (N,) each; for an entropy bonus: engine(batch, entropy="gradient")
                    logp, entropy = engine(batch)
                    # with one update per rollout the old policy IS the current one
                    old = old_logp[token] if updates_per_rollout > 1 else logp.detach()

                    # loss = sum_t weight_t (importance_t * -min(ratio_t A_t, clip(ratio_t) A_t) + beta kl_t)
                    policy_loss, clipped = clipped_policy_loss(
                        logp, old, token_advantage[token], sequence[token], clip_low, clip_high, ratio_level
                    )
                    importance = importance_weight(old, rollout_logp[token], importance_cap or math.inf)
                    if importance_cap:
                        policy_loss = importance * policy_loss
                    kl = k3(logp, ref_logp[token]) if beta > 0 else torch.zeros_like(logp)
                    token_loss = policy_loss + beta * kl
                    loss = (token_weight[token] * token_loss).sum()

                    if not loss.isfinite():  # caught before it reaches the model
                        worst = token_loss.detach().abs().nan_to_num(nan=math.inf).argmax()
                        s = sequence[token][worst].item()
                        remedy = "lower learning_rate, or look at"
                        blame(f"loss: {loss.item()}", remedy, questions[s // G], texts[s])
                    # DeepSpeed averages gradients over the processes, but token_weight divides by the whole
                    # step: hence * world. A filler repeats a micro-batch, so that all processes have equally
                    # many; its `real` is 0.0, else 1.0.
                    real = batch["real"]
                    engine.set_gradient_accumulation_boundary(batch is batches[-1])
                    engine.backward(loss * world * real)

                    loss_sum += loss.item() * real
                    mismatch = (old - rollout_logp[token]).abs()
                    tally.add(real, clip_fraction=clipped, entropy=entropy, kl=kl)
                    tally.add(real, mismatch=mismatch, importance=importance)
                if update == 0:
                    budget.learn(batches)  # how much memory a token took
                update_lr = common.learning_rate(step, steps, learning_rate, warmup_steps, lr_schedule)
                norm = common.optimizer_step(engine, update_lr, dtype)  # clip the norm, AdamW, zero
            watch.lap("update")

        # 7) sync the new weights into vLLM, one at a time
        sampler.sync(checkpoint.full_state(net, zero_stage))
        step += 1
        watch.lap("sync")

        # 8) log: over all processes, but for seconds, memory and epoch, which are those of rank 0
        tally.add(reward=reward, length=lengths, finished=finished, flat_groups=flat)
        for name in dict.fromkeys(name for of_one in parts for name in of_one):
            # a row may ask for parts of its own: a mean is that of the completions which have the part
            tally.add(**{f"reward_{name}": [of_one[name] for of_one in parts if name in of_one]})
        record = {"step": step} | watch.record() | tally.means()
        for name, (mean, _) in kinds.accuracies(question_of, parts).items():
            record[f"accuracy/{name}"] = mean
        record["reward_std"] = all_rewards.std(1).mean().item()  # within the groups
        record["skipped_rows"] = sum(common.all_gather(stream.skipped))
        record["epoch"] = stream.epoch
        record["completions_per_s"] = world * S / record["seconds"]
        record["tokens_per_s"] = record["length"] * record["completions_per_s"]
        if any_used:
            record["loss"] = sum(common.all_gather(loss_sum)) / updates_per_rollout
            record["lr"] = update_lr
            record["grad_norm"] = norm
        # the loss is near beta * KL by construction, as advantages sum to 0: the reward is what to watch
        eta = (time.time() - started) / (step - first_step) * (steps - step)
        say(common.console_line(record, watch.seconds, steps, eta), flush=True)
        flat_steps.add(record, say)

        # every prompt with its completions, for report.py and for the eye
        shown = []
        for p, prompt in enumerate(prompts):
            row = prompt["row"]
            entry = {"step": step, "id": row["id"], "problem": row["problem"], "solution": row["solution"]}
            entry["images"] = [data.thumbnail(image) for image in row["images"]] if p < thumbnails else []
            entry["completions"] = []
            for s in range(p * G, p * G + G):
                one = {"text": texts[s], "reward": reward[s].item(), "parts": parts[s]}
                one["advantage"] = round(advantage[s].item(), 4)
                one |= {"tokens": len(completions[s].ids), "finished": completions[s].finished}
                entry["completions"].append(one)
            shown.append(entry)
        log.write_rollouts(shown)
        if show_interval and (step - 1) % show_interval == 0:  # the best and the worst of the first group
            first = shown[0]
            for pick in (max, min):
                one = pick(first["completions"], key=lambda one: one["reward"])
                say(f"    {first['id']} {first['problem']!r} (answer {first['solution']})")
                say(f"    reward {one['reward']:.1f}: {one['text']!r}")

        # 9) evaluate, save
        if eval_source and eval_interval and (step % eval_interval == 0 or step == steps):
            record |= evaluate()
        log.write(record)
        stopping = stop.anywhere(device)  # a signal to one process stops all
        if stopping or step == steps or (save_interval and step % save_interval == 0):
            checkpoint.save(engine, net, base, stream, step, config, rank)
            if rank == 0:  # in the background: the curves should not cost training time
                report = Path(__file__).with_name("report.py")
                subprocess.Popen([sys.executable, str(report), out_dir], stdout=subprocess.DEVNULL)
        if stopping:
            say(f"stopped by a signal at step {step}; the same command goes on from here")
            break

    say(f"done: {step} steps, {common.clock(time.time() - started)}, checkpoint {out_dir}/step-{step:06d}")
    scorer.close()
    sampler.close()
    common.finish(sampler.llm)


if __name__ == "__main__":
    common.run(main)
