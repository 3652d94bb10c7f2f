# Question: half the completions per prompt, twice the prompts: as good a baseline?
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_group_4.py --out_dir=out/ablate_group_4
group_size = 4
prompts_per_step = 32
