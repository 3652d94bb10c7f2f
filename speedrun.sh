#!/usr/bin/env bash
# From nothing to a policy that GRPO made better, on a laptop: about 7 minutes on 2 CPU cores.
#   bash speedrun.sh            every stage whose result exists is skipped
#   FRESH=1 bash speedrun.sh    all stages again (setup excepted)
# Each stage is a command you could type yourself; it is printed before it runs.
set -euo pipefail
cd "$(dirname "$0")"
out=out/speedrun
start=out/tiny_sft/step-000450 trained=out/tiny_grpo/step-000160 # the last checkpoints of configs/tiny_sft.py and configs/tiny.py
mkdir -p $out/seconds
if [ -n "${FRESH:-}" ]; then rm -rf $out out/tiny out/tiny_sft out/tiny_grpo; mkdir -p $out/seconds; fi

# stage NAME RESULT COMMAND...: run the command unless RESULT exists; note the seconds it took
stage() {
  local name=$1 result=$2 t
  shift 2
  if [ -n "$result" ] && [ -e "$result" ]; then
    printf '\n== %s: %s exists, skipped\n' "$name" "$result"
    return
  fi
  printf '\n== %s: %s\n' "$name" "$*"
  t=$SECONDS
  "$@"
  echo $((SECONDS - t)) > "$out/seconds/$name"
}

stage setup "" env CPU="${CPU:-1}" bash setup.sh # the tiny model needs no GPU
source .venv/bin/activate
# a process for each core: models this small gain nothing from several threads
cores=$(python -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
processes=1 # 2, 4 or 8, which 16 prompts and 32 rows can be divided among
for n in 2 4 8; do if [ "$cores" -ge $n ]; then processes=$n; fi; done
run="torchrun --nproc_per_node=$processes"
export CUDA_VISIBLE_DEVICES="" # and runs in float32 on the CPU everywhere, so that the numbers are comparable

stage model out/tiny/config.json python qwen.py out/tiny
stage sft $start/config.json $run train_sft.py configs/tiny_sft.py
stage eval_before $out/before/superclevr.json $run eval.py configs/tiny_eval.py --model=$start --out_dir=$out/before
stage grpo $trained/config.json $run train_grpo.py configs/tiny.py
stage eval_after $out/after/superclevr.json $run eval.py configs/tiny_eval.py --model=$trained --out_dir=$out/after
stage report "" python report.py out/tiny_grpo

python - $out <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
names = {"clevr": "CLEVR scenes (in distribution)", "superclevr": "vehicles (out of distribution)"}
table = {when: {name: json.loads((out / when / f"{name}.json").read_text()) for name in names} for when in ("before", "after")}
order = ("setup", "model", "sft", "eval_before", "grpo", "eval_after", "report")
seconds = {s: int((out / "seconds" / s).read_text()) for s in order if (out / "seconds" / s).exists()}
summary = {when: {name: t["accuracy"] for name, t in table[when].items()} for when in table} | {"seconds": seconds}
(out / "summary.json").write_text(json.dumps(summary, indent=1))

print(f"\n{'accuracy, greedy, 95 % interval':<34}{'after the cold start':>26}{'after GRPO':>26}")
for name, title in names.items():
    cells = [f"{t['accuracy']:.1%} ({t['interval'][0]:.1%} - {t['interval'][1]:.1%})" for t in (table["before"][name], table["after"][name])]
    print(f"{title:<34}{cells[0]:>26}{cells[1]:>26}   n = {table['after'][name]['n']}")
print("\nseconds: " + ", ".join(f"{k} {v}" for k, v in seconds.items()) + f", in all {sum(seconds.values())}")
print(f"curves:   out/tiny_grpo/curves.png\nrollouts: out/tiny_grpo/rollouts.html\nnumbers:  {out}/summary.json")
PY
