# Test scenes of the study: looked at once, with the last checkpoint of each run.
#   python eval.py configs/study/test.py --model=out/study/cold/step-000900
dtype = "float32"
sources = {
    "clevr": "scenes:clevr?rows=500&seed=203&layout=grid&objects=1-8",
    "cogent_b": "scenes:cogent_b?rows=500&seed=204&layout=grid&objects=1-8",
    "superclevr": "scenes:superclevr?rows=500&seed=205&layout=grid&objects=1-8&size=160x160",
    "more_objects": "scenes:clevr?rows=500&seed=206&layout=grid&objects=9-12",
    "color": "scenes:clevr?rows=500&seed=207&layout=grid&objects=1-4&family=query_color",
}
min_pixels = 12544
max_pixels = 12544  # 112 x 112, as in training
max_prompt_length = 128
max_completion_length = 72  # room for lists of 12 objects
page_rows = 0
score_workers = 0
