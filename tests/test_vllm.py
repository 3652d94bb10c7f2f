"""The sampler and the trainer are one policy: vLLM's prompts, log-probs, seeds and ends against ours, before and after updates.

One real vLLM engine and one real Qwen2.5-VL (0.8 M parameters, float32) in this process, as train_grpo.py has them.

    python -m pytest tests/test_vllm.py        # 2 CPU cores, about 40 seconds
"""

import pytest
import torch

import common
import data
import model as models
import sampling

pytestmark = pytest.mark.slow
SAMPLING = {"top_p": 1.0, "top_k": 0}
# vLLM's CPU backend caches prompts in blocks of 128 tokens, and only whole ones: shorter prompts would never hit its prefix cache
LONG = 280
PROBLEM = "Count them all: red cube, blue sphere, green cylinder, gray cube. " * 12 + "How many items are there in the image?"


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("qwen2_5_vl")


@pytest.fixture(scope="module")
def net(folder):
    common.setup(0)
    return models.load_model(folder, "float32", say=lambda line: None)


@pytest.fixture(scope="module")
def processor(folder):
    return models.load_processor(folder)


@pytest.fixture(scope="module")
def prompts(processor):
    """Prompts with 0, 1 and 2 images, in a mixed order, each of more than two cache blocks."""
    rows = data.load_rows("scenes:clevr?rows=4&seed=5&layout=grid&objects=1-4")
    pictures = [rows[i]["images"][0] for i in range(4)]
    result = []
    for i, images in enumerate(([pictures[0]], [], [pictures[1], pictures[2]], [pictures[3]])):
        row = {"id": f"row{i}", "images": images, "problem": PROBLEM, "solution": "3", "task": "count", "thinking": None}
        # images are enlarged, so that the whole cached blocks hold image tokens too; two of one size, one of another
        result.append(data.encode_prompt(row, processor, max_prompt_length=2000, min_pixels=28 * 28 * (160 + 40 * (i % 2))))
    assert all(len(p["input_ids"]) > LONG for p in result)
    return result


@pytest.fixture(scope="module")
def llm(folder, net):  # after net: the scripts load the policy first, too
    engine = sampling.start_vllm(folder, "float32", max_model_len=2048, max_images=2, max_num_seqs=64)
    yield engine
    common.finish(engine)


@pytest.fixture(scope="module")
def ids(net, processor):
    return {"banned": models.banned_ids(net.config, processor), "end": models.end_ids(processor)}


@pytest.fixture
def synced(llm, net):
    """The engine with the weights that the trainer has now."""
    sampling.sync_weights(llm, common.full_state(net, 0))
    return llm


def trainer_logps(net, prompts, groups, banned, temperature):
    """The trainer's log-probs of all response tokens, laid end to end; packed as train_grpo.py packs them."""
    starts, n = [], 0
    for group in groups:
        starts.append([])
        for c in group:
            starts[-1].append((n, c.ids))
            n += len(c.ids)
    logps, policy = torch.zeros(n), models.Policy(net, banned, temperature)
    for batch in models.pack(prompts, starts, net, row_tokens=1024, micro_tokens=2048):
        logps = logps.index_put((batch["token"],), policy(batch)[0])
    return logps


def vllm_logps(groups):
    return torch.tensor([x for group in groups for c in group for x in c.logps])


def targets(processor, end):
    """Two short answers; one ends in <|im_end|>, the other in <|endoftext|>, as both do in Qwen's own data."""
    texts = ["<answer> 3 </answer>", "<think> red cube </think> <answer> 1 </answer>"]
    return [processor.tokenizer(t, add_special_tokens=False).input_ids + [e] for t, e in zip(texts, end, strict=True)]


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

    The images and prompts stay the same, so every cache is hit; SYNC_TABLE
    """
    def draw(seed):
        return sampling.rollout_vllm(synced, prompts, n=4, seeds=[seed + i * 100 for i in range(len(prompts))], temperature=temperature,
                                     max_tokens=16, **SAMPLING, **ids)  # fmt: skip

    def difference(groups):
        with torch.no_grad():
            return (vllm_logps(groups) - trainer_logps(net, prompts, groups, ids["banned"], temperature)).abs().max().item()

    groups = draw(0)  # rollout_vllm asserts that the engine's prompt ids are ours; test_prompt_ids checks that this assertion is alive
    assert difference(groups) < 1e-4
    for update in range(1, 4):
        learn(net, prompts, processor, ids, steps=1, lr=3e-3)
        stale = difference(draw(update))
        assert stale > 1e-2, "the update was too small to tell a synced engine from one that was not"
        sampling.sync_weights(synced, common.full_state(net, 0))
        fresh = difference(draw(update))
        print(f"temperature {temperature} update {update}: {stale:.3f} before the sync, {fresh:.1e} after")
        assert fresh < 1e-4
