"""The folder of a run: exports that transformers and vLLM load, the state from which a killed run goes on.

out_dir/config.json           the knobs of the run
out_dir/step-000100/          an export: weights, and the other files of the base model as they were
out_dir/resume/step-000100/   what the run goes on from; the two newest are kept
    state/                    DeepSpeed's files: trained weights, optimizer
    rank-00000.pt             random states of a process
    loop.json                 step, number of processes, place in the data, knobs
    manifest.json             size and SHA-256 of each of these files

Nothing here is ever half-written under its final name: a folder or file is written beside, flushed to the
disk and renamed. The state comes first, then the export; a run that was killed in between writes the export
when it starts again. States hold JSON, tensors and a few plain classes of DeepSpeed's; loading runs no code.
With as many processes as before a run goes on bit by bit; with more or fewer its optimizer is cut anew.
"""

import fcntl
import functools
import hashlib
import json
import math
import os
import pickle
import random
import re
import secrets
import shutil
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import common

SCRIPT = Path(sys.argv[0]).name  # train_grpo.py or train_sft.py
KEEP_STATES = 2  # resume states that are kept: the newest, and the one before in case a disk has spoilt it
SHARED_SECONDS = 10  # after which every process must see a new file: network file systems take a moment

# fmt: off
# Knobs that may change when a run is resumed: they do not touch what the steps so far have computed, and the
# steps to come take them as they are now.
FREE_KNOBS = {
    "out_dir", "steps", "resume", "keep", "trackers", "thumbnails",
    "log_interval", "save_interval", "eval_interval", "show_interval",
    "eval_source", "eval_split", "eval_rows", "eval_metric",
    "learning_rate", "lr_schedule", "warmup_steps",
    "attn", "compile_layers", "grad_checkpointing", "micro_tokens", "reward_workers",
    "vllm_gpu_memory", "vllm_sleep", "vllm_gpus", "vllm_tensor_parallel",
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
    out_dir = Path(config["out_dir"])
    # a new name each time: no network file system can have noted that it is not there
    sign = out_dir / common.all_gather(f"shared-{secrets.token_hex(8)}.tmp")[0]
    if rank == 0:
        refuse_model(out_dir, config["model"])
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            lock(out_dir, say)
            for left in [*out_dir.glob("step-*.tmp"), *out_dir.glob("resume/step-*.tmp")]:
                shutil.rmtree(left)  # of a run that was killed
            for left in out_dir.glob("shared-*.tmp"):
                left.unlink()
            sign.touch()  # may we write there?
            if config["resume"]:
                compare_knobs(out_dir, config, say)
        except OSError as error:
            raise SystemExit(
                f"out_dir: cannot write to '{out_dir}' ({error.strerror}); name another folder with --out_dir"
            ) from error
    torch.distributed.barrier()
    require_shared(sign, rank)


def require_shared(sign: Path, rank: int) -> None:
    """SystemExit on all ranks if one of them does not see what rank 0 has just written. ALL RANKS.

    Machines without a common disk would train and save, each its own part of a state, and no run could go on
    from it.
    """
    end = time.time() + SHARED_SECONDS
    while not sign.exists() and time.time() < end:
        time.sleep(0.05)
    seen = common.all_gather((sign.exists(), socket.gethostname()))
    if rank == 0:
        sign.unlink()
    for number, (sees, host) in enumerate(seen):
        if not sees:
            raise SystemExit(
                f"out_dir: process {number} on {host} does not see what process 0 on {seen[0][1]} writes to "
                f"'{sign.parent}'; name a folder on a disk that all machines share with --out_dir"
            )


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

    bytes of an export = those of all weights; of a state = those of the trained weights + 12 for each (Adam's
    two moments and a master copy, float32). One state more than is kept stands there while it is written, and
    one export more.
    """
    if rank != 0:
        return
    out_dir = Path(config["out_dir"])
    weights = [p for name, p in net.named_parameters() if ".lora_" not in name]
    export_bytes = sum(p.numel() * p.element_size() for p in weights)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    trained_bytes = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    state_bytes = trained_bytes + 12 * trained

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
    """out_dir/resume/step-N: trained weights, optimizer, random states, place in the data. ALL RANKS."""
    world = torch.distributed.get_world_size()
    final = Path(config["out_dir"], "resume", f"step-{step:06d}")
    temporary = final.with_name(final.name + ".tmp")
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    torch.distributed.barrier()
    engine.module_state_dict = lambda **options: trained_state(engine.module)
    # without the frozen weights: they are those of the model, which the run loads when it goes on
    engine.save_checkpoint(str(temporary), "state", save_latest=False, exclude_frozen_parameters=True)
    torch.save(random_states(), temporary / f"rank-{rank:05d}.pt")
    places = {}  # a process that the run has started with: (its cursor, rows that it has skipped)
    for share in common.all_gather(stream.places()):
        places |= share
    places = [places[number] for number in sorted(places)]
    frozen = frozen_sum(engine)
    if rank == 0:
        for unused in temporary.glob("*.py"):
            unused.unlink()  # DeepSpeed's converters: a state holds no code
        loop = {"step": step, "world": world, "script": SCRIPT, "config": config, "frozen": frozen}
        loop["cursors"] = [cursor for cursor, _ in places]
        loop["skipped"] = [skipped for _, skipped in places]
        (temporary / "loop.json").write_text(json.dumps(loop, indent=1))
    torch.distributed.barrier()
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    write_manifest(temporary, files, rank, world)
    if rank == 0:
        common.flush(temporary / "state")
        put_in_place(temporary, final)
    torch.distributed.barrier()


def trained_state(module) -> dict:
    """The weights that are trained, and the buffers.

    DeepSpeed's own list of them holds frozen weights that are tied, under their second name.
    """
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


@functools.cache  # they stay what they are
def frozen_sum(engine) -> int:
    """Checksum of the weights that are not trained: their bits, added up as whole numbers. ALL RANKS.

    It does not depend on how ZeRO-3 shards them over how many processes.
    """
    total = 0
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            kind = {2: torch.int16, 4: torch.int32}[parameter.element_size()]
            bits = own_part(parameter).contiguous().view(kind).flatten()
            # in pieces, as torch's sum with another dtype is ten times slower on a CPU
            total += sum(piece.long().sum() for piece in bits.split(2**20)).item()
    if engine.zero_optimization_partition_weights():
        total = sum(common.all_gather(total))
    return total % 2**64  # a sum that int64 cannot hold starts over


def own_part(parameter) -> torch.Tensor:
    """What this process has of a weight: all, or under ZeRO-3 its slice without the padding at the end."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    size = parameter.ds_tensor.numel()
    left = parameter.ds_numel - torch.distributed.get_rank() * size
    return parameter.ds_tensor.detach().flatten()[: max(0, left)]


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
    SystemExit, one sentence, if there are states and all are damaged. ALL RANKS.
    """
    out_dir = Path(config["out_dir"])
    if rank == 0 and not config["resume"]:
        start_over(out_dir)
    torch.distributed.barrier()
    step = 0
    states = complete(out_dir / "resume")
    whole = newest_whole(states, rank, say)
    if whole:
        step, before = load_state(engine, stream, whole, rank)
        world = torch.distributed.get_world_size()
        change = "" if before == world else f", written by {before} process(es), now {world}"
        say(f"resume: step {step} of {out_dir}{change}")
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


def load_state(engine, stream, state: Path, rank: int) -> tuple[int, int]:
    """Weights, optimizer, random states and place in the data as they were. ALL RANKS.

    Returns the step and the number of processes that have written the state.
    """
    world = torch.distributed.get_world_size()
    loop = json.loads((state / "loop.json").read_text())
    # states of older versions hold the frozen weights, and no sum of them
    if loop.get("frozen", frozen_sum(engine)) != frozen_sum(engine):
        raise SystemExit(
            f"resume: the frozen weights of '{loop['config']['model']}' are not those with which '{state}' "
            "was trained; put the model back as it was, or start over with --resume=False"
        )
    load_engine(engine, state, loop["world"], rank)
    if rank < loop["world"]:
        set_random_states(load_tensors(state / f"rank-{rank:05d}.pt"))
    else:  # a process that was not there: numbers of its own, the same whenever it goes on from here
        seed = random.Random(f"{loop['config']['seed']}-{loop['step']}-{rank}").getrandbits(32)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    if len(loop["cursors"]) == world:
        stream.cursor = loop["cursors"][rank]
        stream.skipped = loop["skipped"][rank]
    else:
        stream.go_on_for(loop["cursors"], loop["skipped"])
    return loop["step"], loop["world"]


def load_engine(engine, state: Path, before: int, rank: int) -> None:
    """Trained weights and optimizer, from the files that `before` processes have written. ALL RANKS."""
    folder = state / "state"
    same = before == torch.distributed.get_world_size()
    trained = [name for name, p in engine.module.named_parameters() if p.requires_grad]

    def load(path, map_location="cpu"):
        """In place of DeepSpeed's torch.load, which would run code from the file."""
        if not same and "optim_states" in Path(path).name:
            return {"optimizer_state_dict": recut(engine, folder, before, rank)}
        found = load_tensors(path, map_location)
        if "module" in found:
            missing = [name for name in trained if name not in found["module"]]
            if missing:
                raise SystemExit(
                    f"resume: '{path}' lacks {len(missing)} of {len(trained)} trained weights, the first is "
                    f"'{missing[0]}'; start over with --resume=False"
                )
        if not same and "module" in found:
            found["dp_world_size"] = torch.distributed.get_world_size()
            if engine.zero_optimization_partition_weights():
                found["frozen_param_fragments"] = None  # rank 0's slices, of a state of an older version
        return found

    engine.checkpoint_engine.load = load
    if not same:
        first = min(folder.glob("*model_states.pt"))  # of rank 0: a new process has none of its own there
        engine._get_all_ckpt_names = lambda *_: [str(first)]
    # not strict: the frozen weights are not in the file
    loaded, _ = engine.load_checkpoint(str(state), tag="state", load_module_strict=False)
    if loaded is None:
        raise SystemExit(f"resume: DeepSpeed cannot load '{state}'; start over with --resume=False")


@torch.no_grad()
def recut(engine, folder: Path, before: int, rank: int) -> dict:
    """This process's share of the optimizer's state, cut out of those of another number of processes.

    ZeRO cuts rows of numbers into as many slices as there are processes: under ZeRO-3 each parameter is such
    a row, under ZeRO-1 and 2 all parameters laid end to end are one. Master weights and Adam's moments are
    cut alike. The files are mapped into memory: only what is taken is read.
    """
    world = torch.distributed.get_world_size()
    stage_3 = engine.zero_optimization_partition_weights()
    master, adam = "single_partition_of_fp32_groups", "base_optimizer_state"
    if stage_3:
        master, adam = "fp32_flat_groups", "optimizer_state_dict"
    saved = load_tensors(min(folder.glob("*model_states.pt")), mmap=True)["param_shapes"]
    now = engine._get_zero_param_shapes()
    if flat_shapes(saved) != flat_shapes(now):
        raise SystemExit(
            f"resume: '{folder}' holds other weights than this run trains; start over with --resume=False"
        )
    shares = []
    for number in range(before):
        path = next(folder.glob(f"*zero_pp_rank_{number}_mp_rank_00_optim_states.pt"))
        shares.append(load_tensors(path, mmap=True)["optimizer_state_dict"])

    # of each group, which lies in one tensor: lengths of its rows, and of their slices then and now
    rows = [[shape.numel() for shape in group.values()] for group in saved]
    if stage_3:
        old_sizes = [[math.ceil(n / before) for n in group] for group in rows]
        new_sizes = [[math.ceil(shape.numel() / world) for shape in group.values()] for group in now]
    else:
        rows = [[sum(group)] for group in rows]
        old_sizes = [[flat.numel()] for flat in shares[0][master]]
        new_sizes = [[group["params"][0].numel()] for group in engine.optimizer.param_groups]

    def cut(groups_of: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        """The new tensors, one for each group; groups_of has the old ones of each process."""
        slices = []  # of each process, row by row
        for groups in groups_of:
            slices.append([])
            for flat, sizes in zip(groups, old_sizes, strict=True):
                slices[-1] += flat.split(sizes) if stage_3 else [flat]
        old_rows = zip(sum(rows, []), sum(old_sizes, []), *slices, strict=True)
        result = []
        for sizes in new_sizes:
            result.append(torch.zeros(sum(sizes)))
            for mine in result[-1].split(sizes):
                length, old_size, *old = next(old_rows)
                fill_slice(mine, rank, length, old, old_size)
        return result

    share = dict(shares[0])  # what is not cut is the same in all of them: the step, the loss scale
    share[master] = cut([of_process[master] for of_process in shares])
    # of one parameter group: that is all that the trainers make; {} before the first update
    states = [of_process[adam]["state"] for of_process in shares]
    first = states[0].get(0, {})
    cut_states = {
        key: cut([[of_group[key] for of_group in state.values()] for state in states])
        for key, value in first.items()
        if torch.is_tensor(value) and value.dim()
    }
    new_state = {}
    for number in range(len(now) if first else 0):
        new_state[number] = first | {key: tensors[number] for key, tensors in cut_states.items()}
    settings = shares[0][adam]["param_groups"][0] | {"params": list(range(len(now)))}
    share[adam] = {"state": new_state, "param_groups": [settings]}
    return share


def flat_shapes(groups: list[dict]) -> list[tuple]:
    """(name, shape) of all parameters of all groups, in their order."""
    return [(name, tuple(shape)) for group in groups for name, shape in group.items()]


def fill_slice(mine: torch.Tensor, rank: int, length: int, old: list[torch.Tensor], old_size: int) -> None:
    """Slice number `rank` of a row of `length` numbers into `mine`, from its slices of another size.

    Behind the row's end stays what is there: padding.

    >>> old = [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), torch.tensor([4.0, 9.0])]  # 9: padding
    >>> mine = torch.zeros(3)
    >>> fill_slice(mine, 1, 5, old, 2)
    >>> mine.tolist()
    [3.0, 4.0, 0.0]
    """
    start = rank * len(mine)
    end = min(length, start + len(mine))
    for number, piece in enumerate(old):
        offset = number * old_size
        first, last = max(start, offset), min(end, offset + old_size)
        if first < last:
            mine[first - start : last - start] = piece[first - offset : last - offset]


def load_tensors(path, map_location="cpu", mmap=False):
    """torch.load that runs no code from the file; with mmap tensors are read when they are used."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    plain = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]  # what else its states hold
    with torch.serialization.safe_globals(plain):
        try:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
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
