# R1-V's recipe by LoRA on one 24 GB card: the same 128 sequences a step as configs/clevr.py, one process.
# Hardware: 1 x 24 GB.
# Plan (--plan=1x24): at most 17 of 25 GB a GPU, host memory 12 GB, disk 9 GB.
# Not yet run by us; the learning rate is a guess, ten times that of full training.
#   torchrun train_grpo.py configs/clevr_24gb.py
out_dir = "out/clevr_24gb"
model = "Qwen/Qwen2-VL-2B-Instruct"
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
