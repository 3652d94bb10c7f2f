"""The folder of a run: exports that transformers and vLLM load, the state from which a killed run goes on.

out_dir/config.json           the knobs of the run
out_dir/step-000100/          an export: weights, and the other files of the base model as they were
out_dir/resume/step-000100/   what the run goes on from; the two newest are kept
    state/                    DeepSpeed's files: weights, optimizer
    rank-00000.pt             random states of a process
    loop.json                 step, place in the data, knobs
    manifest.json             size and SHA-256 of each of these files

Nothing here is ever half-written under its final name: a folder or file is written beside, flushed to the
disk and renamed. The state comes first, then the export; a run that was killed in between writes the export
when it starts again. States hold JSON, tensors and a few plain classes of DeepSpeed's; loading runs no code.
"""

import fcntl
import hashlib
import json
import math
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import common

SCRIPT = Path(sys.argv[0]).name  # train_grpo.py or train_sft.py
KEEP_STATES = 2  # resume states that are kept: the newest, and the one before in case a disk has spoilt it

# fmt: off
# Knobs that may change when a run is resumed: they do not touch what the steps so far have computed, and the
# steps to come take them as they are now.
FREE_KNOBS = {
    "out_dir", "steps", "resume", "keep", "trackers", "thumbnails",
    "log_interval", "save_interval", "eval_interval", "show_interval",
    "eval_source", "eval_split", "eval_rows", "eval_metric",
    "learning_rate", "lr_schedule", "warmup_steps",
    "attn", "compile_layers", "grad_checkpointing", "micro_tokens", "reward_workers",
    "vllm_gpu_memory", "vllm_sleep",
}
# fmt: on


# -----------------------------------------------------------------------------
# files: whole or not at all
# -----------------------------------------------------------------------------


def remove(folder: Path) -> None:
    """Remove the folder; at no time is there a half-removed one under its name."""
    temporary = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(folder, temporary)
    shutil.rmtree(temporary)


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a folder whose files are complete and flushed its final name."""
    common.flush(temporary)
    if final.exists():
        remove(final)
    os.replace(temporary, final)
    common.flush(final.parent)


def complete(folder: Path) -> list[Path]:
    """The step-000100 folders in there, oldest first: those that this program has made, and no others."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """100 of step-000100."""
    return int(path.name.removeprefix("step-"))


def fingerprint(path: Path) -> dict:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_manifest(folder: Path, files: list[Path], rank: int = 0, world: int = 1) -> None:
    """folder/manifest.json with the fingerprints of these files, and all of it flushed. ALL RANKS."""
    mine = {}
    for path in files[rank::world]:
        common.flush(path)
        mine[str(path.relative_to(folder))] = fingerprint(path)
    shares = common.all_gather(mine) if world > 1 else [mine]
    if rank == 0:
        prints = {name: share[name] for share in shares for name in share}
        common.replace_file(folder / "manifest.json", json.dumps(prints, indent=1, sort_keys=True))


def damage(folder: Path, rank: int = 0, world: int = 1) -> str:
    """The first file that is not as folder/manifest.json has it, and why; "" if all are.

    With `rank` and `world` in this rank's share of the files.
    """
    prints = read_json(folder / "manifest.json")
    try:
        wanted = [(name, int(prints[name]["bytes"]), prints[name]["sha256"]) for name in sorted(prints)]
    except (ValueError, TypeError, KeyError):
        wanted = []
    if not wanted:
        return "manifest.json is missing or cannot be read"
    for name, size, digest in wanted[rank::world]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if fingerprint(path)["sha256"] != digest:
            return f"{name} is not what was written: its checksum differs"
    return ""


# -----------------------------------------------------------------------------
# the folder at the start of a run
# -----------------------------------------------------------------------------


def open_folder(config: dict, rank: int, say=print) -> None:
    """Make out_dir ours until this process ends, or refuse. ALL RANKS.

    SystemExit, one sentence, if it cannot be written to, if it holds the model, if another run is at work in
    it, or if it holds a run that these knobs do not continue.
    """
    if rank == 0:
        out_dir = Path(config["out_dir"])
        refuse_model(out_dir, config["model"])
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            lock(out_dir, say)
            tempfile.TemporaryFile(dir=out_dir).close()  # may we write there?
            for left in [*out_dir.glob("step-*.tmp"), *out_dir.glob("resume/step-*.tmp")]:
                shutil.rmtree(left)  # of a run that was killed
            if config["resume"]:
                compare_knobs(out_dir, config, say)
        except OSError as error:
            raise SystemExit(
                f"out_dir: cannot write to '{out_dir}' ({error.strerror}); name another folder with --out_dir"
            ) from error
    torch.distributed.barrier()


def refuse_model(out_dir: Path, model: str) -> None:
    """SystemExit if out_dir is a model's folder, or the model one of its exports, which `keep` may remove."""
    exports = [path.resolve() for path in complete(out_dir)]
    if is_model(out_dir) or Path(model).resolve() in exports:
        raise SystemExit(
            f"out_dir: '{out_dir}' holds a model, whose files a run must not touch; "
            "name another folder with --out_dir"
        )


def is_model(folder: Path) -> bool:
    """Is there the config.json of a model, and not that of a run?"""
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "model_type" in config


def lock(out_dir: Path, say) -> None:
    """Hold the folder until this process ends: the operating system lets go of it, also after a kill."""
    folder = os.open(out_dir, os.O_RDONLY)  # stays open
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"out_dir: another run is writing to '{out_dir}'; wait for it, stop it, or name another --out_dir"
        ) from None
    except OSError as error:  # some network file systems have no locks
        say(f"out_dir: '{out_dir}' cannot be locked ({error.strerror}); let no second run write to it")


def compare_knobs(out_dir: Path, config: dict, say) -> None:
    """Say which knobs differ from those of the run in out_dir; SystemExit if one may not."""
    over = "use another --out_dir, or --resume=False to start over"
    states, exports = complete(out_dir / "resume"), complete(out_dir)
    has_logs = (out_dir / "metrics.jsonl").exists() and not (out_dir / "config.json").exists()
    if not states and (exports or has_logs):
        what = "checkpoints" if exports else "logs"
        raise SystemExit(f"out_dir: '{out_dir}' holds {what} of a run and nothing to resume it from; {over}")
    before = run_in(out_dir, states)
    if before is None:
        return
    if before.get("script", SCRIPT) != SCRIPT:
        raise SystemExit(f"out_dir: '{out_dir}' holds a run of {before['script']}, not of {SCRIPT}; {over}")
    now = json.loads(json.dumps(config))  # tuples become lists, as in the file
    changed = []
    for knob, value in now.items():
        old = before["config"].get(knob, value)
        if old == value or knob in ("out_dir", "resume"):
            continue
        if isinstance(value, str) and isinstance(old, str) and old.rstrip("/") == value.rstrip("/"):
            continue
        if knob not in FREE_KNOBS:
            start = f"; its policy is --model={exports[-1]}" if exports else ""
            raise SystemExit(
                f"out_dir: '{out_dir}' holds a run with {knob}={old!r}, now it is {value!r}; {over}{start}"
            )
        changed.append(f"{knob} {old!r} -> {value!r}")
    if changed:
        say(f"resume: changed since this run was saved: {', '.join(changed)}")


def run_in(out_dir: Path, states: list[Path]) -> dict | None:
    """{"config", "script"} of the run in out_dir, from its newest state, else from config.json.

    None if there is no run; SystemExit if its config.json cannot be read and there is no state.
    """
    for state in reversed(states):
        loop = read_json(state / "loop.json")
        if isinstance(loop, dict) and isinstance(loop.get("config"), dict):
            return loop
    path = out_dir / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise SystemExit(
            f"out_dir: '{path}' is damaged, and there is no state to resume from; "
            "remove it, or use another --out_dir"
        )
    return {"config": config}


def read_json(path: Path):
    """What the file holds, None if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def check_room(net, config: dict, rank: int) -> None:
    """SystemExit if the disk has too little room for the states and exports that the run will write.

    bytes of an export = those of all weights; of a state = the same + 12 for each trained weight (Adam's two
    moments and a master copy, float32). One state more than is kept stands there while it is written, and one
    export more.
    """
    if rank != 0:
        return
    out_dir = Path(config["out_dir"])
    weights = [p for name, p in net.named_parameters() if ".lora_" not in name]
    export_bytes = sum(p.numel() * p.element_size() for p in weights)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    state_bytes = export_bytes + 12 * trained

    states, exports = complete(out_dir / "resume"), complete(out_dir)
    if not config["resume"]:
        states, exports = [], []  # they are removed first
    done = step_of(states[-1]) if states else 0
    ahead = max(0, config["steps"] - done)
    saves = math.ceil(ahead / config["save_interval"]) if config["save_interval"] else min(1, ahead)
    most_exports = config["keep"] or len(exports)
    more_states = min(saves, max(0, KEEP_STATES + 1 - len(states)))
    more_exports = min(saves, max(0, most_exports + 1 - len(exports)))
    needed = more_states * state_bytes + more_exports * export_bytes
    free = shutil.disk_usage(out_dir).free
    if needed > free:
        raise SystemExit(
            f"out_dir: '{out_dir}' has {free / 1e9:.2f} GB free, the run will write {needed / 1e9:.2f} GB: "
            f"{more_states} resume states of {state_bytes / 1e9:.2f} GB and {more_exports} exports of "
            f"{export_bytes / 1e9:.2f} GB; free some space, lower keep, or name another --out_dir"
        )


# -----------------------------------------------------------------------------
# export
# -----------------------------------------------------------------------------


def base_files(model: str) -> dict[str, bytes]:
    """{name: content} of the files of a checkpoint that are no weights: config, tokenizer, chat template ...

    Read at the start of a run, written to each export as they are. Training does not touch them, and files
    that this transformers has not rewritten are read by older ones, and by older vLLM, too.
    """
    folder = Path(model)
    if not folder.exists():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, local_files_only=True))  # where it was loaded from
    files = {}
    for path in sorted(folder.iterdir()):
        is_text = path.suffix in (".json", ".jinja", ".txt", ".model")
        is_ours = path.name == "manifest.json" or path.name.endswith(".index.json")
        if is_text and not is_ours and path.is_file():
            files[path.name] = path.read_bytes()
    return files


def with_dtype(config: bytes, dtype: str) -> bytes:
    """A model's config.json that says in which dtype its weights are; as it was if that is right already."""
    settings = json.loads(config)
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    named = [(part, key) for part in parts for key in ("torch_dtype", "dtype") if part.get(key)]
    if not named:
        named = [(settings, "torch_dtype")]
    if all(part.get(key) == dtype for part, key in named):
        return config
    for part, key in named:
        part[key] = dtype
    return json.dumps(settings, indent=2).encode()


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


def export(model, base: dict[str, bytes], path: Path, config: dict, rank: int) -> None:
    """Write a checkpoint folder that transformers and vLLM load, whole or not at all. ALL RANKS.

    base: the other files of the model that the run started from, see base_files.
    """
    from huggingface_hub import save_torch_state_dict
    from transformers.core_model_loading import revert_weight_conversion

    untied = {name.replace(".base_layer", "") for name, _ in model.named_parameters()}
    state = {}
    for name, tensor in full_state(model, config["zero_stage"]):
        if rank == 0 and name in untied:
            state[name] = tensor.detach().to("cpu", copy=True)
    if rank == 0:
        temporary = path.with_name(path.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        # under the names of the base model; not save_pretrained, which refuses some configs that it has read
        state = revert_weight_conversion(model, state)
        save_torch_state_dict(state, temporary, metadata={"format": "pt"})
        for name, content in base.items():
            if name == "config.json":
                content = with_dtype(content, config["dtype"])
            (temporary / name).write_bytes(content)
        # of the weights alone: whoever takes the export may edit the rest
        write_manifest(temporary, sorted(temporary.glob("*.safetensors")))
        for file in temporary.iterdir():
            common.flush(file)
        put_in_place(temporary, path)


# -----------------------------------------------------------------------------
# save
# -----------------------------------------------------------------------------


def save(engine, model, base: dict[str, bytes], stream, step: int, config: dict, rank: int) -> None:
    """Resume state and export of this step; the newest of both stay. ALL RANKS.

    SystemExit, one sentence, if the disk is full.
    """
    out_dir = Path(config["out_dir"])
    path = out_dir / f"step-{step:06d}"
    with full_disk_explained(path):
        save_state(engine, stream, step, config, rank)
        export(model, base, path, config, rank)
        if rank == 0:
            prune(out_dir, step, config["keep"])


def prune(out_dir: Path, step: int, keep: int) -> None:
    """Remove all states but the newest KEEP_STATES, all exports but the newest `keep` (0 = none).

    Those of later steps do not count as the newest: they are of a run that has gone back to an older state.
    Such states go, such exports stay.
    """
    states = complete(out_dir / "resume")
    kept = [state for state in states if step_of(state) <= step][-KEEP_STATES:]
    for state in states:
        if state not in kept:
            remove(state)
    exports = [old for old in complete(out_dir) if step_of(old) <= step]
    for old in exports[:-keep] if keep else []:
        remove(old)


@contextmanager
def full_disk_explained(path: Path):
    """SystemExit, one sentence, if writing the export `path`, its state or the logs beside it fails."""
    try:
        yield
    except Exception as error:
        if not is_disk_error(error):
            raise
        out_dir = path.parent
        for left in (out_dir / "resume" / f"{path.name}.tmp", out_dir / f"{path.name}.tmp"):
            shutil.rmtree(left, ignore_errors=True)  # gives back the room that it has taken
        why = (str(error) or type(error).__name__).splitlines()[0][:160]
        states = complete(out_dir / "resume")
        newest = states[-1].name if states else "the start"
        raise SystemExit(
            f"save: writing '{path}' failed ({why}); free some space and run the same command again: "
            f"it goes on from {newest}"
        ) from error


def is_disk_error(error: Exception) -> bool:
    """Did writing a file fail? torch.save says so by a RuntimeError, safetensors by an error of its own."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    return isinstance(error, RuntimeError) and "inline_container" in str(error)


def save_state(engine, stream, step: int, config: dict, rank: int) -> None:
    """out_dir/resume/step-N: weights and optimizer, random states, place in the data. ALL RANKS."""
    world = torch.distributed.get_world_size()
    final = Path(config["out_dir"], "resume", f"step-{step:06d}")
    temporary = final.with_name(final.name + ".tmp")
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag="state", save_latest=False)
    torch.save(random_states(), temporary / f"rank-{rank:05d}.pt")
    cursors = common.all_gather(stream.cursor)
    skipped = common.all_gather(stream.skipped)
    if rank == 0:
        for unused in temporary.glob("*.py"):
            unused.unlink()  # DeepSpeed's converters: a state holds no code
        loop = {"step": step, "world": world, "cursors": cursors, "skipped": skipped}
        loop |= {"script": SCRIPT, "config": config}
        (temporary / "loop.json").write_text(json.dumps(loop, indent=1))
    torch.distributed.barrier()
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    write_manifest(temporary, files, rank, world)
    if rank == 0:
        common.flush(temporary / "state")
        put_in_place(temporary, final)
    torch.distributed.barrier()


def random_states() -> dict:
    """The random generators of this process, as plain numbers and tensors."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


# -----------------------------------------------------------------------------
# resume
# -----------------------------------------------------------------------------


def resume(engine, model, base: dict[str, bytes], stream, config: dict, rank: int, say=print) -> int:
    """Restore the newest state that is whole, and write what the run that was killed had still to write.

    Returns its step, 0 if there is none or the knob `resume` is False: then the run in out_dir is removed.
    From here on out_dir is a run with these knobs: config.json.
    SystemExit, one sentence, if there are states and all are damaged, or if they are of another number of
    processes. ALL RANKS.
    """
    out_dir = Path(config["out_dir"])
    if rank == 0 and not config["resume"]:
        start_over(out_dir)
    torch.distributed.barrier()
    step = 0
    states = complete(out_dir / "resume")
    whole = newest_whole(states, rank, say)
    if whole:
        step = load_state(engine, stream, whole, rank)
        say(f"resume: step {step} of {out_dir}")
    path = out_dir / whole.name if whole else out_dir / "config.json"
    with full_disk_explained(path):
        if whole and not path.exists():
            say(f"resume: writing {path}, which the run that was killed had still to write")
            export(model, base, path, config, rank)
        if rank == 0:
            prune(out_dir, step, config["keep"])
            has_rollouts = "group_size" in config
            truncate_logs(out_dir, step, ["metrics.jsonl", "rollouts.jsonl"][: 1 + has_rollouts])
            common.replace_file(out_dir / "config.json", json.dumps(config, indent=1))
    torch.distributed.barrier()
    return step


def newest_whole(states: list[Path], rank: int, say) -> Path | None:
    """The newest of the states whose files are as they were written, None without states. ALL RANKS."""
    world = torch.distributed.get_world_size()
    for state in reversed(states):
        found = [problem for problem in common.all_gather(damage(state, rank, world)) if problem]
        if not found:
            return state
        say(f"resume: '{state}' is damaged ({found[0]}); it is left out")
    if states:
        raise SystemExit(
            f"resume: no state in '{states[0].parent}' is whole; start over with --resume=False, "
            "or from an export with --model=... --out_dir=..."
        )
    return None


def load_state(engine, stream, state: Path, rank: int) -> int:
    """Weights, optimizer, random states and place in the data as they were; returns the step. ALL RANKS."""
    world = torch.distributed.get_world_size()
    loop = json.loads((state / "loop.json").read_text())
    if loop["world"] != world:
        raise SystemExit(
            f"resume: '{state}' was written by {loop['world']} process(es), this run has {world}; "
            "start it with as many"
        )
    engine.checkpoint_engine.load = load_tensors
    loaded, _ = engine.load_checkpoint(str(state), tag="state")
    if loaded is None:
        raise SystemExit(f"resume: DeepSpeed cannot load '{state}'; start over with --resume=False")
    set_random_states(load_tensors(state / f"rank-{rank:05d}.pt"))
    stream.cursor = loop["cursors"][rank]
    stream.skipped = loop["skipped"][rank]
    return loop["step"]


def load_tensors(path, map_location="cpu"):
    """torch.load that runs no code from the file, in place of DeepSpeed's, which would run any."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    plain = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]  # what else its states hold
    with torch.serialization.safe_globals(plain):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise SystemExit(
                f"resume: '{path}' holds something else than numbers, so this program has not written it; "
                "it was not loaded, as it could run code here"
            ) from error


def start_over(out_dir: Path) -> None:
    """Remove the run in out_dir: its exports, states and logs, and nothing else that lies there."""
    for folder in [*complete(out_dir), *complete(out_dir / "resume")]:
        remove(folder)
    for name in ("metrics.jsonl", "rollouts.jsonl", "run.json"):
        (out_dir / name).unlink(missing_ok=True)


def truncate_logs(out_dir: Path, step: int, names: list[str]) -> None:
    """Drop from the logs the steps that the resumed run will do again, and lines cut off in mid-write.

    Says so if steps that were done are missing at their end.
    """
    for name in names:
        path = out_dir / name
        temporary = path.with_name(name + ".tmp")
        last = 0  # step of the last line that is kept
        damaged = 0  # lines
        if path.exists():
            with open(path, encoding="utf-8", errors="replace") as old, open(temporary, "w") as new:
                for line in old:
                    written = step_of_line(line)
                    if written is None:
                        damaged += 1
                    # a run that starts anew writes its evaluation at step 0 again
                    elif step > 0 and written <= step:
                        new.write(line)
                        last = written
            common.flush(temporary)
            os.replace(temporary, path)
        if damaged:
            print(f"resume: dropped {damaged} damaged or incomplete lines of {path}", file=sys.stderr)
        if last < step:
            print(f"resume: steps {last + 1} to {step} are missing in {path}", file=sys.stderr)


def step_of_line(line: str) -> int | None:
    """The step of a log's line, None if the line is no complete record."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if line.endswith("\n") and isinstance(step, int) else None
