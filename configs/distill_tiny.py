# From scenes to a trained model on a laptop; the teacher is a script, so this shows the pipeline and not a
# result.
# Hardware: 2 CPU cores, about a minute with the training. Expected: 56 % of the traces are kept, since the
# teacher overlooks things;
# the model that learns from them is right about most of valA (78 % and 84 % in two runs).
#   python qwen.py out/tiny
#   python distill.py configs/distill_tiny.py --stage=describe,query
#   python distill.py configs/distill_tiny.py --stage=filter,build
#   torchrun train_sft.py configs/tiny_sft.py --data_source=out/distill_tiny/dataset \
#     --out_dir=out/distill_tiny/sft --steps=200
# For a real teacher: --teacher=api --model=NAME --base_url=http://localhost:8000/v1
out_dir = "out/distill_tiny"
train = "scenes:clevr?rows=3000&seed=11&layout=grid&objects=1-8&jitter=0.25"
val_a = "scenes:clevr?rows=200&seed=12&layout=grid&objects=1-8"
val_b = "scenes:cogent_b?rows=200&seed=13&layout=grid&objects=1-8"
families = "count_all"
teacher = "script"  # rules, no model
script_miss = 0.2  # each small object is overlooked with this probability
script_broken = 0.1
trace_limit = 128
keep_per_pair = 1
