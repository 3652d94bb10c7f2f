"""Who samples for train_grpo.py, and where. In the loop it is three words, whatever the layout:

    sampler.start(prompts, n, seeds, temperature)     # all trainers, also one without prompts
    groups = sampler.result()                         # per prompt a list of sampling.Completion
    sampler.sync(weights)                             # all trainers: from now on with these weights

    Transformers   rollout='hf': the policy itself, token by token
    Colocated      vLLM in the trainer's process, on its GPU
    Dedicated      vllm_gpus > 0: the last so many processes of torchrun sample and never train, as in R1-V
                   (X GPUs train, one samples); their life is `serve`

With tensor_parallel = t an engine is spread over t processes in a row, each of which gets the same jobs and
samples the same completions.

A dedicated sampler is a process like the others, from the same torchrun. Trainers and samplers have a default
process group each, so that DeepSpeed sees trainers only and vLLM samplers only. Between them:

    connections   from every trainer to every sampler (multiprocessing.connection): token ids and images one
                  way, completions the other; opened with a random key that is in torchrun's store
    broadcasts    from trainer 0 to all samplers: the weights, one at a time, so that no process ever holds
                  the model twice
"""

import json
import os
import signal
import socket
from contextlib import contextmanager
from multiprocessing.connection import Client, Listener
from typing import NamedTuple

import torch

import common
import data
import memory
import qwen
import sampling

WEIGHTS, LOADED, END = "weights", "loaded", "end"  # what else than a Job is sent


class Job(NamedTuple):
    """What a trainer wants sampled; without prompts it wants nothing, and gets nothing."""

    prompts: list[dict]
    seeds: list[int]
    settings: dict  # the other arguments of sampling.rollout_vllm


# -----------------------------------------------------------------------------
# layout: which processes train, which sample
# -----------------------------------------------------------------------------


def check(config: dict) -> None:
    """SystemExit, one sentence, if the processes cannot be divided as the knobs say. On every process."""
    common.check_choices(config)
    n, t = config["vllm_gpus"], config["vllm_tensor_parallel"]
    world = int(os.environ.get("WORLD_SIZE", 1))
    common.require(n >= 0, f"vllm_gpus: {n} is below 0")
    common.require(t > 0, f"vllm_tensor_parallel: {t} is not above 0")
    uses_vllm = config["rollout"] == "vllm"
    common.require(
        uses_vllm or (n == 0 and t == 1),
        "vllm_gpus, vllm_tensor_parallel: with rollout='hf' the trainers sample; leave them out, or set "
        "--rollout=vllm",
    )
    common.require(
        n == 0 or "RANK" in os.environ,
        f"vllm_gpus: the samplers are the last {n} processes of torchrun, which has not started this one; "
        f"run torchrun --nproc_per_node=N, with N above {n}",
    )
    common.require(
        n < world,
        f"vllm_gpus: of {world} process(es) {n} would sample and none train; start more, or set "
        f"--vllm_gpus={max(0, world - 1)}",
    )
    knob = "vllm_gpus" if n else "processes"
    size = n or world
    common.require(
        size % t == 0,
        f"vllm_tensor_parallel: an engine takes {t} processes, which do not divide {size} ({knob})",
    )
    common.require(
        n // t <= world - n,
        f"vllm_gpus: {n // t} engines for {world - n} trainer(s), and a trainer uses one; set "
        f"--vllm_tensor_parallel={n}, or a smaller --vllm_gpus",
    )
    heads = memory.attention_heads(config["model"]) if t > 1 else t
    common.require(
        heads % t == 0,
        f"vllm_tensor_parallel: {t} does not divide the {heads} attention heads of {config['model']}",
    )


def samples_here(vllm_gpus: int) -> bool:
    """Is this process one of the last `vllm_gpus` of torchrun? Before `split`, which renumbers them."""
    if vllm_gpus == 0:
        return False
    return int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]) - vllm_gpus


class Split(NamedTuple):
    """The processes of torchrun, divided."""

    store: torch.distributed.Store  # of all of them
    trainers: int
    samplers: int
    one_machine: bool


def split(vllm_gpus: int) -> Split | None:
    """Make the default process group of this process's kind, and give it a rank in there. ALL PROCESSES.

    Before common.setup, DeepSpeed and vLLM, which all go by that group, RANK and WORLD_SIZE. None without
    samplers: then common.setup makes the group.
    """
    if vllm_gpus == 0:
        return None
    store, rank, world = next(torch.distributed.rendezvous("env://", timeout=common.PATIENCE))
    store.set_timeout(common.PATIENCE)  # of trainers that wait for an engine to start
    trainers = world - vllm_gpus
    kind, size = "trainer", trainers
    if rank >= trainers:
        kind, size = "sampler", vllm_gpus
        rank -= trainers
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}  # LOCAL_RANK stays: the GPU
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=torch.distributed.PrefixStore(kind, store),
        rank=rank,
        world_size=size,
        timeout=common.PATIENCE,
    )
    return Split(store, trainers, vllm_gpus, world == int(os.environ["LOCAL_WORLD_SIZE"]))


# -----------------------------------------------------------------------------
# the trainers' side
# -----------------------------------------------------------------------------


def start(config: dict, net, processor, banned: list[int], device, parts: Split | None, say):
    """The sampler of this trainer. ALL TRAINERS."""
    settings = {"top_p": config["top_p"], "top_k": config["top_k"]}
    settings |= {"max_tokens": config["max_completion_length"], "banned": banned}
    settings["end"] = qwen.end_ids(processor)
    if config["rollout"] == "hf":
        return Transformers(settings, net)
    say("vllm: starting the engine; half a minute on a CPU, up to two on a GPU", flush=True)
    if parts:
        return Dedicated(settings, parts, config["vllm_tensor_parallel"], device)
    sleeps = config["vllm_sleep"] and device.type == "cuda"
    llm = start_engine(config, processor, device, sleeps)
    return Colocated(settings, llm, sleeps, config["vllm_tensor_parallel"])


def start_engine(config: dict, processor, device, sleeps: bool):
    """vLLM in this process, by the knobs of the run."""
    return sampling.start_vllm(
        config["model"],
        config["dtype"],
        config["max_prompt_length"] + config["max_completion_length"],
        data.MAX_IMAGES,
        data.processor_limits(processor, config["max_pixels"]),
        gpu_memory=config["vllm_gpu_memory"],
        seed=config["seed"],
        cuda=device.type == "cuda",
        sleep=sleeps,
        tensor_parallel=config["vllm_tensor_parallel"],
    )


class Sampler:
    """What the three have in common. settings: arguments of rollout_vllm that stay the same in a run."""

    llm = None  # vLLM's engine, where it is in this process

    def __init__(self, settings: dict):
        self.settings = settings

    def sample(self, prompts: list[dict], n: int, seeds: list[int], temperature: float) -> list:
        """start and result in one, for an evaluation: more is sampled from these weights. ALL TRAINERS."""
        self.start(prompts, n, seeds, temperature)
        return self.result(rest=False)

    def close(self) -> None:
        """The end of the run."""


class Transformers(Sampler):
    """The policy samples for itself; it has the new weights anyway."""

    def __init__(self, settings: dict, net):
        super().__init__(settings)
        self.net = net

    def start(self, prompts, n, seeds, temperature) -> None:
        self.groups = sampling.rollout_hf(self.net, prompts, n, seeds, temperature, **self.settings)

    def result(self, rest: bool = True) -> list:
        return self.groups

    def sync(self, weights) -> None:
        pass


class Colocated(Sampler):
    """An engine in this process; with tensor parallelism a part of it, and the rest in its neighbours."""

    def __init__(self, settings: dict, llm, sleeps: bool, tensor_parallel: int):
        """sleeps: give the GPU's memory back during the update."""
        super().__init__(settings)
        self.llm, self.sleeps = llm, sleeps
        self.asleep = False
        self.engine = None  # the processes of an engine
        if tensor_parallel > 1:
            world = torch.distributed.get_world_size()
            for first in range(0, world, tensor_parallel):  # each group is made by all processes
                ranks = list(range(first, first + tensor_parallel))
                group = torch.distributed.new_group(ranks, backend="gloo")
                if torch.distributed.get_rank() in ranks:
                    self.engine = group

    def start(self, prompts, n, seeds, temperature) -> None:
        settings = self.settings | {"n": n, "temperature": temperature}
        jobs, mine = [Job(prompts, seeds, settings)], 0
        if self.engine:
            job = Job(without_pixels(prompts), seeds, settings)
            jobs = [None] * self.engine.size()
            torch.distributed.all_gather_object(jobs, job, self.engine)
            mine = self.engine.rank()
        self.groups = in_one_batch(self.llm, jobs)[mine]

    def result(self, rest: bool = True) -> list:
        """rest: nothing more is sampled before the next sync."""
        if rest and self.sleeps:
            self.llm.sleep(level=1)  # weights to CPU memory, KV cache dropped
            self.asleep = True
        return self.groups

    def sync(self, weights) -> None:
        sampling.sync_weights(self.llm, weights, self.asleep)
        self.asleep = False


class Dedicated(Sampler):
    """Engines in other processes. Trainer t uses engine t % engines."""

    def __init__(self, settings: dict, parts: Split, tensor_parallel: int, device):
        super().__init__(settings)
        self.rank = torch.distributed.get_rank()
        self.size = tensor_parallel  # processes of an engine
        self.engine = self.rank % (parts.samplers // tensor_parallel)
        self.peers = []  # a connection to each sampler
        for s in range(parts.samplers):
            host, port, key = json.loads(parts.store.get(address_of(s)))  # waits until its engine is there
            with other_end():
                self.peers.append(Client((host, port), authkey=bytes.fromhex(key)))
                at_once(self.peers[s])
                self.peers[s].send(self.rank)
        if self.rank == 0:
            self.group = weight_group(parts, 0, device)

    def start(self, prompts, n, seeds, temperature) -> None:
        """Returns at once: the engine works while this process does something else."""
        settings = self.settings | {"n": n, "temperature": temperature}
        job = Job(without_pixels(prompts), seeds, settings)
        for s, peer in enumerate(self.peers):
            with other_end():
                peer.send(job if s // self.size == self.engine else Job([], [], settings))

    def result(self, rest: bool = True) -> list:
        """Before the next sync, for which the engine would else wait in vain."""
        with other_end():
            return self.peers[self.engine * self.size].recv()

    def sync(self, weights) -> None:
        """Under ZeRO-3 the trainers gather each weight together, and the first one sends it."""
        self.send(WEIGHTS)
        for name, weight in weights:
            if self.rank == 0:
                self.send((name, tuple(weight.shape), weight.dtype))
                broadcast(self.group, weight.contiguous())
        if self.rank == 0:
            self.send(END)
            for peer in self.peers:
                with other_end():
                    peer.recv()  # LOADED

    def send(self, message) -> None:
        """To every sampler."""
        for peer in self.peers:
            with other_end():
                peer.send(message)

    def close(self) -> None:
        self.send(END)


# -----------------------------------------------------------------------------
# a dedicated sampler's side
# -----------------------------------------------------------------------------


def serve(config: dict) -> None:
    """The life of a process that samples: an engine, a connection from each trainer, then their jobs.

    It ends when the trainers do. Ctrl-C and SIGTERM are for them: they finish their step and save, for which
    they need their sampler.
    """
    parts = split(config["vllm_gpus"])
    rank, _, device = common.setup(config["seed"])
    processor = qwen.load_processor(config["model"])
    llm = start_engine(config, processor, device, sleeps=False)
    trainers = accept(parts, rank)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not before: without trainers nobody would end it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    group = weight_group(parts, 1 + rank, device)

    size = config["vllm_tensor_parallel"]
    engine, engines = rank // size, parts.samplers // size
    while True:
        with other_end():
            jobs = [trainer.recv() for trainer in trainers]  # all are of one kind
        if jobs[0] == END:
            break
        if jobs[0] == WEIGHTS:
            sampling.sync_weights(llm, incoming(trainers[0], group, device))
            with other_end():
                trainers[0].send(LOADED)
            continue
        answers = in_one_batch(llm, jobs)
        for t, trainer in enumerate(trainers):
            if rank % size == 0 and t % engines == engine:  # of an engine's processes the first answers
                with other_end():
                    trainer.send(answers[t])
    common.finish(llm)


def accept(parts: Split, rank: int) -> list:
    """A connection from each trainer, in the order of their ranks."""
    key = os.urandom(32)  # messages are pickles: nobody else may send some
    with Listener((own_address(parts), 0), backlog=parts.trainers, authkey=key) as listener:
        host, port = listener.address[:2]
        parts.store.set(address_of(rank), json.dumps([host, port, key.hex()]))
        found = {}
        for _ in range(parts.trainers):
            with other_end():
                connection = listener.accept()
                at_once(connection)
                found[connection.recv()] = connection
    return [found[t] for t in range(parts.trainers)]


def own_address(parts: Split) -> str:
    """Where the trainers reach this process; gethostbyname(gethostname()) is 127.0.1.1 on many machines."""
    if parts.one_machine:
        return "127.0.0.1"
    from vllm.utils.network_utils import get_ip

    host = get_ip()
    common.require(
        host != "0.0.0.0",
        "vllm_gpus: this machine does not know its address, at which trainers on other machines would reach "
        "its engine; set VLLM_HOST_IP to it",
    )
    return host


def incoming(trainer, group, device):
    """The weights that trainer 0 sends, as (name, tensor) pairs, until it says END."""
    while True:
        with other_end():
            message = trainer.recv()
        if message == END:
            return
        name, shape, dtype = message
        weight = torch.empty(shape, dtype=dtype, device=device)
        broadcast(group, weight)
        yield name, weight


# -----------------------------------------------------------------------------
# both sides
# -----------------------------------------------------------------------------


def in_one_batch(llm, jobs: list[Job]) -> list[list]:
    """The groups of each job. An engine is the faster the more it has to do at once."""
    prompts = [prompt for job in jobs for prompt in job.prompts]
    seeds = [seed for job in jobs for seed in job.seeds]
    groups = iter(sampling.rollout_vllm(llm, prompts, seeds=seeds, **jobs[0].settings))
    return [[next(groups) for _ in job.prompts] for job in jobs]


def without_pixels(prompts: list[dict]) -> list[dict]:
    """Of each prompt what rollout_vllm reads: no tensors, which some connections send as handles."""
    light = []
    for prompt in prompts:
        row = {"id": prompt["row"]["id"], "images": prompt["row"]["images"]}
        light.append({"token_ids": prompt["token_ids"], "input_ids": prompt["input_ids"], "row": row})
    return light


def address_of(sampler: int) -> str:
    """The key under which torchrun's store has a sampler's address."""
    return f"nanor1v/sampler-{sampler}"


def at_once(connection) -> None:
    """Send short messages right away; else TCP holds one back until the one before has been confirmed."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def weight_group(parts: Split, rank: int, device):
    """A process group beside the default ones: trainer 0 as rank 0, and all samplers."""
    store = torch.distributed.PrefixStore("nanor1v/weights", parts.store)
    size = 1 + parts.samplers
    if device.type == "cuda":
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = common.PATIENCE
        return torch.distributed.ProcessGroupNCCL(store, rank, size, options)
    return torch.distributed.ProcessGroupGloo(store, rank, size, common.PATIENCE)


def broadcast(group, tensor: torch.Tensor) -> None:
    """From rank 0 of the group to the others, into their tensors of the same shape and dtype."""
    group.broadcast(tensor, root=0).wait()


@contextmanager
def other_end():
    """SystemExit, one sentence, if the process at the other end of a connection is gone."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise SystemExit(common.LOST) from error
