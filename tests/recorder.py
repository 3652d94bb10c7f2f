"""Runs the real trainers and writes down what passes between the loop and its engines; used by test_step.py and test_engines.py.

    python tests/recorder.py RUNS.json        # or under torchrun

RUNS.json is a list of runs, done one after another in one process, as most of a short run is the start of torch:

    {"folder": where the records go, "command": ["train_grpo.py", "--knob=value", ...],
     "shift": 0.6, "stale": 2}

shift   standard deviation of a noise on the log-probs that the sampler hands to the trainer, so that importance
        weights are not 1; 0 = none
stale   the number of the weight sync (from 1) that leaves vLLM's prefix cache as it is; 0 = none

Records, one file each, numbered from 0:
    take-N-rankR.pt      the prompts that the loop took from the data
    rollout-N-rankR.pt   what the sampler was asked and what it gave
    step-N-rankR.pt      one optimizer step: learning rate, gradients, weights before it (those on rank 0 only)
    sync-N-rankR.pt      the weights handed to vLLM, the resets of its caches

The functions of the project do all the work; here they are only wrapped.
"""

import inspect
import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402  (the project is found from here on)
import data  # noqa: E402
import sampling  # noqa: E402


class Recorder:
    """The records of one run."""

    def __init__(self, folder: str, shift: float = 0.0, stale: int = 0):
        self.folder, self.shift, self.stale = Path(folder), shift, stale
        self.rank = int(os.environ.get("RANK", 0))
        self.numbers = Counter()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, kind: str, record: dict) -> None:
        torch.save(record, self.folder / f"{kind}-{self.numbers[kind]}-rank{self.rank}.pt")
        self.numbers[kind] += 1

    # ---------------------------------------------------------------------
    # the data, the sampler
    # ---------------------------------------------------------------------

    def take(self, real):
        def wrapped(stream, n):
            prompts = real(stream, n)
            self.write("take", {"prompts": [light(prompt) for prompt in prompts]})
            return prompts

        return wrapped

    def rollout(self, real):
        """rollout_hf or rollout_vllm; the trainer gets the log-probs with the noise."""

        def wrapped(*args, **kwargs):
            asked = arguments(real, args, kwargs)
            groups = real(*args, **kwargs)
            given = groups
            if self.shift and asked["temperature"] > 0:  # not in an evaluation
                given = self.shifted(groups)
            self.write(
                "rollout",
                {
                    "steps": self.numbers["step"],  # optimizer steps so far
                    "syncs": self.numbers["sync"],
                    "prompts": [light(prompt) for prompt in asked["prompts"]],
                    "settings": {name: asked[name] for name in ("n", "seeds", "temperature", "max_tokens")},
                    "completions": [[tuple(c) for c in group] for group in groups],
                    "given_logps": [[c.logps for c in group] for group in given],
                },
            )
            return given

        return wrapped

    def shifted(self, groups):
        noise = torch.Generator().manual_seed(1000 * self.rank + self.numbers["rollout"])
        result = []
        for group in groups:
            moved = []
            for completion in group:
                logps = torch.tensor(completion.logps)
                logps = logps + self.shift * torch.randn(len(logps), generator=noise)
                moved.append(completion._replace(logps=logps.tolist()))
            result.append(moved)
        return result

    # ---------------------------------------------------------------------
    # the optimizer
    # ---------------------------------------------------------------------

    def optimizer_step(self, real):
        def wrapped(*args, **kwargs):
            asked = arguments(real, args, kwargs)
            model = asked["engine"].module.model
            record = {"lr": asked["lr"], "gradient": gradients(model)}
            before = weights(model)
            if self.rank == 0:
                record["weights"] = before
            self.write("step", record)
            return real(*args, **kwargs)

        return wrapped

    # ---------------------------------------------------------------------
    # vLLM
    # ---------------------------------------------------------------------

    def start_vllm(self, real):
        def wrapped(*args, **kwargs):
            llm = real(*args, **kwargs)
            self.events = []
            for owner, name in (
                (llm, "collective_rpc"),
                (llm, "reset_prefix_cache"),
                (llm.llm_engine, "reset_mm_cache"),
                (llm.llm_engine, "reset_encoder_cache"),
            ):
                setattr(owner, name, self.event(llm, name, getattr(owner, name)))
            return llm

        return wrapped

    def event(self, llm, name: str, real):
        """A method of the engine that is noted when it is called."""

        def wrapped(*args, **kwargs):
            if name == "reset_prefix_cache" and self.numbers["sync"] + 1 == self.stale:
                return True
            before = cached(llm)
            result = real(*args, **kwargs)
            self.events.append((name, args[:1], before, cached(llm)))
            return result

        return wrapped

    def sync_weights(self, real):
        def wrapped(llm, pairs, *args, **kwargs):
            seen = {}
            self.events.clear()
            real(llm, noted(pairs, seen), *args, **kwargs)
            self.write("sync", {"weights": seen, "events": list(self.events)})

        return wrapped


def arguments(function, args, kwargs) -> dict:
    """The arguments of a call by name."""
    return inspect.signature(function).bind(*args, **kwargs).arguments


def light(prompt: dict) -> dict:
    """A prompt without its pictures; the model's inputs are in it."""
    row = {name: value for name, value in prompt["row"].items() if name != "images"}
    return prompt | {"row": row}


def noted(pairs, seen: dict):
    """The same (name, tensor) pairs, one at a time, with a copy of each left in `seen`."""
    for name, tensor in pairs:
        seen[name] = tensor.detach().clone()
        yield name, tensor


def weights(model) -> dict:
    """Copies of all weights by name, gathered under ZeRO-3. ALL RANKS."""
    from deepspeed.utils import safe_get_full_fp32_param

    result = {}
    for name, p in model.named_parameters():
        whole = safe_get_full_fp32_param(p) if hasattr(p, "ds_id") else p
        result[name] = whole.detach().clone()
    return result


def gradients(model) -> dict:
    """Copies of all gradients by name, summed up by DeepSpeed over the ranks. ALL RANKS."""
    from deepspeed.utils import safe_get_full_grad

    result = {}
    for name, p in model.named_parameters():
        gradient = p.grad
        if gradient is None and p.requires_grad:
            gradient = safe_get_full_grad(p)  # ZeRO keeps them elsewhere
        if gradient is not None:
            result[name] = gradient.detach().clone()
    return result


def wrap(recorder: Recorder, real: dict) -> None:
    data.Stream.take = recorder.take(real["take"])
    sampling.rollout_hf = recorder.rollout(real["rollout_hf"])
    sampling.rollout_vllm = recorder.rollout(real["rollout_vllm"])
    sampling.start_vllm = recorder.start_vllm(real["start_vllm"])
    sampling.sync_weights = recorder.sync_weights(real["sync_weights"])
    common.optimizer_step = recorder.optimizer_step(real["optimizer_step"])


def cached(llm) -> dict:
    """Number of entries in each of vLLM's caches."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return {
        "prefix": len(scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block),
        "encoder": len(scheduler.encoder_cache_manager.cached),
        "mm": len(llm.llm_engine.renderer.mm_processor_cache._cache),
    }


def without_report(real):
    """subprocess.Popen that draws no curves: for runs of two steps that would be half of the time."""

    def wrapped(command, *args, **kwargs):
        if "report.py" in str(command):
            return None
        return real(command, *args, **kwargs)

    return wrapped


def main(path: str) -> None:
    names = ("rollout_hf", "rollout_vllm", "start_vllm", "sync_weights")
    real = {name: getattr(sampling, name) for name in names}
    real |= {"optimizer_step": common.optimizer_step, "take": data.Stream.take}
    end_processes = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda: None  # the next run uses the same processes
    subprocess.Popen = without_report(subprocess.Popen)
    for run in json.loads(Path(path).read_text()):
        if "folder" in run:
            wrap(Recorder(run["folder"], run.get("shift", 0.0), run.get("stale", 0)), real)
        trainer = str(ROOT / run["command"][0])
        sys.argv = [trainer, *run["command"][1:]]
        runpy.run_path(trainer, run_name="__main__")
    end_processes()


if __name__ == "__main__":
    main(sys.argv[1])
