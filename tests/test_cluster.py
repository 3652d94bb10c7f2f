"""The files for several machines: the command line that Slurm gets, checked without Slurm."""

import os
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "cluster" / "train.sbatch"


def test_the_command_of_four_machines(tmp_path):
    scontrol = tmp_path / "scontrol"  # Slurm's own, which spells out node[03-06]
    scontrol.write_text("#!/bin/sh\nprintf 'node03\\nnode04\\nnode05\\nnode06\\n'\n")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    job = {"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77"}
    job |= {"SLURM_JOB_NODELIST": "node[03-06]", "DRY_RUN": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "train_grpo.py", "configs/clevr.py", "--steps=5"]
    words = subprocess.run(
        command, env=os.environ | job, capture_output=True, text=True, check=True
    ).stdout.split()
    assert words[0] == "srun" and words[-3:] == command[2:]
    assert {"--nnodes=4", "--nproc_per_node=8", "--rdzv_endpoint=node03:29500", "--rdzv_id=77"} <= set(words)
    assert "--shutdown-timeout=600" in words  # a save takes longer than torchrun's 30 seconds


def test_without_a_script_it_says_what_to_name():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "train_grpo.py configs/clevr.py" in done.stderr


def test_the_image_installs_the_list_for_gpus():
    lines = (ROOT / "cluster" / "Dockerfile").read_text()
    assert "install --no-cache-dir -r requirements.txt" in lines and "python3-dev" in lines
