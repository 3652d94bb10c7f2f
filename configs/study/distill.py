# The teacher's answers to 3,200 scenes, those kept that come to the known count: what distill.py does for
# R1-V's recipe.
#   python distill.py configs/study/distill.py
out_dir = "out/study/distill"
train = "scenes:clevr?rows=3200&seed=2&layout=grid&objects=1-8&jitter=0.25"  # the scenes that GRPO sees
families = "count_all"
teacher = "script"
script_miss = 0.6
script_broken = 0.0
trace_limit = 128
