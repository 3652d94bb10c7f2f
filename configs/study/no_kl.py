# g) GRPO without the KL term (and so without a reference model).
#   python train_grpo.py configs/tiny.py configs/study/grpo.py configs/study/no_kl.py
beta = 0.0
