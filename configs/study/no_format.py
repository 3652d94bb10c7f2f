# f) GRPO paid for the right count only, not for the format.
#   python train_grpo.py configs/tiny.py configs/study/grpo.py configs/study/no_format.py
reward_weights = {"accuracy": 1.0}
