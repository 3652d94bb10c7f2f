# Qwen2.5-VL-7B by LoRA on one 80 GB GPU: the same 128 sequences a step as configs/clevr.py, one process.
# Hardware: 1 x 80 GB.
# Plan (--plan=1x80): at most 54 of 85 GB a GPU, host memory 37 GB, disk 34 GB.
# Not yet run by us; the learning rate is a guess, ten times that of full training.
#   torchrun train_grpo.py configs/clevr_7b_lora.py
out_dir = "out/clevr_7b_lora"
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
lora_rank = 16
learning_rate = 1e-5
steps = 100
save_interval = 50
