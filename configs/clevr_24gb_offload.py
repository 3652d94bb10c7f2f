# R1-V's recipe with all weights trained on one 24 GB card: the optimizer works in CPU memory, no reference.
# Hardware: 1 x 24 GB.
# Plan (--plan=1x24): at most 21 of 25 GB a GPU, host memory 73 GB, disk 71 GB.
# Not yet run by us. --freeze_vision=True takes 46 GB of host memory.
#   torchrun train_grpo.py configs/clevr_24gb_offload.py
out_dir = "out/clevr_24gb_offload"
model = "Qwen/Qwen2-VL-2B-Instruct"
data_source = "leonardPKU/clevr_cogen_a_train"  # 70,000 images, "How many items are there in the image?"
template = "think"
prompts_per_step = 16
group_size = 8
max_prompt_length = 1024
max_completion_length = 256
max_pixels = 401408  # 512 visual tokens
temperature = 0.9
beta = 0.0
learning_rate = 1e-6
micro_tokens = 4096
offload_optimizer = True
steps = 100
save_interval = 50
