"""The sampler and the trainer are one policy: vLLM's prompts, log-probs, seeds and ends against ours, before and after updates.

One real vLLM engine and one real Qwen2.5-VL (0.8 M parameters, float32) in this process, as train_grpo.py has them.

    python -m pytest tests/test_vllm.py        # 2 CPU cores, about 45 seconds
"""

import os

import pytest

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read when torch is first loaded: waiting threads give the core to others
import torch

import checkpoint
import common
import data
import qwen
import sampling

pytestmark = pytest.mark.slow
SAMPLING = {"top_p": 1.0, "top_k": 0}
# vLLM's CPU backend caches prompts in blocks of 128 tokens, and only whole ones: shorter prompts would never hit its prefix cache
LONG = 280
PROBLEM = (
    "Count them all: red cube, blue sphere, green cylinder, gray cube. " * 12
    + "How many items are there in the image?"
)


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("qwen2_5_vl")


@pytest.fixture(scope="module")
def net(folder):
    common.setup(0)
    return qwen.load_model(folder, "float32", say=lambda line: None)


@pytest.fixture(scope="module")
def processor(folder):
    return qwen.load_processor(folder)


@pytest.fixture(scope="module")
def prompts(processor):
    """Prompts with 0, 1 and 2 images, in a mixed order, each of more than two cache blocks."""
    rows = data.load_rows("scenes:clevr?rows=4&seed=5&layout=grid&objects=1-4")
    pictures = [rows[i]["images"][0] for i in range(4)]
    result = []
    for i, images in enumerate(([pictures[0]], [], [pictures[1], pictures[2]], [pictures[3]])):
        row = {
            "id": f"row{i}",
            "images": images,
            "problem": PROBLEM,
            "solution": "3",
            "task": "count",
            "thinking": None,
        }
        # images are enlarged, so that the whole cached blocks hold image tokens too; two of one size, one of another
        result.append(
            data.encode_prompt(
                row, processor, max_prompt_length=2000, min_pixels=28 * 28 * (160 + 40 * (i % 2))
            )
        )
    assert all(len(p["input_ids"]) > LONG for p in result)
    return result


@pytest.fixture(scope="module")
def llm(folder, net):  # after net: the scripts load the policy first, too
    engine = sampling.start_vllm(folder, "float32", max_model_len=2048, max_images=2, max_num_seqs=64)
    yield engine
    common.finish(engine)


@pytest.fixture(scope="module")
def ids(net, processor):
    return {"banned": qwen.banned_ids(net.config, processor), "end": qwen.end_ids(processor)}


@pytest.fixture
def synced(llm, net):
    """The engine with the weights that the trainer has now."""
    sampling.sync_weights(llm, checkpoint.full_state(net, 0))
    return llm


def trainer_logps(net, prompts, groups, banned, temperature):
    """The trainer's log-probs of all response tokens, laid end to end; packed as train_grpo.py packs them."""
    starts, n = [], 0
    for group in groups:
        starts.append([])
        for c in group:
            starts[-1].append((n, c.ids))
            n += len(c.ids)
    logps, policy = torch.zeros(n), qwen.Policy(net, banned, temperature)
    for batch in qwen.pack(prompts, starts, net, micro_tokens=2048):
        logps = logps.index_put((batch["token"],), policy(batch)[0])
    return logps


def vllm_logps(groups):
    return torch.tensor([x for group in groups for c in group for x in c.logps])


def targets(processor, end):
    """Two short answers; one ends in <|im_end|>, the other in <|endoftext|>, as both do in Qwen's own data."""
    texts = ["<answer> 3 </answer>", "<think> red cube </think> <answer> 1 </answer>"]
    return [
        processor.tokenizer(t, add_special_tokens=False).input_ids + [e]
        for t, e in zip(texts, end, strict=True)
    ]


def learn(net, prompts, processor, ids, steps, lr):
    """Real updates towards `targets`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    groups = [[sampling.Completion(t, [], True) for t in targets(processor, ids["end"])] for _ in prompts]
    for _ in range(steps):
        loss = -trainer_logps(net, prompts, groups, ids["banned"], 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_agree_through_updates(synced, net, processor, prompts, ids, temperature):
    """vLLM's log-probs are the trainer's, at the start and after each of three updates; before each sync they are not.

    The images and prompts stay the same, so that every cache is hit. What this test shows if sync_weights leaves a reset out:
      reset_prefix_cache    log-probs are off by 0.7 after the first sync: keys and values of the old weights
      reset_encoder_cache   the engine waits for ever for an image that it takes for encoded (reload_weights emptied half of that cache)
      reset_mm_cache        nothing with this vLLM: processed pixels do not depend on the weights
    """

    def draw(seed):
        return sampling.rollout_vllm(
            synced,
            prompts,
            n=4,
            seeds=[seed + i * 100 for i in range(len(prompts))],
            temperature=temperature,
            max_tokens=16,
            **SAMPLING,
            **ids,
        )

    def difference(groups):
        with torch.no_grad():
            return (
                (vllm_logps(groups) - trainer_logps(net, prompts, groups, ids["banned"], temperature))
                .abs()
                .max()
                .item()
            )

    groups = draw(0)
    assert difference(groups) < 1e-4
    for update in range(1, 4):
        learn(net, prompts, processor, ids, steps=1, lr=3e-3)
        stale = difference(draw(update))
        assert stale > 1e-2, "the update was too small to tell a synced engine from one that was not"
        sampling.sync_weights(synced, checkpoint.full_state(net, 0))
        fresh = difference(draw(update))
        print(f"temperature {temperature} update {update}: {stale:.3f} before the sync, {fresh:.1e} after")
        assert fresh < 1e-4


def test_prompt_ids(synced, prompts, ids):
    """The engine's own expansion of the image placeholders is the trainer's, id by id; rollout_vllm refuses a prompt where it is not."""
    knobs = {"n": 1, "seeds": [0], "temperature": 0.0, "max_tokens": 1} | SAMPLING | ids
    for prompt in prompts:
        outputs = synced.generate(
            [
                {"prompt_token_ids": prompt["token_ids"]}
                | (
                    {"multi_modal_data": {"image": prompt["row"]["images"]}}
                    if prompt["row"]["images"]
                    else {}
                )
            ],
            use_tqdm=False,
        )
        assert list(outputs[0].prompt_token_ids) == prompt["input_ids"]
    with pytest.raises(AssertionError, match="disagree on the prompt of row row0"):
        sampling.rollout_vllm(synced, [prompts[0] | {"input_ids": prompts[0]["input_ids"][:-1]}], **knobs)


def test_seeds(synced, prompts, ids):
    def draw(base):
        seeds = [sampling.sample_seed(base, 0, i) for i in range(len(prompts))]
        return sampling.rollout_vllm(
            synced, prompts, n=4, seeds=seeds, temperature=1.0, max_tokens=12, **SAMPLING, **ids
        )

    first, again, other = draw(0), draw(0), draw(1)
    assert [[c.ids for c in g] for g in first] == [[c.ids for c in g] for g in again]
    assert all(
        a.ids != b.ids for ga, gb in zip(first, other, strict=True) for a, b in zip(ga, gb, strict=True)
    )
    assert all(len({tuple(c.ids) for c in group}) == 4 for group in first), (
        "the completions of a group have seeds of their own"
    )
    # alone or in company, a prompt gets the same completions: that is what makes runs on 1 and on 2 processes comparable
    seeds = [sampling.sample_seed(0, 0, 1)]
    alone = sampling.rollout_vllm(
        synced, prompts[1:2], n=4, seeds=seeds, temperature=1.0, max_tokens=12, **SAMPLING, **ids
    )
    assert [c.ids for c in alone[0]] == [c.ids for c in first[1]]


def test_banned_ids_never_appear(synced, net, prompts, ids):
    """512 hot completions hold no banned id, from either sampler; without the ban dozens do, so that the test can fail."""

    def count(draw, who, temperature, banned):
        knobs = SAMPLING | {"temperature": temperature, "max_tokens": 8, "banned": banned, "end": ids["end"]}
        groups = draw(who, prompts, n=128, seeds=[7, 1007, 2007, 3007], **knobs)
        assert sum(len(g) for g in groups) == 512
        return sum(t in set(ids["banned"]) for g in groups for c in g for t in c.ids)

    assert (
        count(sampling.rollout_vllm, synced, 2.0, ids["banned"]) == 0
    )  # 2 is the highest temperature that vLLM accepts
    assert count(sampling.rollout_vllm, synced, 2.0, []) >= 12
    assert count(sampling.rollout_hf, net, 3.0, ids["banned"]) == 0


def check_ends(groups, end, max_tokens):
    for c in (c for group in groups for c in group):
        assert len(c.ids) == len(c.logps) and 1 <= len(c.ids) <= max_tokens
        assert not set(c.ids[:-1]) & set(end), "nothing may follow an end token"
        assert c.finished == (c.ids[-1] in end)
        assert c.finished or len(c.ids) == max_tokens


def test_ends(llm, net, processor, prompts, ids):
    """The end token is part of the completion, nothing follows it, and `finished` is right, also at exactly max_tokens."""
    learn(net, prompts, processor, ids, steps=12, lr=5e-3)
    sampling.sync_weights(llm, checkpoint.full_state(net, 0))
    knobs = {"n": 16, "seeds": [0, 100, 200, 300], "temperature": 1.0} | SAMPLING | ids

    def ends(groups):
        return {c.ids[-1] for group in groups for c in group if c.finished}

    long = sampling.rollout_vllm(llm, prompts, max_tokens=24, **knobs)
    check_ends(long, ids["end"], 24)
    assert ends(long) == set(ids["end"]), "both end tokens should occur"
    short = sampling.rollout_vllm(llm, prompts, max_tokens=3, **knobs)
    check_ends(short, ids["end"], 3)
    assert not all(c.finished for g in short for c in g)
    done = next(c for c in long[0] if c.finished)
    n, place = len(done.ids), long[0].index(done)
    exact, cut = (
        sampling.rollout_vllm(llm, prompts[:1], max_tokens=m, **(knobs | {"seeds": [0]}))[0][place]
        for m in (n, n - 1)
    )
    assert exact.ids == done.ids and exact.finished
    assert cut.ids == done.ids[:-1] and not cut.finished
    hf = sampling.rollout_hf(net, prompts, max_tokens=24, **knobs)
    check_ends(hf, ids["end"], 24)
    assert ends(hf) == set(ids["end"])


@pytest.mark.parametrize("max_tokens", [5, 24])
def test_vllm_and_transformers_agree_greedily(synced, net, prompts, ids, max_tokens):
    """Token for token, with the same log-probs and flags; at 5 tokens nothing is finished, at 24 the trained policy is (test_ends)."""
    knobs = (
        {"n": 1, "seeds": [0] * len(prompts), "temperature": 0.0, "max_tokens": max_tokens} | SAMPLING | ids
    )
    one, other = sampling.rollout_vllm(synced, prompts, **knobs), sampling.rollout_hf(net, prompts, **knobs)
    for (a,), (b,) in zip(one, other, strict=True):
        assert a.ids == b.ids and a.finished == b.finished
        assert torch.allclose(torch.tensor(a.logps), torch.tensor(b.logps), atol=1e-4)
    check_ends(one, ids["end"], max_tokens)
    # sampled tokens: not the same ones (other generators), but the same distribution, as the log-probs that come with them say
    sampled = sampling.rollout_hf(net, prompts, **(knobs | {"temperature": 0.7, "n": 2}))
    with torch.no_grad():
        expected = trainer_logps(net, prompts, sampled, ids["banned"], 0.7)
    assert torch.allclose(vllm_logps(sampled), expected, atol=1e-4)
