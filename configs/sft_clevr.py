# CoT-SFT of Qwen2-VL-2B on R1's distilled reasoning about CLEVR scenes: R1-V's supervised baseline, with
# its hyper-parameters.
# Hardware: 8 x 80 GB. Published (with the loss on the prompt as well): 42.5 % on SuperCLEVR-200, 30 % on
# CoGenT-B.
#   torchrun --nproc_per_node=8 train_sft.py configs/sft_clevr.py
out_dir = "out/sft_clevr"
model = "Qwen/Qwen2-VL-2B-Instruct"
data_source = "MMInstruction/Clevr_CoGenT_TrainA_R1"  # 37.8k rows: image, thinking, problem, solution
target = "cot"
steps = 295  # 1 epoch at 128 rows a step (8 GPUs x 4 x 4 accumulated)
batch_size = 128
learning_rate = 2e-5
lr_schedule = "cosine"
warmup_steps = 30
