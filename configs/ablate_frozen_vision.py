# Question: can the language model alone learn to count?
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_frozen_vision.py --out_dir=out/ablate_frozen_vision
freeze_vision = True
