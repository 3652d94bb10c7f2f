# Question: what does dividing the advantage by the std of its group do? (Dr. GRPO leaves it out)
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_no_std.py --out_dir=out/ablate_no_std
adv_norm = "none"
