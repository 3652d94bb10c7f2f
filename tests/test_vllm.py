"""The sampler and the trainer are one policy: vLLM's prompts, log-probs, seeds and ends against ours.

Before and after updates. One real vLLM engine and one real Qwen2.5-VL (0.8 M parameters, float32) in this
process, as train_grpo.py has them.

    python -m pytest tests/test_vllm.py        # 2 CPU cores, about 45 seconds
"""

import os

import pytest

# read when torch is first loaded: waiting threads give the core to others
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

import checkpoint
import common
import data
import qwen
import sampling

pytestmark = pytest.mark.slow
SAMPLING = {"top_p": 1.0, "top_k": 0}
# vLLM's CPU backend caches prompts in blocks of 128 tokens, and only whole ones: shorter prompts would never
# hit its prefix cache
LONG = 280
LISTED = "Count them all: red cube, blue sphere, green cylinder, gray cube. "
PROBLEM = LISTED * 12 + "How many items are there in the image?"


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
        row = {"id": f"row{i}", "images": images, "problem": PROBLEM, "solution": "3", "task": "count"}
        row["thinking"] = None
        # images are enlarged, so that the whole cached blocks hold image tokens too; two of one size, one of
        # another
        min_pixels = 28 * 28 * (160 + 40 * (i % 2))
        result.append(data.encode_prompt(row, processor, max_prompt_length=2000, min_pixels=min_pixels))
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
    completions = []  # per prompt a list of (place of its first token, ids)
    n = 0
    for group in groups:
        members = []
        for c in group:
            members.append((n, c.ids))
            n += len(c.ids)
        completions.append(members)
    logps = torch.zeros(n)
    policy = qwen.Policy(net, banned, temperature)
    for batch in qwen.pack(prompts, completions, net, micro_tokens=2048):
        logps = logps.index_put((batch["token"],), policy(batch)[0])
    return logps


def vllm_logps(groups):
    return torch.tensor([x for group in groups for c in group for x in c.logps])


def targets(processor, end):
    """Two short answers; one ends in <|im_end|>, the other in <|endoftext|>: Qwen's own data have both."""
    answers = []
    for text in ("<answer> 3 </answer>", "<think> red cube </think> <answer> 1 </answer>"):
        answers.append(processor.tokenizer(text, add_special_tokens=False).input_ids)
    return [answer + [token] for answer, token in zip(answers, end, strict=True)]


def learn(net, prompts, processor, ids, steps, lr):
    """Real updates towards `targets`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    group = [sampling.Completion(target, [], True) for target in targets(processor, ids["end"])]
    groups = [group] * len(prompts)
    for _ in range(steps):
        loss = -trainer_logps(net, prompts, groups, ids["banned"], 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_agree_through_updates(synced, net, processor, prompts, ids, temperature):
    """vLLM's log-probs are the trainer's, at the start and after each of three updates; not before each sync.

    The images and prompts stay the same, so that every cache is hit. What this test shows if sync_weights
    leaves a reset out:
      reset_prefix_cache    log-probs are off by 0.7 after the first sync: keys and values of the old weights
      reset_encoder_cache   the engine waits for ever for an image that it takes for encoded (reload_weights
                            emptied half of that cache)
      reset_mm_cache        nothing with this vLLM: processed pixels do not depend on the weights
    """
    knobs = {"n": 4, "temperature": temperature, "max_tokens": 16} | SAMPLING | ids

    def draw(seed):
        seeds = [seed + i * 100 for i in range(len(prompts))]
        return sampling.rollout_vllm(synced, prompts, seeds=seeds, **knobs)

    def difference(groups):
        with torch.no_grad():
            ours = trainer_logps(net, prompts, groups, ids["banned"], temperature)
        return (vllm_logps(groups) - ours).abs().max().item()

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
    """The engine's own expansion of the image placeholders is the trainer's, id by id.

    rollout_vllm refuses a prompt where it is not.
    """
    knobs = {"n": 1, "seeds": [0], "temperature": 0.0, "max_tokens": 1} | SAMPLING | ids
    for prompt in prompts:
        request = {"prompt_token_ids": prompt["token_ids"]}
        if prompt["row"]["images"]:
            request["multi_modal_data"] = {"image": prompt["row"]["images"]}
        outputs = synced.generate([request], use_tqdm=False)
        assert list(outputs[0].prompt_token_ids) == prompt["input_ids"]
    shorter = prompts[0] | {"input_ids": prompts[0]["input_ids"][:-1]}
    with pytest.raises(AssertionError, match="disagree on the prompt of row row0"):
        sampling.rollout_vllm(synced, [shorter], **knobs)


def test_seeds(synced, prompts, ids):
    knobs = {"n": 4, "temperature": 1.0, "max_tokens": 12} | SAMPLING | ids

    def draw(base, places):
        """The ids of every completion, of the prompts at these places."""
        seeds = [sampling.sample_seed(base, 0, i) for i in places]
        groups = sampling.rollout_vllm(synced, [prompts[i] for i in places], seeds=seeds, **knobs)
        return [[c.ids for c in group] for group in groups]

    places = range(len(prompts))
    first = draw(0, places)
    assert draw(0, places) == first
    for group, other in zip(first, draw(1, places), strict=True):
        assert all(a != b for a, b in zip(group, other, strict=True))
        assert len({tuple(completion) for completion in group}) == 4, "completions have seeds of their own"
    # alone or in company, a prompt gets the same completions: runs on 1 and on 2 processes are comparable
    assert draw(0, [1]) == [first[1]]


def test_banned_ids_never_appear(synced, net, prompts, ids):
    """512 hot completions hold no banned id, from either sampler; without the ban dozens do."""

    def count(draw, who, temperature, banned):
        knobs = SAMPLING | {"temperature": temperature, "max_tokens": 8, "banned": banned, "end": ids["end"]}
        groups = draw(who, prompts, n=128, seeds=[7, 1007, 2007, 3007], **knobs)
        assert sum(len(g) for g in groups) == 512
        drawn = [token for group in groups for c in group for token in c.ids]
        return sum(token in ids["banned"] for token in drawn)

    # 2 is the highest temperature that vLLM accepts
    assert count(sampling.rollout_vllm, synced, 2.0, ids["banned"]) == 0
    assert count(sampling.rollout_vllm, synced, 2.0, []) >= 12
    assert count(sampling.rollout_hf, net, 3.0, ids["banned"]) == 0


def test_more_ids_than_can_be_banned_are_refused(synced, prompts, ids):
    knobs = SAMPLING | {"temperature": 1.0, "max_tokens": 2, "banned": list(range(1025)), "end": ids["end"]}
    with pytest.raises(SystemExit, match="^vllm: 1025 ids .* exclude 1024; set --rollout=hf"):
        sampling.rollout_vllm(synced, prompts, n=1, seeds=[1, 2, 3, 4], **knobs)


def test_a_cache_that_stays_full_ends_the_run(synced, net, monkeypatch):
    """vLLM says by False that requests under way still hold blocks of it."""
    monkeypatch.setattr(synced, "reset_prefix_cache", lambda: False)
    with pytest.raises(SystemExit, match="^vllm: .* keys and values of the old weights"):
        sampling.sync_weights(synced, checkpoint.full_state(net, 0))


def check_ends(groups, end, max_tokens):
    for c in [c for group in groups for c in group]:
        assert len(c.ids) == len(c.logps) and 1 <= len(c.ids) <= max_tokens
        assert not set(c.ids[:-1]) & set(end), "nothing may follow an end token"
        assert c.finished == (c.ids[-1] in end)
        assert c.finished or len(c.ids) == max_tokens


def test_ends(llm, net, processor, prompts, ids):
    """The end token is part of the completion, nothing follows it, and `finished` is right.

    Also for one that ends at exactly max_tokens.
    """
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
    place = long[0].index(done)

    def again(max_tokens):
        groups = sampling.rollout_vllm(llm, prompts[:1], max_tokens=max_tokens, **(knobs | {"seeds": [0]}))
        return groups[0][place]

    exact = again(len(done.ids))
    cut = again(len(done.ids) - 1)
    assert exact.ids == done.ids and exact.finished
    assert cut.ids == done.ids[:-1] and not cut.finished
    hf = sampling.rollout_hf(net, prompts, max_tokens=24, **knobs)
    check_ends(hf, ids["end"], 24)
    assert ends(hf) == set(ids["end"])


@pytest.mark.parametrize("max_tokens", [5, 24])
def test_vllm_and_transformers_agree_greedily(synced, net, prompts, ids, max_tokens):
    """Token for token, with the same log-probs and flags.

    At 5 tokens nothing is finished, at 24 the trained policy is (test_ends).
    """
    greedy = {"n": 1, "seeds": [0] * len(prompts), "temperature": 0.0, "max_tokens": max_tokens}
    knobs = greedy | SAMPLING | ids
    one = sampling.rollout_vllm(synced, prompts, **knobs)
    other = sampling.rollout_hf(net, prompts, **knobs)
    for (a,), (b,) in zip(one, other, strict=True):
        assert a.ids == b.ids and a.finished == b.finished
        assert torch.allclose(torch.tensor(a.logps), torch.tensor(b.logps), atol=1e-4)
    check_ends(one, ids["end"], max_tokens)
    # sampled tokens: not the same ones (other generators), but the same distribution, as their log-probs say
    sampled = sampling.rollout_hf(net, prompts, **(knobs | {"temperature": 0.7, "n": 2}))
    with torch.no_grad():
        expected = trainer_logps(net, prompts, sampled, ids["banned"], 0.7)
    assert torch.allclose(vllm_logps(sampled), expected, atol=1e-4)
