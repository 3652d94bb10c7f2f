# R1-V: Qwen2-VL-2B-Instruct learns to count CLEVR objects from nothing but the right number.
# Hardware: 8 x 80 GB.
# Plan (--plan=8x80): at most 55 of 85 GB a GPU, host memory 29 GB, disk 71 GB.
# R1-V's published run: 100 steps, 30 minutes on 8 x A100, SuperCLEVR-200 from 48.0 to 82.5 %.
# Not yet run by us on 8 GPUs; the knobs are those of R1-V's README and scripts.
#   torchrun --nproc_per_node=8 train_grpo.py configs/clevr.py
out_dir = "out/clevr"
model = "Qwen/Qwen2-VL-2B-Instruct"
data_source = "leonardPKU/clevr_cogen_a_train"  # 70,000 images, "How many items are there in the image?"
template = "think"
prompts_per_step = 16  # 8 GPUs x 1 prompt x 2 accumulated = 16 groups
group_size = 8  # x 8 completions = 128 sequences a step
max_prompt_length = 1024  # a CLEVR image is 187 visual tokens
max_completion_length = 256
max_pixels = 401408  # 512 visual tokens
temperature = 0.9
beta = 0.04
learning_rate = 1e-6
lr_schedule = "linear"
steps = 100  # the published run; 2 epochs would be 8,750
grad_checkpointing = False
zero_stage = 2
vllm_gpu_memory = 0.2  # 17 of 85 GB: 4.4 of weights, 4.7 of keys and values at most
vllm_sleep = False  # there is room for both; to sleep and to wake up costs half a second a step
save_interval = 50
