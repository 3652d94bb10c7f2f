# Cold start of the tiny model: 14,400 drawn scenes described by a teacher who overlooks small objects.
# Hardware: 2 CPU cores, about 2 minutes. Expected: the format is learnt, colours and shapes are mostly
# seen, 1 count in 5 is right.
#   python qwen.py out/tiny && torchrun --nproc_per_node=2 train_sft.py configs/tiny_sft.py
out_dir = "out/tiny_sft"
model = "out/tiny"
dtype = "float32"
grad_checkpointing = False
# the teacher misses each small object with probability 0.6; its answer agrees with its own list
data_source = "scenes:clevr?rows=14400&seed=1&layout=grid&objects=1-8&jitter=0.25&miss=0.6"
steps = 450  # 1 epoch: 450 x 32 = 14,400
batch_size = 32
learning_rate = 1e-3
lr_schedule = "constant"
warmup_steps = 50
weight_decay = 0.01
adam_betas = (0.9, 0.95)
min_pixels = 12544
max_pixels = 12544  # 112 x 112: every image is 16 visual tokens, one for each cell of the grid
zero_stage = 2
log_interval = 10
