# a) More of the same: chains of thought of the teacher who overlooks each small object with probability
# 0.6, unfiltered.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/teacher.py
data_source = "scenes:clevr?rows=3200&seed=2&layout=grid&objects=1-8&jitter=0.25&miss=0.6"
