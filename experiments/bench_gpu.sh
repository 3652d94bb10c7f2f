#!/usr/bin/env bash
# The GPU measurements of docs/speed.md, about half an hour on one H100 or H200. Models of Qwen's published shapes with random
# weights, CLEVR-sized images (480 x 320), 16 prompts x 8 completions x 128 tokens, beta 0.04, vLLM, TRL in turns with ours.
#
#     bash setup.sh && .venv/bin/pip install -r experiments/requirements-trl.txt && bash experiments/bench_gpu.sh
#     PEER=none bash experiments/bench_gpu.sh          # ours alone
#     DEVICE=cpu bash experiments/bench_gpu.sh         # a rehearsal without a GPU: every line once, on a tiny model and with little work
#
# Each line writes its table to out/bench_gpu/NAME.txt; the last line there is JSON. A line that fails is named, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."
out=out/bench_gpu; mkdir -p "$out"
python=${PYTHON:-.venv/bin/python}
failed=()

bench() { # NAME, then flags of experiments/bench.py
  local name=$1; shift
  local work=(--device=cuda --dtype=bfloat16 --rollout=vllm --prompts=16 --group=8 --tokens=128 --image=480 --image_height=320
              --steps=6 --warmup=2 --rounds=3 --peer="${PEER:-trl}" --peer_batch=16 '--peer_flags={"gradient_checkpointing": true}')
  local small=()
  if [ "${DEVICE:-cuda}" = cpu ]; then # the last flag of a name counts
    small=(--device=cpu --dtype=float32 --rollout=hf --shape= --hidden=64 --layers=2 --prompts=2 --group=4 --tokens=8 --image=112
           --image_height=56 --steps=3 --warmup=1 --rounds=1 --peer_batch=4)
  fi
  echo "== $name: $*"
  if "$python" -m experiments.bench "${work[@]}" "$@" "${small[@]}" --out_dir="$out/work" > "$out/$name.txt" 2> "$out/$name.err"; then
    sed -n '/parameters,/,$p' "$out/$name.txt" | sed '$d'
  else
    failed+=("$name"); echo "failed, see $out/$name.err"; tail -3 "$out/$name.err"
  fi
}

# speed beside TRL
bench 2b          --shape=qwen2_vl_2b   --flags="--grad_checkpointing=True"
bench 3b          --shape=qwen2_5_vl_3b --flags="--grad_checkpointing=True"
# what each choice is worth, ours alone
bench 2b_keep     --shape=qwen2_vl_2b   --peer=none --rounds=1 --flags="--grad_checkpointing=False"
bench 2b_sdpa     --shape=qwen2_vl_2b   --peer=none --rounds=1 --flags="--grad_checkpointing=True --attn=sdpa"
bench 2b_compiled --shape=qwen2_vl_2b   --peer=none --rounds=1 --flags="--grad_checkpointing=True --compile_layers=True"
bench 2b_no_kl    --shape=qwen2_vl_2b   --peer=none --rounds=1 --beta=0.0 --flags="--grad_checkpointing=True"
# what fits: full fine-tuning of 2B in 40 GB, LoRA in 24 GB, 7B by LoRA in 80 GB ("most that torch held" and "GPU memory in use" of the table)
bench 2b_40gb     --shape=qwen2_vl_2b   --peer=none --rounds=1 --flags="--grad_checkpointing=True --vllm_gpu_memory=0.15 --micro_tokens=4096"
bench 2b_24gb     --shape=qwen2_vl_2b   --peer=none --rounds=1 --flags="--grad_checkpointing=True --vllm_gpu_memory=0.15 --micro_tokens=4096 --lora_rank=16"
bench 7b_lora     --shape=qwen2_5_vl_7b --peer=none --rounds=1 --flags="--grad_checkpointing=True --vllm_gpu_memory=0.35 --lora_rank=16"
bench 7b_offload  --shape=qwen2_5_vl_7b --peer=none --rounds=1 --beta=0.0 --flags="--grad_checkpointing=True --vllm_gpu_memory=0.3 --offload_optimizer=True"

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
