"""The folder of a run: exports that transformers and vLLM load, the state from which a killed run goes on.

out_dir/config.json           the knobs of the run
out_dir/step-000100/          an export: weights, tokenizer, processor
out_dir/resume/step-000100/   what it goes on from: weights, optimizer, random states, place in the data
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

import common

# Knobs that may change when a run is resumed: they do not touch what the steps so far have computed.
FREE_KNOBS = {"steps", "resume", "keep", "trackers", "thumbnails"}
FREE_KNOBS |= {"log_interval", "save_interval", "eval_interval", "show_interval"}


# -----------------------------------------------------------------------------
# the folder of a run
# -----------------------------------------------------------------------------


def check_out_dir(out_dir: str, config: dict, resume: bool, rank: int) -> None:
    """Write config.json, or refuse to go on in a folder that another config made. ALL RANKS."""
    path = Path(out_dir, "config.json")
    if path.exists() and resume:
        before = json.loads(path.read_text())
        now = json.loads(json.dumps(config))  # tuples become lists, as in the file
        for knob, value in now.items():
            if knob in before and knob not in FREE_KNOBS and before[knob] != value:
                raise SystemExit(
                    f"out_dir: '{out_dir}' holds a run with {knob}={before[knob]!r}, now it is {value!r}; "
                    "use another --out_dir, or --resume=False to start over"
                )
    if path.exists() and not resume and rank == 0:
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


def complete(folder: Path) -> list[Path]:
    """The step-000100 folders in there, oldest first, without those that a killed run left half-written."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def replace(temporary: Path, path: Path) -> None:
    """Move a complete folder to its place; at no time is there a half-written one under the final name."""
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


# -----------------------------------------------------------------------------
# export
# -----------------------------------------------------------------------------


def full_state(model, zero_stage: int):
    """(name, tensor) pairs of all weights, one at a time; under ZeRO-3 gathered from the ranks. ALL RANKS.

    A generator on purpose: gathering a 7B model whole would need its size again on every GPU. Tied weights
    come under each of their names: vLLM keeps a separate (packed) lm_head on CPUs and would go on with the
    old one. LoRA comes merged, under the names of the model without it: W + alpha / rank * B A.
    """
    import deepspeed

    adapted = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            adapted[name] = module
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        layer = adapted.get(name.removesuffix(".base_layer.weight"))
        sharded = [parameter]
        if layer is not None:
            sharded += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        with deepspeed.zero.GatheredParameters(sharded, enabled=zero_stage == 3):
            weight = parameter.data
            if layer is not None:
                weight = weight + layer.get_delta_weight("default").detach().to(weight.dtype)
            yield name.replace(".base_layer", ""), weight


def export(model, processor, path: Path, zero_stage: int, rank: int) -> None:
    """Write a checkpoint folder that transformers and vLLM load, whole or not at all. ALL RANKS."""
    untied = {name.replace(".base_layer", "") for name, _ in model.named_parameters()}
    state = {}
    for name, tensor in full_state(model, zero_stage):
        if rank == 0 and name in untied:
            state[name] = tensor.detach().to("cpu", copy=True)
    if rank == 0:
        temporary = path.with_name(path.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=state)
        processor.save_pretrained(temporary)
        replace(temporary, path)


# -----------------------------------------------------------------------------
# save and resume
# -----------------------------------------------------------------------------


def save(engine, model, processor, stream, step: int, config: dict, rank: int) -> None:
    """Resume state and exported checkpoint of this step; the `keep` newest exports stay. ALL RANKS.

    SystemExit, one sentence, if the disk is full.
    """
    out_dir = config["out_dir"]
    path = Path(out_dir, f"step-{step:06d}")
    try:
        save_resume(engine, stream, step, out_dir, rank)
        export(model, processor, path, config["zero_stage"], rank)
    # torch.save reports a full disk as RuntimeError, safetensors as OSError
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0][:160]
        states = complete(Path(out_dir, "resume"))
        newest = states[-1].name if states else "the start"
        raise SystemExit(
            f"save: writing '{path}' failed ({why}); free some space and run the same command again: "
            f"it goes on from {newest}"
        ) from error
    if rank == 0 and config["keep"] > 0:
        for old in complete(Path(out_dir))[: -config["keep"]]:
            shutil.rmtree(old, ignore_errors=True)


def save_resume(engine, stream, step: int, out_dir: str, rank: int) -> None:
    """out_dir/resume/step-N: ZeRO shards, random states, place in the data. Older ones go. ALL RANKS."""
    folder = Path(out_dir, "resume")
    final = folder / f"step-{step:06d}"
    temporary = folder / f"step-{step:06d}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag="state", save_latest=False)
    randoms = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        randoms["cuda"] = torch.cuda.get_rng_state()
    cursors = common.all_gather(stream.cursor)
    skipped = common.all_gather(stream.skipped)
    loop = {"step": step, "cursors": cursors, "skipped": skipped}
    torch.save({"random": randoms, "loop": loop}, temporary / f"rank-{rank:05d}.pt")
    torch.distributed.barrier()
    if rank == 0:
        replace(temporary, final)
        for old in folder.iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    torch.distributed.barrier()


def load_resume(engine, stream, out_dir: str, rank: int, world: int) -> int:
    """Restore the newest state under out_dir/resume; returns its step, 0 if there is none. ALL RANKS."""
    states = complete(Path(out_dir, "resume"))
    if not states:
        return 0
    newest = states[-1]
    saved = len(list(newest.glob("rank-*.pt")))
    if saved != world:
        raise SystemExit(
            f"resume: '{newest}' was written by {saved} process(es), this run has {world}; "
            "start it with as many"
        )
    loaded, _ = engine.load_checkpoint(str(newest), tag="state")
    if loaded is None:
        raise SystemExit(
            f"resume: '{newest}' could not be loaded; remove it, or start over with --resume=False"
        )
    state = torch.load(newest / f"rank-{rank:05d}.pt", weights_only=False)
    randoms = state["random"]
    random.setstate(randoms["python"])
    np.random.set_state(randoms["numpy"])
    torch.set_rng_state(randoms["torch"])
    if "cuda" in randoms:
        torch.cuda.set_rng_state(randoms["cuda"])
    loop = state["loop"]
    stream.cursor = loop["cursors"][rank]
    if "skipped" in loop:  # states of train_sft.py had no such entry at first
        stream.skipped = loop["skipped"][rank]
    return loop["step"]


def truncate_logs(out_dir: str, step: int) -> None:
    """Drop from the logs the steps that the resumed run will do again, and lines cut off in mid-write."""
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        path = Path(out_dir, name)
        if not path.exists():
            continue
        kept = []
        for line in path.read_text().splitlines():
            try:
                # a run that starts anew writes its evaluation at step 0 again
                if step > 0 and json.loads(line).get("step", 0) <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                print(f"resume: dropped an incomplete line of {path}", file=sys.stderr)
        path.write_text("".join(line + "\n" for line in kept))
