# h) Dr. GRPO: advantages are not divided by the std of the group, the loss not by the length of the
# completion.
#   python train_grpo.py configs/tiny.py configs/study/grpo.py configs/study/dr_grpo.py
adv_norm = "none"
loss_norm = "constant"
