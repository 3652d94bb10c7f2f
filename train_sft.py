"""Supervised fine-tuning of a Qwen-VL policy: imitate `thinking` + `solution`, or the answer alone.

The cold start before GRPO, and the control beside it. Same prompts, same packed forward pass, same section
order and names as train_grpo.py: `diff train_sft.py train_grpo.py` shows what reinforcement learning adds.

Where this differs from R1-V's sft.py:
 1. the loss is on the assistant's tokens only, not on the system message and the question;
 2. image before text, the prompt is exactly the one that GRPO and evaluation use;
 3. Qwen2-VL, Qwen2.5-VL and Qwen3-VL, chosen by config.json.

One step (the numbers stand in the loop below):
 1) prompts      the next P prompts of each process
 2) targets      the tokens to imitate, one completion for each prompt
 3) update       minimise  -log p(token),  mean over the response tokens
 4) log          one line, metrics.jsonl                       5) evaluate, save

Symbols: P prompts of a process, N response tokens of one micro-batch. The end token is a response token.

    torchrun --nproc_per_node=2 train_sft.py configs/tiny_sft.py   # 2 cores, 2 minutes
    torchrun --nproc_per_node=8 train_sft.py configs/sft_clevr.py  # R1-V's CoT-SFT of Qwen2-VL-2B, 8 GPUs

Writes to out_dir: config.json, run.json, metrics.jsonl; step-000100/ (Hugging Face checkpoints), resume/.
"""

import sys
import time

import torch

import checkpoint
import common
import data
import heldout
import memory
import qwen
import rewards
import sampling
from configurator import configure

# fmt: off
# -----------------------------------------------------------------------------
# default config: Qwen2-VL-2B on R1-V's distilled CLEVR reasoning, 8 GPUs
# override with  train_sft.py configs/x.py --key=value
# run
out_dir = "out/sft"
seed = 0
resume = True             # go on from out_dir/resume if it is there; False starts over
# policy
model = "Qwen/Qwen2-VL-2B-Instruct"  # checkpoint folder or hub id
dtype = "bfloat16"        # 'float32' on CPUs
attn = "auto"             # 'varlen' = FlashAttention, for GPUs in 16 bits; 'sdpa' = any machine; 'auto'
freeze_vision = False     # train the language model only
lora_rank = 0             # 0 = train all weights; else LoRA of this rank, the vision tower frozen
lora_alpha = 32.0         # its update is scaled by lora_alpha / lora_rank
grad_checkpointing = True # recompute activations in the backward pass: less memory, about 30 % slower
compile_layers = False    # torch.compile the language model's layers: costs a minute; no gain on CPUs
# data
data_source = "MMInstruction/Clevr_CoGenT_TrainA_R1"  # see data.py: scenes:..., file, folder or hub id
data_split = "train"
columns = ""              # 'solution=label,problem=text' if the columns have other names
image_root = ""           # folder that relative image paths start from; default: the file's own
task = "auto"             # of rows that do not name one: 'count', 'choice', 'math', 'text' or 'auto'
template = "auto"         # prompt: the row's own, else 'think'; or 'direct', 'box', 'zero' for all rows
box_frame = "auto"        # of coordinates: 'auto' (the policy's own), 'resized', 'thousand', 'original'
target = "cot"            # 'cot' = thinking and answer, 'answer' = the answer alone
max_prompt_length = 1024  # tokens, visual ones included; longer rows are skipped, never cut
max_completion_length = 1024  # tokens of the target; longer rows are skipped
min_pixels = 3136         # 4 visual tokens; images are resized to areas between these two
max_pixels = 401408       # 512 visual tokens
eval_source = ""          # held-out rows, same forms as data_source; '' = no evaluation
eval_split = "test"
eval_rows = 200           # the first so many of them
eval_metric = ""          # beside accuracy: a task such as 'anls', or your own 'module:function'
# optimization
steps = 295               # 1 epoch of 37.8k rows at 128 rows a step
batch_size = 128          # rows a step, over all processes
learning_rate = 2e-5
lr_schedule = "cosine"    # after the warm-up: 'constant', 'linear', 'cosine' (both to 0)
warmup_steps = 30
weight_decay = 0.0
adam_betas = (0.9, 0.999)
grad_clip = 1.0
micro_tokens = 0          # tokens of one forward pass; 0 = what the GPU's free memory holds, 8,192 on a CPU
zero_stage = 2            # DeepSpeed ZeRO: 0 = none, 1 = optimizer, 2 = + gradients, 3 = + weights sharded
offload_optimizer = False # optimizer state in CPU memory
# logs and checkpoints
log_interval = 1          # steps between two lines on the console
eval_interval = 0         # steps between evaluations (greedy answers by the model itself); 0 = never
save_interval = 0         # steps between checkpoints; 0 = only at the end
keep = 3                  # newest checkpoints to keep; 0 = all
trackers = ""             # 'tensorboard', 'wandb' or both with a comma; metrics.jsonl is always written
plan = ""                 # '8x80' (GPUs x GB) or True: print what the run takes of memory, and stop; 'off': a
                          # run that will not fit the GPU by these sums is started all the same
# -----------------------------------------------------------------------------
# fmt: on


def main():
    config = configure(globals(), sys.argv[1:], __file__)
    if memory.show(config):
        return
    rewards.check_metric("eval_metric", eval_metric)
    scorer = rewards.Scorer(0, [eval_metric])  # of the held-out rows

    # -------------------------------------------------------------------------
    # processes, checks, logs
    # -------------------------------------------------------------------------
    rank, world, device = common.setup(seed)
    say = print if rank == 0 else lambda *a, **k: None
    common.check_knobs(config, world)
    memory.check(config, world, memory.device_bytes())
    P = batch_size // world
    checkpoint.open_folder(config, rank, say)

    # -------------------------------------------------------------------------
    # data
    # -------------------------------------------------------------------------
    processor = qwen.load_processor(model)
    tokenizer = processor.tokenizer
    end = qwen.end_ids(processor)
    base = checkpoint.base_files(model)  # tokenizer, chat template ...: the exports carry them as they are

    def encode_question(row):
        return data.encode_prompt(
            row, processor, template, max_prompt_length, min_pixels, max_pixels, box_frame
        )

    def encode(row):
        """Prompt of a row with its target tokens. The end token is one: else it never learns to stop."""
        prompt = encode_question(row)
        text = data.target_text(prompt["row"], target, prompt["opened"])
        prompt["target"] = tokenizer(text, add_special_tokens=False).input_ids + [end[0]]
        length = len(prompt["target"])
        if length > max_completion_length:
            raise data.BadRow(
                f"row {row['id']}: target of {length} tokens, more than {max_completion_length=}"
            )
        return prompt

    rows = data.load_rows(data_source, data_split, columns, image_root, task, say)
    stream = data.Stream(rows, encode, seed, rank, world, say=say)
    eval_prompts = heldout.load(config, encode_question, rank, world, say)  # of this process
    say(
        f"data: {len(rows):,} rows | a step: {batch_size} rows = {world} process(es) x {P} | "
        f"{steps} steps = {steps * batch_size / len(rows):.2f} epochs"
    )

    # -------------------------------------------------------------------------
    # policy, optimizer
    # -------------------------------------------------------------------------
    net = qwen.load_model(model, dtype, attn, device, say)
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
    # no banned ids here: the targets are given, and a target that holds one should show as a high loss
    policy = qwen.Policy(net, banned=[]).train()
    budget = qwen.TokenBudget(micro_tokens, device)
    ds_config = common.deepspeed_config(zero_stage, dtype, grad_clip, offload_optimizer)
    engine = common.start_deepspeed(policy, ds_config, learning_rate, weight_decay, adam_betas)

    # -------------------------------------------------------------------------
    # evaluation, resume
    # -------------------------------------------------------------------------
    def sample(prompts, n, seeds, temperature):
        """n completions of each prompt from the current policy: per prompt a list of sampling.Completion."""
        knobs = {"top_p": 1.0, "top_k": 0, "max_tokens": max_completion_length}
        return sampling.rollout_hf(net, prompts, n, seeds, temperature, **knobs, banned=banned, end=end)

    def decode(prompt, completion):
        """The text of a completion, with what the chat template has opened for it."""
        return prompt["opened"] + tokenizer.decode(completion.ids, skip_special_tokens=True)

    def evaluate():
        """Greedy accuracy and more on the held-out rows. ALL RANKS."""
        when = f"step {step}/{steps}"
        return heldout.evaluate(eval_prompts, sample, decode, scorer, eval_metric, when, say)

    step = checkpoint.resume(engine, net, base, stream, config, rank, say)  # 0: from the start
    log = common.Log(out_dir, rank, config, trackers, step)

    # -------------------------------------------------------------------------
    # the loop
    # -------------------------------------------------------------------------
    stop = common.StopSignal()  # not before: until here a signal ends the run at once
    started = time.time()
    first_step = step
    while step < steps:
        watch = common.Stopwatch(device)

        # 1) prompts
        prompts = stream.take(P)
        watch.lap("data")

        # 2) targets: each prompt is a "group" of one completion, the one to imitate
        ids = [prompt["target"] for prompt in prompts]
        used = torch.ones(P, dtype=torch.bool)
        n_tokens = sum(common.all_gather(sum(len(sequence) for sequence in ids)))
        batches = qwen.micro_batches(prompts, ids, used, net, budget)

        # 3) policy update
        loss_sum = 0.0
        for batch in batches:
            logp, _ = engine(batch, entropy="none")  # (N,)

            # loss = sum_t -log p(token_t) / number of response tokens, over all micro-batches and processes
            loss = -logp.sum() / n_tokens

            if not loss.isfinite():
                ids_of_rows = ", ".join(prompt["row"]["id"] for prompt in prompts)
                raise SystemExit(
                    f"loss: {loss.item()} at step {step + 1}, this update was not applied. "
                    f"Lower learning_rate, or look at rows {ids_of_rows}"
                )
            # DeepSpeed averages gradients over the processes, but n_tokens is that of the whole step: hence
            # * world. A filler repeats a micro-batch, so that all processes have equally many; its `real` is
            # 0.0, else 1.0.
            real = batch["real"]
            engine.set_gradient_accumulation_boundary(batch is batches[-1])
            engine.backward(loss * world * real)
            loss_sum += loss.item() * real
        budget.learn(batches)
        update_lr = common.learning_rate(step, steps, learning_rate, warmup_steps, lr_schedule)
        norm = common.optimizer_step(engine, update_lr, dtype)  # clip the norm, AdamW, zero
        step += 1
        watch.lap("update")

        # 4) log: over all processes, but for seconds, memory and epoch, which are those of rank 0
        record = {"step": step} | watch.record()
        record["loss"] = sum(common.all_gather(loss_sum))
        record["lr"] = update_lr
        record["grad_norm"] = norm
        record["skipped_rows"] = sum(common.all_gather(stream.skipped))
        record["epoch"] = stream.epoch
        record["tokens_per_row"] = n_tokens / batch_size
        record["rows_per_s"] = batch_size / record["seconds"]
        record["tokens_per_s"] = n_tokens / record["seconds"]
        if step % log_interval == 0 or step == steps:
            eta = (time.time() - started) / (step - first_step) * (steps - step)
            say(
                f"step {step}/{steps} | loss {record['loss']:.4f} | lr {update_lr:.2e} | grad {norm:.2f} | "
                f"{record['rows_per_s']:.0f} rows/s {record['tokens_per_s']:.0f} tok/s | "
                f"epoch {stream.epoch:.2f} skipped {record['skipped_rows']} | ETA {common.clock(eta)}",
                flush=True,
            )

        # 5) evaluate, save
        if eval_source and eval_interval and (step % eval_interval == 0 or step == steps):
            record |= evaluate()
        log.write(record)
        stopping = stop.anywhere(device)
        if stopping or step == steps or (save_interval and step % save_interval == 0):
            checkpoint.save(engine, net, base, stream, step, config, rank)
        if stopping:
            say(f"stopped by a signal at step {step}; the same command goes on from here")
            break

    say(f"done: {step} steps, {common.clock(time.time() - started)}, checkpoint {out_dir}/step-{step:06d}")
    scorer.close()
    common.finish()


if __name__ == "__main__":
    common.run(main)
