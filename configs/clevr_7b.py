# Qwen2.5-VL-7B with all weights trained on 8 GPUs: the same 128 sequences a step as configs/clevr.py.
# Hardware: 8 x 80 GB.
# Plan (--plan=8x80): at most 75 of 85 GB a GPU, host memory 174 GB, disk 265 GB.
# Not yet run by us.
#   torchrun --nproc_per_node=8 train_grpo.py configs/clevr_7b.py
out_dir = "out/clevr_7b"
model = "Qwen/Qwen2.5-VL-7B-Instruct"
data_source = "leonardPKU/clevr_cogen_a_train"  # 70,000 images, "How many items are there in the image?"
template = "think"
prompts_per_step = 16
group_size = 8
max_prompt_length = 1024
max_completion_length = 256
max_pixels = 401408  # 512 visual tokens
temperature = 0.9
beta = 0.04
learning_rate = 1e-6
vllm_gpu_memory = 0.3
steps = 100
save_interval = 50
