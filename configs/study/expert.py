# d) Expert iteration, one of its 4 rounds: the policy answers 800 of the scenes 8 times, and imitates its
# answers that are right.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/expert.py \
#     --data_source=KEPT.jsonl --model=LAST
steps = 200
