# Question: two optimizer steps per rollout: here the clip acts for the first time
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_two_updates.py --out_dir=out/ablate_two_updates
updates_per_rollout = 2
