# OpenV-R1 on its visual collection: counting, geometry, choices and boxes in one run; each row is graded by
# its own task.
# Hardware: 8 x 80 GB. Not yet run by us on 8 GPUs.
# Plan (--plan=8x80): at most 37 of 85 GB a GPU, host memory 29 GB, disk 188 GB.
# OpenV-R1 publishes, for its checkpoint 8,500 with Qwen2.5-VL-3B: SuperCLEVR-5k 64.1 to 93.4 %, GeoQA 37.0 to
# 54.2 %, RefCOCO (mean of three) 75.3 to 86.1 %.
#   torchrun --nproc_per_node=8 train_grpo.py configs/openv_visual.py
# Its text-only counterpart, and both together:
#   torchrun --nproc_per_node=8 train_grpo.py configs/openv_visual.py --data_source=openv_text \
#     --out_dir=out/openv_text
#   torchrun --nproc_per_node=8 train_grpo.py configs/openv_visual.py \
#     --data_source=openv_visual:0.7,openv_text:0.3 --out_dir=out/openv_mix
out_dir = "out/openv_visual"
model = "Qwen/Qwen2.5-VL-3B-Instruct"
data_source = "openv_visual"  # 139,000 rows; those with boxes get the template 'box', the others 'think'
vllm_gpus = 1  # OpenV-R1's layout: 7 GPUs train, one samples
vllm_gpu_memory = 0.9
prompts_per_step = 28  # 4 of each trainer
group_size = 7
max_prompt_length = 1024
max_completion_length = 2048
max_pixels = 501760  # 640 visual tokens
micro_tokens = 16384
temperature = 0.9
beta = 0.04
learning_rate = 1e-6
lr_schedule = "constant"
steps = 8500
save_interval = 50
