# c) The true count alone: the labels that GRPO's reward uses, imitated without reasoning.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/answers.py
target = "answer"
