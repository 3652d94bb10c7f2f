# b) Chains of thought of a teacher who overlooks nothing: every object of 3,200 scenes labelled.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/perfect.py
target = "cot"
