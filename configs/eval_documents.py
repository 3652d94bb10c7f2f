# Charts, documents and scene text at a resolution at which pages can be read.
# Hardware: one GPU with 80 GB for models of 2 to 7 B. Not yet run by us on a GPU. A killed run goes on with
# the same command.
#   python eval.py configs/eval_documents.py --model=Qwen/Qwen2.5-VL-3B-Instruct,out/own/step-000100
# Without thinking, as most published figures are made:
#   python eval.py configs/eval_documents.py --model=... --template=direct --out_dir=out/direct
out_dir = "out/eval_documents"
bench = "chartqa,docvqa,infovqa,textvqa"
temperature = 0.0
max_pixels = 4014080  # 5,120 visual tokens: a page of 1,700 x 2,200 pixels stays readable
max_prompt_length = 6144
batch_rows = 256
page_rows = 100
