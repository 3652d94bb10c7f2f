# a') The same teacher, but only those of its chains that come to the known count, by
# configs/study/distill.py.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/filtered.py
data_source = "out/study/distill/dataset"
