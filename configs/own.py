# Your own data: from a file of rows to a trained policy, on one GPU. docs/own_data.md goes through it.
# Hardware: 1 x 80 GB. Not yet run by us on a GPU.
# Plan (--plan=1x80): at most 59 of 85 GB a GPU, host memory 12 GB, disk 110 GB.
#   python data.py my/train.jsonl             # first: can all rows be used?
#   python train_grpo.py configs/own.py
out_dir = "out/own"
# 1) what is yours
data_source = "my/train.jsonl"
eval_source = "my/test.jsonl"  # other rows: of other images, too
model = "Qwen/Qwen2-VL-2B-Instruct"
# 2) what fits your rows: their pictures, questions and answers
max_pixels = 401408  # 512 visual tokens; documents and small print want 4 times as many
max_prompt_length = 1024  # visual tokens and question together
max_completion_length = 512  # as long as a good answer may think
template = "think"  # 'direct': the answer without thinking
reward_weights = {"accuracy": 1.0, "format": 0.5}
# 3) how much is sampled: more completions of a prompt where few of them are right
prompts_per_step = 16
group_size = 8
temperature = 1.0
# 4) how far to go
learning_rate = 1e-6
beta = 0.0  # no reference model; 0.04 keeps the policy close to where it started
drop_flat_groups = True
steps = 200
eval_interval = 25
save_interval = 50
# 5) memory of one GPU
zero_stage = 0
vllm_gpu_memory = 0.3
