# GRPO on the tiny model after its cold start: it has learnt to list objects from a teacher who overlooks
# small ones,
# and now learns from nothing but whether the final count is right.
# Hardware: 2 CPU cores, about a minute. Expected: held-out accuracy from 10-30 % to about 90 %.
#   torchrun --nproc_per_node=2 train_grpo.py configs/tiny.py        (after train_sft.py configs/tiny_sft.py)
out_dir = "out/tiny_grpo"
model = "out/tiny_sft/step-000450"
dtype = "float32"
grad_checkpointing = False
# true counts; other scenes than the cold start's
data_source = "scenes:clevr?rows=12000&seed=2&layout=grid&objects=1-8&jitter=0.25"
eval_source = "scenes:clevr?rows=200&seed=3&layout=grid&objects=1-8"
min_pixels = 12544
max_pixels = 12544  # 112 x 112: every image is 16 visual tokens, one for each cell of the grid
max_prompt_length = 128
max_completion_length = 44
prompts_per_step = 16  # 16 groups x 8 completions = 128 sequences a step
group_size = 8
# for a model this small on a CPU twice as fast as vLLM, without its start; 'vllm' as on GPUs works here, too
rollout = "hf"
reward_workers = 0  # counts are read off in microseconds
temperature = 1.0
drop_flat_groups = True
steps = 160
learning_rate = 4e-4
lr_schedule = "linear"
warmup_steps = 5
zero_stage = 2
eval_interval = 20
save_interval = 40
