# R1-V on geometry: Qwen2.5-VL-3B learns GeoQA from nothing but the final answer.
# Hardware: 8 x 80 GB.
# Plan (--plan=8x80): at most 59 of 85 GB a GPU, host memory 92 GB, disk 188 GB.
# R1-V publishes GeoQA 35.4 to 47.5 % after one epoch (4 GPUs for training and one for vLLM).
# Not yet run by us on 8 GPUs; the knobs are those of R1-V's script.
#   torchrun --nproc_per_node=8 train_grpo.py configs/geoqa.py
#   torchrun --nproc_per_node=8 eval.py configs/eval.py --model=out/geoqa/step-001000 --bench=geoqa_test
out_dir = "out/geoqa"
model = "Qwen/Qwen2.5-VL-3B-Instruct"
data_source = "geoqa"  # 8,000 problems with one drawing each
prompts_per_step = 16
group_size = 8
max_prompt_length = 4096
max_completion_length = 2048
max_pixels = 501760  # 640 visual tokens
micro_tokens = 16384  # a group of long completions
temperature = 0.9
beta = 0.04
learning_rate = 1e-6
lr_schedule = "constant"
steps = 1000  # 2 epochs
save_interval = 200
