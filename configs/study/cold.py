# The shared cold start of the study, two skills: counting, from a teacher who overlooks small objects, and
# questions of colour.
# Hardware: 1 CPU core, 5 minutes. Expected: 1 count in 4 is right, 6 colours in 10 are.
#   python train_sft.py configs/tiny_sft.py configs/study/cold.py
# (python qwen.py out/study/model first; study.py does both)
out_dir = "out/study/cold"
model = "out/study/model"
_count = "scenes:clevr?rows=32000&seed=1&layout=grid&objects=1-8&jitter=0.25&miss=0.6"
_color = "scenes:clevr?rows=32000&seed=4&layout=grid&objects=1-4&jitter=0.25&family=query_color"
data_source = f"{_count}:0.6,{_color}:0.4"
steps = 900
log_interval = 50
