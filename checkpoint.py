"""Checkpoints: the folder of a run, exports that transformers and vLLM load, and the state from which a killed run goes on.

out_dir/config.json           the knobs of the run
out_dir/step-000100/          an export: weights, tokenizer, processor
out_dir/resume/step-000100/   everything needed to go on: weights, optimizer, random states, position in the data
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

# Knobs that may change when a run is resumed: they do not touch what the steps so far have computed.
FREE_KNOBS = (
    "steps",
    "resume",
    "keep",
    "trackers",
    "thumbnails",
    "log_interval",
    "save_interval",
    "eval_interval",
    "show_interval",
)


def check_out_dir(out_dir: str, config: dict, resume: bool, rank: int) -> None:
    """Write config.json, or refuse to go on in a folder that another config made. ALL RANKS."""
    path = Path(out_dir, "config.json")
    if path.exists():
        before = json.loads(path.read_text())
        now = json.loads(json.dumps(config))  # tuples become lists, as in the file
        differs = [k for k in now if k in before and k not in FREE_KNOBS and before[k] != now[k]]
        if resume and differs:
            k = differs[0]
            raise SystemExit(
                f"out_dir: '{out_dir}' holds a run with {k}={before[k]!r}, now it is {now[k]!r}; "
                "use another --out_dir, or --resume=False to start over"
            )
        if not resume and rank == 0:
            for old in [*Path(out_dir).glob("step-*"), Path(out_dir, "resume")]:
                shutil.rmtree(old, ignore_errors=True)
            for name in ("metrics.jsonl", "rollouts.jsonl"):
                Path(out_dir, name).unlink(missing_ok=True)
    torch.distributed.barrier()
    if rank == 0:
        try:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=1))
        except OSError as error:
            raise SystemExit(
                f"out_dir: cannot write to '{out_dir}' ({error.strerror}); name another folder with --out_dir"
            ) from error


def full_state(model, zero_stage: int):
    """(name, tensor) pairs of all weights, one at a time; under ZeRO-3 each is gathered from the ranks. ALL RANKS.

    A generator on purpose: gathering a 7B model whole would need its size again on every GPU. Tied weights come under
    each of their names: vLLM keeps a separate (packed) lm_head on CPUs and would go on with the old one.
    LoRA comes merged, under the names of the model without it: W + alpha / rank * B A.
    """
    import deepspeed

    adapted = {
        name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")
    }
    for name, p in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        layer = adapted.get(name.removesuffix(".base_layer.weight"))
        parts = [p] if layer is None else [p, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        with deepspeed.zero.GatheredParameters(parts, enabled=zero_stage == 3):
            weight = (
                p.data if layer is None else p.data + layer.get_delta_weight("default").detach().to(p.dtype)
            )
            yield name.replace(".base_layer", ""), weight


def export(model, processor, path: Path, zero_stage: int, rank: int) -> None:
    """Write a Hugging Face checkpoint folder that transformers and vLLM load. ALL RANKS; only rank 0 writes. Atomic by rename."""
    state, untied = {}, {name.replace(".base_layer", "") for name, _ in model.named_parameters()}
    for name, tensor in full_state(model, zero_stage):
        if rank == 0 and name in untied:
            state[name] = tensor.detach().to("cpu", copy=True)
    if rank == 0:
        temporary = path.with_name(path.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=state)
        processor.save_pretrained(temporary)
        replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Move a complete folder to its place; at no time is there a half-written one under the final name."""
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def save_resume(engine, out_dir: str, loop: dict, rank: int) -> None:
    """Everything needed to go on, in out_dir/resume/step-N: ZeRO shards, random states, `loop`. ALL RANKS. Removes older ones."""
    folder = Path(out_dir, "resume")
    final, temporary = folder / f"step-{loop['step']:06d}", folder / f"step-{loop['step']:06d}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag="state", save_latest=False)
    randoms = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    randoms |= {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    torch.save({"random": randoms, "loop": loop}, temporary / f"rank-{rank:05d}.pt")
    torch.distributed.barrier()
    if rank == 0:
        replace(temporary, final)
        for old in folder.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    torch.distributed.barrier()


def load_resume(engine, out_dir: str, rank: int, world: int) -> dict | None:
    """Restore the newest complete state under out_dir/resume and return its `loop`; None if there is none. ALL RANKS."""
    done = sorted(p for p in Path(out_dir, "resume").glob("step-*") if p.suffix != ".tmp")
    if not done:
        return None
    saved = len(list(done[-1].glob("rank-*.pt")))
    if saved != world:
        raise SystemExit(
            f"resume: '{done[-1]}' was written by {saved} process(es), this run has {world}; start it with as many"
        )
    loaded, _ = engine.load_checkpoint(str(done[-1]), tag="state")
    if loaded is None:
        raise SystemExit(
            f"resume: '{done[-1]}' could not be loaded; remove it, or start over with --resume=False"
        )
    state = torch.load(done[-1] / f"rank-{rank:05d}.pt", weights_only=False)
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])
    torch.set_rng_state(state["random"]["torch"])
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return state["loop"]


def save_all(
    engine, model, processor, out_dir: str, loop: dict, zero_stage: int, rank: int, keep: int
) -> None:
    """Resume state and exported checkpoint step-N; the `keep` newest exports stay. SystemExit, one sentence, if the disk is full."""
    path = Path(out_dir, f"step-{loop['step']:06d}")
    try:
        save_resume(engine, out_dir, loop, rank)
        export(model, processor, path, zero_stage, rank)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch.save reports a full disk as RuntimeError, safetensors as OSError
        complete = sorted(p.name for p in Path(out_dir, "resume").glob("step-*") if p.suffix != ".tmp")
        raise SystemExit(
            f"save: writing '{path}' failed ({str(error).splitlines()[0][:160]}); free some space and run the same command "
            f"again: it goes on from {complete[-1] if complete else 'the start'}"
        ) from error
    if rank == 0 and keep > 0:
        for old in sorted(p for p in Path(out_dir).glob("step-*") if p.suffix != ".tmp")[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def truncate_log(path: str, step: int) -> None:
    """Drop the lines of steps that the resumed run will do again, and a last line that was cut off in mid-write."""
    path = Path(path)
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except json.JSONDecodeError:
            print(f"resume: dropped an incomplete line of {path}", file=sys.stderr)
    path.write_text("".join(line + "\n" for line in kept))
