# The tiny model in distribution (CLEVR's objects, 4 x 4 grid) and out of it (vehicles, other colours,
# background and image size).
# Hardware: 2 CPU cores, about 15 seconds. 500 scenes each that no training run has seen.
#   torchrun --nproc_per_node=2 eval.py configs/tiny_eval.py --model=out/tiny_grpo/step-000160
model = "out/tiny_grpo/step-000160"
dtype = "float32"
backend = "hf"
sources = {
    "clevr": "scenes:clevr?rows=500&seed=107&layout=grid&objects=1-8",
    "superclevr": "scenes:superclevr?rows=500&seed=108&layout=grid&objects=1-8&size=160x160",
}
min_pixels = 12544
max_pixels = 12544  # 112 x 112: every image is 16 visual tokens, one for each cell of the grid
max_prompt_length = 128
max_completion_length = 44
