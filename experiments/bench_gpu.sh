#!/usr/bin/env bash
# The GPU measurements of docs/speed.md, about half an hour on one H100 or H200. Models of Qwen's published
# shapes with random weights, CLEVR-sized images (480 x 320), 16 prompts x 8 completions x 128 tokens, beta
# 0.04, vLLM, TRL in turns with ours.
#
#     bash setup.sh && .venv/bin/pip install -r experiments/requirements-trl.txt
#     bash experiments/bench_gpu.sh
#     PEER=none bash experiments/bench_gpu.sh          # ours alone
#     DEVICE=cpu bash experiments/bench_gpu.sh         # a rehearsal without a GPU: a tiny model, little work
#
# Each line writes its table to out/bench_gpu/NAME.txt; the last line there is JSON. A line that fails is
# named, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."
out=out/bench_gpu
mkdir -p "$out"
python=${PYTHON:-.venv/bin/python}
failed=()

work=(
  --device=cuda --dtype=bfloat16 --rollout=vllm
  --prompts=16 --group=8 --tokens=128 --image=480 --image_height=320
  --steps=6 --warmup=2 --rounds=3
  --peer="${PEER:-trl}" --peer_batch=16 '--peer_flags={"gradient_checkpointing": true}'
)
rehearsal=() # after the flags of a line: the last flag of a name counts
if [ "${DEVICE:-cuda}" = cpu ]; then
  rehearsal=(
    --device=cpu --dtype=float32 --rollout=hf --shape= --hidden=64 --layers=2
    --prompts=2 --group=4 --tokens=8 --image=112 --image_height=56
    --steps=3 --warmup=1 --rounds=1 --peer_batch=4
  )
fi

bench() { # NAME, then flags of experiments/bench.py
  local name=$1
  shift
  echo "== $name: $*"
  if "$python" -m experiments.bench "${work[@]}" "$@" "${rehearsal[@]}" --out_dir="$out/work" \
    > "$out/$name.txt" 2> "$out/$name.err"; then
    sed -n '/parameters,/,$p' "$out/$name.txt" | sed '$d'
  else
    failed+=("$name")
    echo "failed, see $out/$name.err"
    tail -3 "$out/$name.err"
  fi
}

# speed beside TRL. Full training of 3B with its reference takes 77 of the 85 GB of one card, so vLLM gets
# what it needs and no more; python -m experiments.limit shows the limit that each line is a multiple of
save="--grad_checkpointing=True"
bench 2b --shape=qwen2_vl_2b --flags="$save"
bench 3b --shape=qwen2_5_vl_3b --flags="$save --freeze_vision=True --vllm_gpu_memory=0.2"

# what each choice is worth, ours alone
alone="--peer=none --rounds=1"
bench 2b_keep     --shape=qwen2_vl_2b $alone --flags="--grad_checkpointing=False"
bench 2b_awake    --shape=qwen2_vl_2b $alone --flags="$save --vllm_gpu_memory=0.2 --vllm_sleep=False"
bench 2b_sdpa     --shape=qwen2_vl_2b $alone --flags="$save --attn=sdpa"
bench 2b_compiled --shape=qwen2_vl_2b $alone --flags="$save --compile_layers=True"
bench 2b_no_kl    --shape=qwen2_vl_2b $alone --flags="$save" --beta=0.0

# what fits: 2B with the optimizer in CPU memory in 40 GB, LoRA in 24 GB, 7B by LoRA in 80 GB
# ("most that torch held" and "GPU memory in use" of the table)
small="--vllm_gpu_memory=0.15 --micro_tokens=4096"
bench 2b_40gb --shape=qwen2_vl_2b   $alone --flags="$save $small --zero_stage=2 --offload_optimizer=True"
bench 2b_24gb --shape=qwen2_vl_2b   $alone --flags="$save $small --lora_rank=16"
bench 7b_lora --shape=qwen2_5_vl_7b $alone --flags="$save --vllm_gpu_memory=0.35 --lora_rank=16"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
