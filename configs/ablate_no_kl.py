# Question: does the KL term to the reference matter at this size?
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_no_kl.py --out_dir=out/ablate_no_kl
beta = 0.0  # no reference model is loaded either
