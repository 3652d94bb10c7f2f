# Every benchmark, of an untrained and a trained checkpoint side by side: what was learnt, what was lost.
# (Charts and documents are better read with configs/eval_documents.py, which has larger images.)
# Hardware: 8 x 80 GB for models of 2 to 7 B. Not yet run by us on 8 GPUs. A killed run goes on with the
# same command.
# Download the benchmarks first (docs/benchmarks.md); name fewer with --bench=superclevr200,geoqa_test.
#   torchrun --nproc_per_node=8 eval.py configs/eval.py \
#     --model=Qwen/Qwen2.5-VL-3B-Instruct,out/clevr/step-000100
# The answer-only prompt, the baseline that R1-V's counting result has to beat:
#   torchrun --nproc_per_node=8 eval.py configs/eval.py --model=Qwen/Qwen2-VL-2B-Instruct \
#     --template=direct --out_dir=out/direct
out_dir = "out/eval"
bench = "all"
template = "auto"  # each benchmark's own prompt and limit on the completion, as in the original scripts
temperature = 0.0
max_pixels = (
    1605632  # 2,048 visual tokens; enough to leave RefCOCO, SuperCLEVR, CLEVR and GeoQA images at their size
)
max_prompt_length = 12288  # MMMU has up to 7 images
batch_rows = 256
