# Question: per-sequence means (GRPO) or a mean over all tokens (DAPO)?
# Use after a base config:
#   torchrun train_grpo.py configs/tiny.py configs/ablate_token_loss.py --out_dir=out/ablate_token_loss
loss_norm = "token"
