"""Supervised fine-tuning of a Qwen-VL policy: imitate `thinking` + `solution`, or the answer alone.

The cold start before GRPO, and the control beside it. Same prompts, same packed forward pass, same section order and
names as train_grpo.py: `diff train_sft.py train_grpo.py` shows what reinforcement learning adds.

Where this differs from R1-V's sft.py:
 1. the loss is on the assistant's tokens only, not on the system message and the question;
 2. image before text, the prompt is exactly the one that GRPO and evaluation use;
 3. Qwen2-VL, Qwen2.5-VL and Qwen3-VL, chosen by config.json.

One step:
 1) the next P prompts of each process   2) their target tokens   3) loss and optimizer step   4) log   5) evaluate, save

Shapes: N response tokens of a micro-batch. Everything else as in qwen.py.

    torchrun --nproc_per_node=2 train_sft.py configs/tiny_sft.py    # 2 CPU cores, about 2 minutes (python qwen.py out/tiny first)
    torchrun --nproc_per_node=8 train_sft.py configs/sft_clevr.py   # R1-V's CoT-SFT of Qwen2-VL-2B, 8 GPUs

Writes to out_dir: config.json, metrics.jsonl, step-000100/ (Hugging Face checkpoints), resume/.
"""

import sys
import time

import checkpoint
import common
import data
import qwen
import rewards
import sampling
from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config: Qwen2-VL-2B on R1-V's distilled CLEVR reasoning, 8 GPUs; override with  train_sft.py configs/x.py --key=value
# run
out_dir = "out/sft"
seed = 0
resume = True             # go on from out_dir/resume if it is there; False starts over
# policy
model = "Qwen/Qwen2-VL-2B-Instruct"  # checkpoint folder or hub id
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # 'varlen' = FlashAttention, for GPUs and 16 bits; 'sdpa' = any machine; 'auto' = the best
freeze_vision = False     # train the language model only
lora_rank = 0             # 0 = train all weights; else LoRA of this rank on the language model, the vision tower frozen
lora_alpha = 32.0         # its update is scaled by lora_alpha / lora_rank
grad_checkpointing = True # recompute activations in the backward pass: less memory, about 30 % slower
compile_layers = False    # torch.compile the language model's layers: costs a minute; no gain on CPUs (docs/speed.md); not under ZeRO-3
# data
data_source = "MMInstruction/Clevr_CoGenT_TrainA_R1"  # see data.py: scenes:..., file, folder or hub id
data_split = "train"
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows that do not name one: 'count', 'choice', 'math', 'text' or 'auto'
template = "auto"         # prompt: the row's own, else 'think'; or 'direct', 'box', 'zero' for all rows
box_frame = "auto"        # coordinates of boxes: the policy's own; or 'resized' pixels, 'thousand'ths, 'original' pixels
target = "cot"            # 'cot' = thinking and answer, 'answer' = the answer alone
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped, never cut
max_completion_length = 1024  # tokens of the target; longer rows are skipped
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
eval_source = ""          # held-out rows, same forms as data_source; '' = no evaluation
eval_split = "test"
eval_rows = 200           # the first so many of them
# optimization
steps = 295               # 1 epoch of 37.8k rows at 128 rows a step
batch_size = 128          # rows a step, over all processes
learning_rate = 2e-5
lr_schedule = "cosine"    # after the warm-up: 'constant', 'linear', 'cosine' (both to 0)
warmup_steps = 30
weight_decay = 0.0
adam_betas = (0.9, 0.999)
grad_clip = 1.0
micro_tokens = 0          # tokens of one forward pass; 0 = as many as the GPU's free memory holds, 8,192 on a CPU
zero_stage = 2            # DeepSpeed ZeRO: 0 = none, 1 = optimizer, 2 = + gradients, 3 = + weights sharded
offload_optimizer = False # optimizer state in CPU memory
# logs and checkpoints
log_interval = 1
eval_interval = 0         # steps between evaluations (greedy answers by the model itself); 0 = never
save_interval = 0         # steps between checkpoints; 0 = only at the end
keep = 3                  # newest checkpoints to keep; 0 = all
trackers = ""             # 'tensorboard', 'wandb' or both with a comma; metrics.jsonl is always written
# -----------------------------------------------------------------------------
# fmt: on


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)

    # -------------------------------------------------------------------------
    # processes
    # -------------------------------------------------------------------------
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    common.check_choices(config)
    if batch_size % world:
        raise SystemExit(
            f"batch_size: {batch_size} rows do not divide among {world} processes; use a multiple of {world}"
        )
    if eval_source and eval_interval and zero_stage == 3:
        raise SystemExit(
            "eval_interval: sampling needs whole weights in every process, zero_stage=3 shards them; use --zero_stage=2, "
            "or evaluate the checkpoints with eval.py"
        )
    if compile_layers and zero_stage == 3:
        raise SystemExit(
            "compile_layers: zero_stage=3 gathers the weights layer by layer, which cannot be compiled; leave one of them out"
        )
    rows_per_rank = batch_size // world
    checkpoint.check_out_dir(out_dir, config, resume, rank)
    log = common.Log(out_dir, rank, config, trackers)

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    processor = qwen.load_processor(model)
    tokenizer, end = processor.tokenizer, qwen.end_ids(processor)
    rows = data.load_rows(data_source, data_split, columns, image_root, task)

    def encode_question(row):
        return data.encode_prompt(
            row, processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
        )

    def encode(row):
        """Prompt of a row with its target tokens, the end token included: a policy that never sees it never learns to stop."""
        prompt = encode_question(row)
        text = data.target_text(prompt["row"], target)
        prompt["target"] = tokenizer(text, add_special_tokens=False).input_ids + [end[0]]
        if len(prompt["target"]) > max_completion_length:
            raise data.BadRow(
                f"row {row['id']}: target of {len(prompt['target'])} tokens, more than {max_completion_length=}"
            )
        return prompt

    stream = data.Stream(rows, encode, seed, rank, world, say=say)
    eval_prompts = []
    if eval_source and eval_interval:
        held_out = data.load_rows(eval_source, eval_split, columns, image_root, task)
        eval_prompts, _ = data.take_all(
            held_out, encode_question, rank, world, 0, min(eval_rows, len(held_out)), say
        )
    say(
        f"data: {len(rows):,} rows | a step: {batch_size} rows = {world} process(es) x {rows_per_rank} | "
        f"{steps} steps = {steps * batch_size / len(rows):.2f} epochs"
    )

    # -------------------------------------------------------------------------
    # policy
    # -------------------------------------------------------------------------
    net = qwen.load_model(model, dtype, attn, device, say)
    if freeze_vision:
        net.model.visual.requires_grad_(False)
    if lora_rank:
        qwen.add_lora(net, lora_rank, lora_alpha)
    if compile_layers:
        qwen.compile_layers(net)
    if grad_checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    # no banned ids here: the targets are given, and a target that holds one should show as a high loss
    policy = qwen.Policy(net, banned=[]).train()
    budget = qwen.TokenBudget(micro_tokens, device)
    ds_config = common.deepspeed_config(zero_stage, dtype, grad_clip, offload_optimizer)
    engine = common.start_deepspeed(policy, ds_config, learning_rate, weight_decay, adam_betas)
    banned = qwen.banned_ids(net.config, processor)

    def evaluate():
        """Greedy accuracy and format rate on the held-out rows. ALL RANKS."""
        settings = {
            "top_p": 1.0,
            "top_k": 0,
            "max_tokens": max_completion_length,
            "banned": banned,
            "end": end,
        }
        done = (
            sampling.rollout_hf(
                net, [p for _, p in eval_prompts], 1, [0] * len(eval_prompts), 0.0, **settings
            )
            if eval_prompts
            else []
        )
        parts = [
            rewards.score(tokenizer.decode(c.ids, skip_special_tokens=True), p["row"])
            for (_, p), (c,) in zip(eval_prompts, done, strict=True)
        ]
        sums = common.all_sum(
            [sum(p["accuracy"] for p in parts), sum(p["format"] for p in parts), len(parts)], device
        )
        if not sums[2]:
            raise SystemExit(
                f"eval_source: none of the first {eval_rows} rows of '{eval_source}' can be used; the lines above say why"
            )
        say(
            f"step {step}/{steps} | held-out accuracy {sums[0] / sums[2]:.1%} format {sums[1] / sums[2]:.1%} ({sums[2]:.0f} rows)"
        )
        return {"eval_accuracy": sums[0] / sums[2], "eval_format": sums[1] / sums[2], "eval_n": int(sums[2])}

    step, loop = 0, checkpoint.load_resume(engine, out_dir, rank, world) if resume else None
    if loop:
        step, stream.cursor = loop["step"], loop["cursors"][rank]
        say(f"resume: step {step} of {out_dir}")
    if rank == 0:
        checkpoint.truncate_log(f"{out_dir}/metrics.jsonl", step)

    # -------------------------------------------------------------------------
    # the loop
    # -------------------------------------------------------------------------
    stop = (
        common.StopSignal()
    )  # not before: until here a signal ends the run at once, as there is nothing to save
    started, first_step, saved = time.time(), step, step
    while step < steps:
        t0 = time.time()
        # 1) prompts, 2) their target tokens as "groups" of one completion
        prompts = stream.take(rows_per_rank)
        completions, n_tokens = [], 0
        for prompt in prompts:
            completions.append([(n_tokens, prompt["target"])])
            n_tokens += len(prompt["target"])
        batches = qwen.pack(prompts, completions, net, budget.tokens())

        # 3) loss = - sum over all response tokens of log p(token), divided by their number over ALL ranks and micro-batches
        total_tokens, prompt_tokens = common.all_sum(
            [n_tokens, sum(len(p["input_ids"]) for p in prompts)], device
        )
        batches, real = qwen.same_count(batches)
        loss_sum = 0.0
        for m, batch in enumerate(batches):
            batch = qwen.to_device(batch, device)
            logp, _ = engine(batch)  # (N,)
            # DeepSpeed averages gradients over the ranks, we want their sum: hence * world
            loss = -logp.sum() / total_tokens * world * real[m]
            if not loss.isfinite():
                raise SystemExit(
                    f"loss: {loss.item()} at step {step}, the step was not applied. Lower learning_rate, or look at rows "
                    f"{', '.join(p['row']['id'] for p in prompts)}"
                )
            engine.set_gradient_accumulation_boundary(m == len(batches) - 1)
            engine.backward(loss)
            loss_sum += loss.item() / world
        budget.learn(batches)
        lr = common.learning_rate(step, steps, learning_rate, warmup_steps, lr_schedule)
        norm = common.optimizer_step(engine, lr, dtype)
        step += 1

        # 4) log
        loss_mean, skipped = common.all_sum([loss_sum, stream.skipped], device)
        record = {
            "step": step,
            "loss": loss_mean,
            "lr": lr,
            "grad_norm": norm,
            "epoch": stream.epoch,
            "tokens_per_row": total_tokens / batch_size,
            "skipped_rows": int(skipped),
            "seconds": time.time() - t0,
        }
        record |= {
            "rows_per_s": batch_size / record["seconds"],
            "tokens_per_s": (total_tokens + prompt_tokens) / record["seconds"],
        }
        if step % log_interval == 0 or step == steps:
            eta = (time.time() - started) / (step - first_step) * (steps - step)
            say(
                f"step {step}/{steps} | loss {loss_mean:.4f} | lr {lr:.2e} | grad {norm:.2f} | epoch {stream.epoch:.2f} | "
                f"{record['rows_per_s']:.0f} rows/s {record['tokens_per_s']:.0f} tok/s | skipped {int(skipped)} | "
                f"ETA {common.clock(eta)}",
                flush=True,
            )

        # 5) evaluate, save
        if eval_source and eval_interval and (step % eval_interval == 0 or step == steps):
            record |= evaluate()
        log.write(record)
        stopping = stop.anywhere(device)
        if stopping or step == steps or (save_interval and step % save_interval == 0):
            loop = {"step": step, "cursors": common.all_gather(stream.cursor)}
            checkpoint.save_all(engine, net, processor, out_dir, loop, zero_stage, rank, keep)
            saved = step
        if stopping:
            say(f"stopped by a signal at step {step}; the same command goes on from here")
            break

    say(f"done: {step} steps, {common.clock(time.time() - started)}, checkpoint {out_dir}/step-{saved:06d}")
    common.finish()
