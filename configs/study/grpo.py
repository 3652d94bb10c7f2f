# What the GRPO arms of the study share: 25,600 completions, from the shared cold start. An arm's file goes
# after it.
# Hardware: 1 CPU core, 4 minutes.
#   python train_grpo.py configs/tiny.py configs/study/grpo.py --seed=0     (study.py runs them all)
model = "out/study/cold/step-000900"
data_source = "scenes:clevr?rows=3200&seed=2&layout=grid&objects=1-8&jitter=0.25"
rollout = "vllm"
steps = 200  # x 128 completions = 25,600
eval_interval = 0  # study.py evaluates the checkpoints, on five splits
save_interval = 25
keep = 0
show_interval = 0
