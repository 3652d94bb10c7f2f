# i) Groups of 4: as many completions of twice as many prompts.
#   python train_grpo.py configs/tiny.py configs/study/grpo.py configs/study/group_4.py
group_size = 4
prompts_per_step = 32
