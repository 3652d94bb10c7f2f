# What the supervised arms of the study share: 25,600 rows from 3,200 scenes, from the shared cold start. An
# arm's file goes after it.
# Hardware: 1 CPU core, 4 minutes.
#   python train_sft.py configs/tiny_sft.py configs/study/sft.py configs/study/answers.py --seed=0
# (study.py runs them all)
model = "out/study/cold/step-000900"
data_source = "scenes:clevr?rows=3200&seed=2&layout=grid&objects=1-8&jitter=0.25"  # the scenes that GRPO sees
steps = 800  # x 32 rows = 25,600, as many as GRPO draws completions
learning_rate = 1e-3
lr_schedule = "cosine"
warmup_steps = 5
save_interval = 100
keep = 0
log_interval = 100
