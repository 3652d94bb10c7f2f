# R1-V's recipe on one 80 GB GPU: the same 128 sequences a step as configs/clevr.py, one process.
# Hardware: 1 x 80 GB. Not yet run by us.
# Plan (--plan=1x80): at most 63 of 85 GB a GPU, host memory 12 GB, disk 71 GB.
#   torchrun train_grpo.py configs/clevr_1gpu.py
# Smaller cards: configs/clevr_24gb.py (LoRA), configs/clevr_24gb_offload.py (all weights).
out_dir = "out/clevr_1gpu"
model = "Qwen/Qwen2-VL-2B-Instruct"
data_source = "leonardPKU/clevr_cogen_a_train"
prompts_per_step = 16
group_size = 8
max_prompt_length = 1024
max_completion_length = 256
temperature = 0.9
beta = 0.04
learning_rate = 1e-6
steps = 100
grad_checkpointing = True
vllm_gpu_memory = 0.3
zero_stage = 2  # nothing to shard with one process, but gradients are added up in float32
save_interval = 50
