# R1-V's distillation: 10,000 counting questions about CLEVR-CoGenT A, reasoned through by DeepSeek-R1 from
# the scene in words.
# Hardware: none to speak of; hours, by the API. Cost: 10,000 x (500 tokens in + 1,500 out), tens of
# dollars. Not yet run by us.
# Expected: R1-V published 37,800 kept traces (several rounds). Files: CLEVR_CoGenT_v1.0.zip of CLEVR's
# page, in downloads/.
#   DEEPSEEK_API_KEY=... python distill.py configs/distill.py
# and then, on 8 GPUs:
#   torchrun --nproc_per_node=8 train_sft.py configs/sft_clevr.py --data_source=out/distill_clevr/dataset
out_dir = "out/distill_clevr"
_scenes = "downloads/CLEVR_CoGenT_v1.0/scenes"
_questions = "downloads/CLEVR_CoGenT_v1.0/questions"
train = f"{_scenes}/CLEVR_trainA_scenes.json+{_questions}/CLEVR_trainA_questions.json"
val_a = f"{_scenes}/CLEVR_valA_scenes.json+{_questions}/CLEVR_valA_questions.json"
val_b = f"{_scenes}/CLEVR_valB_scenes.json+{_questions}/CLEVR_valB_questions.json"
# once per image "How many items ...?", beside the file's own "how many" and "number" questions
families = "count_all"
train_limit = 10000
val_limit = 5000
model = "deepseek-reasoner"
base_url = "https://api.deepseek.com"
api_key_env = "DEEPSEEK_API_KEY"
max_tokens = 4096
samples = 1
concurrency = 16
price_in = 0.55  # DeepSeek's list prices of early 2025, dollars per million tokens: look up today's
price_out = 2.19
