"""Runs the real trainers and writes down what passes between the loop and its engines.

    python tests/recorder.py RUNS.json        # or under torchrun

RUNS.json is a list of runs. They are done one after another in one process, as most of a short run is the
start of torch:

    {"command": ["train_grpo.py", "--knob=value", ...], "folder": "out/records", "shift": 0.6, "stale": 2}

folder  where the records go; without it there are none
shift   standard deviation of a noise on the log-probs that the sampler hands to the trainer, so that
        importance weights are not 1; 0 = none
stale   the number of the weight sync, from 1, that leaves vLLM's prefix cache as it is; 0 = none

Records, numbered from 0, one file for each process:
    take-N-rankR.pt      the prompts that the loop took from the data
    rollout-N-rankR.pt   what the sampler was asked and what it gave
    step-N-rankR.pt      an optimizer step: learning rate, gradients, and on rank 0 the weights before it
    sync-N-rankR.pt      the weights handed to vLLM, the resets of its caches

The project's own functions do all the work; here they are only wrapped. Used by test_step.py, test_engines.py
and test_learning.py.
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

    # each of these takes a function of the project, or of vLLM, and returns it with a recorder around it

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
            record = {"steps": self.numbers["step"], "syncs": self.numbers["sync"]}  # so far
            record["prompts"] = [light(prompt) for prompt in asked["prompts"]]
            record["settings"] = {key: asked[key] for key in ("n", "seeds", "temperature", "max_tokens")}
            record["completions"] = [[tuple(completion) for completion in group] for group in groups]
            record["given_logps"] = [[completion.logps for completion in group] for group in given]
            self.write("rollout", record)
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

    def start_vllm(self, real):
        def wrapped(*args, **kwargs):
            llm = real(*args, **kwargs)
            self.events = []
            for name in ("collective_rpc", "reset_prefix_cache"):
                setattr(llm, name, self.event(llm, name, getattr(llm, name)))
            for name in ("reset_mm_cache", "reset_encoder_cache"):
                setattr(llm.llm_engine, name, self.event(llm, name, getattr(llm.llm_engine, name)))
            return llm

        return wrapped

    def event(self, llm, name: str, real):
        """A method of the engine that is noted when it is called."""

        def wrapped(*args, **kwargs):
            if name == "reset_prefix_cache" and self.numbers["sync"] + 1 == self.stale:
                return True
            before = cached(llm)
            result = real(*args, **kwargs)
            self.events.append({"call": name, "arguments": args, "before": before, "after": cached(llm)})
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
    """Copies of all gradients by name, averaged over the ranks by DeepSpeed. ALL RANKS."""
    from deepspeed.utils import safe_get_full_grad

    result = {}
    for name, p in model.named_parameters():
        gradient = p.grad
        if gradient is None and p.requires_grad:
            gradient = safe_get_full_grad(p)  # ZeRO keeps them elsewhere
        if gradient is not None:
            result[name] = gradient.detach().clone()
    return result


def cached(llm) -> dict:
    """Number of entries in each of vLLM's caches."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return {
        "prefix": len(scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block),
        "encoder": len(scheduler.encoder_cache_manager.cached),
        "mm": len(llm.llm_engine.renderer.mm_processor_cache._cache),
    }


class WithoutReport(subprocess.Popen):
    """Popen that draws no curves in the background: for runs of two steps that is half of the work."""

    def __init__(self, command, *args, **kwargs):
        if "report.py" in str(command):
            command = ["true"]
        super().__init__(command, *args, **kwargs)


def but_for_the_whole(real):
    """destroy_process_group for groups within the whole, as vLLM makes them."""

    def wrapped(group=None):
        if group is not None:
            real(group)

    return wrapped


HOOKS = [  # (where it stands, name, the recorder's method that wraps it)
    (data.Stream, "take", Recorder.take),
    (sampling, "rollout_hf", Recorder.rollout),
    (sampling, "rollout_vllm", Recorder.rollout),
    (sampling, "start_vllm", Recorder.start_vllm),
    (sampling, "sync_weights", Recorder.sync_weights),
    (common, "optimizer_step", Recorder.optimizer_step),
]


def main(path: str) -> None:
    end_group = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = but_for_the_whole(end_group)  # the next run needs it
    subprocess.Popen = WithoutReport
    functions = [getattr(owner, name) for owner, name, _ in HOOKS]
    for run in json.loads(Path(path).read_text()):
        recorder = None
        if "folder" in run:
            recorder = Recorder(run["folder"], run.get("shift", 0.0), run.get("stale", 0))
        for (owner, name, wrapper), function in zip(HOOKS, functions, strict=True):
            setattr(owner, name, wrapper(recorder, function) if recorder else function)
        trainer = str(ROOT / run["command"][0])
        sys.argv = [trainer, *run["command"][1:]]
        runpy.run_path(trainer, run_name="__main__")
    end_group()


if __name__ == "__main__":
    main(sys.argv[1])
