# Validation scenes of the study: curves, and the choice of settings.
#   python eval.py configs/study/curve.py --model=out/study/cold/step-000900
dtype = "float32"
sources = {
    "clevr": "scenes:clevr?rows=100&seed=103&layout=grid&objects=1-8",
    "cogent_b": "scenes:cogent_b?rows=100&seed=104&layout=grid&objects=1-8",
    "superclevr": "scenes:superclevr?rows=100&seed=105&layout=grid&objects=1-8&size=160x160",
    "more_objects": "scenes:clevr?rows=100&seed=106&layout=grid&objects=9-12",
    "color": "scenes:clevr?rows=100&seed=107&layout=grid&objects=1-4&family=query_color",
}
min_pixels = 12544
max_pixels = 12544  # 112 x 112, as in training
max_prompt_length = 128
max_completion_length = 72  # room for lists of 12 objects
page_rows = 0
score_workers = 0
