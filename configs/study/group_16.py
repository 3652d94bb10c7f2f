# i) Groups of 16: as many completions of half as many prompts.
#   python train_grpo.py configs/tiny.py configs/study/grpo.py configs/study/group_16.py
group_size = 16
prompts_per_step = 8
