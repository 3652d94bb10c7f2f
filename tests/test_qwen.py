"""The policy's forward pass and the transformers rollout, on tiny Qwen2-VL, Qwen2.5-VL, Qwen3-VL and
Qwen3.5 models in float32.

The packed groups (a whole group behind one prompt, several groups end to end, groups cut in pieces) must
give the log-probs AND the gradients of plain transformers: one row per completion, no packing, the model's
own positions, eager attention with a causal mask, log-softmax by hand. The sampler must draw from that same
distribution, reproducibly.

    python -m pytest tests/test_qwen.py
"""

import copy
import functools
import random
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3_5 import modeling_qwen3_5

import checkpoint
import common
import data
import qwen
import sampling

CONFIGS = {"qwen2_vl": "Qwen2VLConfig", "qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig"}
CONFIGS["qwen3_5"] = "Qwen3_5Config"
SKIP = pytest.mark.skip("this transformers does not have it")
FAMILIES = [pytest.param(f, marks=() if hasattr(transformers, c) else SKIP) for f, c in CONFIGS.items()]
TEMPERATURE = 0.7


def picture(seed, width=56, height=56):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_row(problem, *images):
    return {
        "id": problem,
        "images": list(images),
        "problem": problem,
        "solution": "3",
        "task": "count",
        "thinking": None,
    }


def one_token_at_a_time(*args, chunk_size=None, **how):
    """Transformers' own gated delta rule as a loop over the tokens, which rounds less than its chunked form:
    that is off by 0.4 % in the gradient of A_log, as it takes differences of sums of log-decays in float32.
    """
    return modeling_qwen3_5.torch_recurrent_gated_delta_rule(*args, **how)


class Kit:
    """A tiny model with its processor, and groups of completions."""

    def __init__(self, folder, attn="sdpa"):
        self.folder, self.processor = folder, qwen.load_processor(folder)
        self.net = qwen.load_model(folder, "float32", attn, say=lambda line: None).eval()
        self.outside = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.banned, self.end = qwen.banned_ids(self.net.config, self.processor), qwen.end_ids(self.processor)
        self.allowed = sorted(set(range(self.net.config.get_text_config().vocab_size)) - set(self.banned))
        rows = [
            make_row("How many cubes?", picture(0)),
            make_row("Two and two?"),
            make_row("Which is larger, and why?", picture(1), picture(2, 112, 84)),
            make_row("How many red spheres are there?", picture(3)),
        ]
        self.prompts = [self.encode(r) for r in rows]
        rng, start, self.groups = random.Random(0), 0, []
        for lengths in ((4, 1, 7), (3, 5, 2), (6, 2, 9), (1, 1, 8)):
            group = []
            for n in lengths:
                group.append((start, [rng.choice(self.allowed) for _ in range(n - 1)] + [self.end[0]]))
                start += n
            self.groups.append(group)
        self.total = start
        self.weights = torch.randn(
            start, generator=torch.Generator().manual_seed(0)
        )  # of the tokens in the loss

    def encode(self, row, **more):
        return data.encode_prompt(row, self.processor, "direct", **more)

    def plain(self, prompt, ids):
        """Log-probs (C,) of a completion and of the whole vocabulary (C, V): transformers' own forward pass
        on prompt + completion.
        """
        full = torch.tensor([prompt["input_ids"] + ids])
        vision = {k: prompt[k] for k in ("pixel_values", "image_grid_thw") if prompt[k] is not None}
        types = (full == self.net.config.image_token_id).int()
        every = torch.ones_like(full)
        with mock.patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", one_token_at_a_time):
            logits = self.outside(
                input_ids=full, attention_mask=every, mm_token_type_ids=types, use_cache=False, **vision
            ).logits
        logits = (
            logits[0, len(prompt["input_ids"]) - 1 : -1] / TEMPERATURE
        )  # (C, V): position t predicts token t + 1
        allowed = torch.zeros(logits.shape[1]).index_fill(0, torch.tensor(self.allowed), 1.0)
        top = logits.detach().max()
        logps = logits - top - ((logits - top).exp() * allowed).sum(-1, keepdim=True).log()
        return logps[torch.arange(len(ids)), ids], logps

    @functools.cached_property
    def expected(self):
        """Log-probs (L,) of all completions, gradients by name of sum_t weight_t * logp_t: one completion
        at a time, nothing packed.
        """
        self.outside.zero_grad()
        out = torch.zeros(self.total)
        for prompt, group in zip(self.prompts, self.groups, strict=True):
            for start, ids in group:
                logp, _ = self.plain(prompt, ids)
                (logp * self.weights[start : start + len(ids)]).sum().backward()
                out[start : start + len(ids)] = logp.detach()
        return out, {name: p.grad.clone() for name, p in self.outside.named_parameters()}

    def packed(self, micro_tokens, policy=None, prompts=None, groups=None):
        """The same from packed groups; also the micro-batches."""
        policy = policy or qwen.Policy(self.net, self.banned, TEMPERATURE)
        self.net.zero_grad()
        out = torch.full((self.total,), torch.nan)
        batches = qwen.pack(prompts or self.prompts, groups or self.groups, self.net, micro_tokens)
        for batch in batches:
            logp, _ = policy(batch)
            (logp * self.weights[batch["token"]]).sum().backward()
            assert out[batch["token"]].isnan().all()  # every token once
            out[batch["token"]] = logp.detach()
        return out, {name: p.grad.clone() for name, p in self.net.named_parameters()}, batches


KITS = {}


@pytest.fixture
def kit(request, tiny_folder):
    family = request.param
    if family not in KITS:
        KITS[family] = Kit(tiny_folder(family))
    return KITS[family]


each_family = pytest.mark.parametrize("kit", FAMILIES, indirect=True)
one_family = pytest.mark.parametrize("kit", FAMILIES[1:2], indirect=True)
both_kinds = pytest.mark.parametrize("kit", FAMILIES[1::2], indirect=True)  # without and with delta nets


def assert_same(result, expected, tol=1e-5):
    """Gradients by their norm. Those of a delta net's decay are sums of large numbers that cancel: they get
    2e-5, and a floor, as one of them comes to 0.01 where others are 1 to 300.
    """
    logps, gradients = result[:2]
    torch.testing.assert_close(logps, expected[0], atol=tol, rtol=tol)
    for name, g in expected[1].items():
        is_decay = name.endswith(("linear_attn.A_log", "linear_attn.dt_bias"))
        allowed = 2e-5 * g.norm() + 5e-6 if is_decay else tol * g.norm() + 1e-7
        assert (gradients[name] - g).norm() <= allowed, name


# -----------------------------------------------------------------------------
# packed groups
# -----------------------------------------------------------------------------

# micro_tokens -> groups (or parts of one) in every micro-batch; the groups are 94, 61, 60 and 55 tokens long
LAYOUTS = {
    "a group per micro-batch": (94, [1] * 4),
    "all groups in one": (1000, [4]),
    "two and two": (155, [2, 2]),
    "groups split, a completion each": (1, [1] * 12),
    "groups split in two": (88, [1] * 5),
}


@each_family
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_groups_equal_plain_transformers(kit, layout):
    """0, 1 and 2 images per prompt (sizes differ), 3 completions each; log-probs and the gradient of every
    parameter.
    """
    micro_tokens, shape = LAYOUTS[layout]
    logps, gradients, batches = kit.packed(micro_tokens)
    prompts = [
        [b["segments"][b["segments"][:, 3] > 0, 2].tolist()] for b in batches
    ]  # where each completion's prompt starts
    assert [len(set(starts)) for (starts,) in prompts] == shape
    assert_same((logps, gradients), kit.expected)
    assert all(g.norm() > 1e-4 for g in kit.expected[1].values())  # nothing was compared with zero


@one_family
def test_the_banned_ids_are_where_the_model_is(kit):
    """DeepSpeed moves the policy, but nobody moves the reference; a GPU is not needed to see that."""
    model = copy.deepcopy(kit.net).to("meta")
    assert qwen.Policy(model, kit.banned).banned.device.type == "meta"


@one_family
def test_micro_batches_leave_out_what_is_not_used(kit):
    """Places in the flat array stay the same, whichever completions are left out; one at least stays."""
    common.setup(0)
    ids = [completion for group in kit.groups for _, completion in group]
    flat = torch.tensor([token for completion in ids for token in completion])
    sequence = torch.repeat_interleave(
        torch.arange(12), torch.tensor([len(completion) for completion in ids])
    )
    every = torch.ones(12, dtype=torch.bool)
    some = every.clone()
    some[[0, 3, 4, 5, 11]] = False
    for used, expected in ((every, every), (some, some), (~every, torch.arange(12) == 0)):
        for micro_tokens in (1, 155, 1000):
            budget = qwen.TokenBudget(micro_tokens, torch.device("cpu"))
            batches = qwen.micro_batches(kit.prompts, ids, used, kit.net, budget)
            token = torch.cat([batch["token"] for batch in batches])
            assert token.sort().values.tolist() == expected[sequence].nonzero()[:, 0].tolist()
            assert torch.equal(torch.cat([batch["target"] for batch in batches]), flat[token])
            assert all(batch["real"] == used.any() for batch in batches)
            assert [batch["logit_tokens"] for batch in batches] == [len(b["token"]) for b in batches]


@each_family
def test_the_comparison_above_can_fail(kit):
    """Each mistake that packing invites changes the log-probs by far more than the tolerance."""
    logps, policy = kit.expected[0], qwen.Policy(kit.net, kit.banned, TEMPERATURE)
    (batch,) = qwen.pack(kit.prompts, kit.groups, kit.net, 1000)
    segments = batch["segments"]
    first = torch.cat(
        [segments[:, :2], segments[:1, :2].expand(len(segments), -1)], 1
    )  # every segment behind the first prompt
    pixels, size = batch["pixel_values"], len(kit.prompts[0]["pixel_values"])
    mistakes = {
        "positions simply count on": {
            "position_ids": torch.arange(batch["input_ids"].numel()).expand(3, 1, -1)
        },
        "completions behind another prompt": {"segments": torch.where(segments[:, 3:] > 0, first, segments)},
        "completions behind no prompt": {"segments": segments * torch.tensor([1, 1, 0, 0])},
        "images in another order": {"pixel_values": torch.cat([pixels[-size:], pixels[:-size]])},
    }
    for name, change in mistakes.items():
        with torch.no_grad():
            assert (policy(batch | change)[0] - logps[batch["token"]]).abs().max() > 1e-2, name


@both_kinds
def test_gradient_checkpointing_training_mode_and_logit_chunks(kit, tiny_folder):
    """As the trainer runs it: activations recomputed, logits in chunks that cut through completions."""
    other = Kit(kit.folder)
    other.net.train().gradient_checkpointing_enable({"use_reentrant": False})
    policy = qwen.Policy(other.net, other.banned, TEMPERATURE, logit_chunk=3)
    assert_same(other.packed(155, policy), kit.expected)


@one_family
@pytest.mark.parametrize("entropy, passes", [("value", 1), ("none", 0), ("gradient", 2)])
def test_the_entropy_is_computed_once_and_only_where_it_is_used(kit, entropy, passes):
    """Each pass over the logits costs 10 GB of traffic at Qwen's vocabulary and 16,000 tokens."""

    class Products(TorchDispatchMode):
        count = 0  # of logits' size: p * log p

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            is_wide = any(isinstance(x, torch.Tensor) and x.shape[-1:] == (vocabulary,) for x in args[:2])
            Products.count += is_wide and function is torch.ops.aten.exp.default
            return function(*args, **(kwargs or {}))

    vocabulary = kit.net.config.get_text_config().vocab_size
    (batch,) = qwen.pack(kit.prompts, kit.groups, kit.net, 1000)
    policy = qwen.Policy(kit.net, kit.banned, TEMPERATURE, logit_chunk=10**6)
    with Products():
        logp, of_tokens = policy(batch, entropy=entropy)
        logp.sum().backward()
    kit.net.zero_grad()
    assert Products.count == passes
    assert (of_tokens is None) == (entropy == "none")


@pytest.mark.slow
@one_family
def test_compiled_layers_equal_plain_transformers(kit):
    """Two lengths, gradients, and a rollout on the compiled model."""
    other = Kit(kit.folder)
    other.net.train().gradient_checkpointing_enable({"use_reentrant": False})
    qwen.compile_layers(other.net)
    assert_same(other.packed(1000), kit.expected)
    assert_same(other.packed(155), kit.expected)
    assert [[c.ids for c in g] for g in rollout(other)] == [[c.ids for c in g] for g in rollout(kit)]


def test_a_model_that_would_mix_up_completions_is_refused(tiny_folder):
    net = transformers.AutoModelForImageTextToText.from_pretrained(tiny_folder(), attn_implementation="sdpa")
    with pytest.raises(
        ValueError, match="attention 'sdpa' would mix up packed completions; load it with load_model"
    ):
        qwen.between_segments(torch.tensor([[0, 1, 0, 0]]), net)


@each_family
@pytest.mark.parametrize("sizes", [[(112, 112)], [(140, 84), (56, 56), (252, 168)]])
def test_vision_windows_in_one_call_per_length_equal_transformers(kit, sizes):
    """Images whose windows have one size, and several; features and the gradient of the pixels."""
    prompt = kit.encode(make_row("How many?", *(picture(i, *size) for i, size in enumerate(sizes))))
    results = []
    for net in (kit.net, kit.outside):
        pixels = prompt["pixel_values"].clone().requires_grad_()
        out = torch.cat(
            net.model.get_image_features(pixels, prompt["image_grid_thw"], return_dict=True).pooler_output
        )
        way = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        results.append((out, torch.autograd.grad((out * way).sum(), pixels)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kit", FAMILIES, indirect=True)
def test_text_only_rows_leave_the_vision_tower_without_gradient_but_in_the_graph(kit):
    prompt, group = kit.prompts[1], [(s - kit.groups[1][0][0], ids) for s, ids in kit.groups[1]]
    out, gradients, _ = kit.packed(1000, prompts=[prompt], groups=[group])
    torch.testing.assert_close(
        out[:10], torch.cat([kit.plain(prompt, ids)[0].detach() for _, ids in group]), atol=1e-5, rtol=1e-5
    )
    for name, g in gradients.items():
        assert (".visual." in name) == (g.norm() == 0), name


@each_family
def test_entropy_is_that_of_the_sampled_distribution(kit):
    (batch,) = qwen.pack(kit.prompts, kit.groups, kit.net, 1000)
    with torch.no_grad():
        _, entropy = qwen.Policy(kit.net, kit.banned, TEMPERATURE)(batch)
        for prompt, group in zip(kit.prompts, kit.groups, strict=True):
            for start, ids in group:
                expected = torch.distributions.Categorical(
                    logits=kit.plain(prompt, ids)[1][:, kit.allowed]
                ).entropy()
                where = (batch["token"] >= start) & (batch["token"] < start + len(ids))
                torch.testing.assert_close(entropy[where], expected, atol=1e-5, rtol=1e-5)


@each_family
def test_two_prompts_with_images_of_one_size_are_not_mixed_up(kit):
    prompts = [
        kit.encode(make_row("How many cubes?", picture(seed, 112, 84), picture(seed + 1, 112, 84)))
        for seed in (10, 20)
    ]
    ids = kit.groups[0][2][1]

    def logps(prompts, micro_tokens):
        batches = qwen.pack(
            prompts, [[(i * len(ids), ids)] for i in range(len(prompts))], kit.net, micro_tokens
        )
        with torch.no_grad():
            values = [qwen.Policy(kit.net, kit.banned, TEMPERATURE)(b)[0] for b in batches]
        return torch.cat(values)[torch.cat([b["token"] for b in batches]).argsort()].view(len(prompts), -1)

    apart = torch.cat([logps([p], 1) for p in prompts])
    for micro_tokens in (1, 1000):
        torch.testing.assert_close(logps(prompts, micro_tokens), apart, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logps(prompts[::-1], micro_tokens), apart.flip(0), atol=1e-5, rtol=1e-5)
    assert (apart[0] - apart[1]).abs().max() > 0.05


@each_family
def test_what_a_token_can_see(kit):
    """Another token in completion 1 of prompt 2: its own later tokens change, nothing else does."""
    policy = qwen.Policy(kit.net, kit.banned, TEMPERATURE)

    def logps(groups):
        (batch,) = qwen.pack(kit.prompts, groups, kit.net, 1000)
        with torch.no_grad():
            return policy(batch)[0][batch["token"].argsort()]

    start, ids = kit.groups[2][0]
    changed = ids[:2] + [next(i for i in kit.allowed if i not in ids)] + ids[3:]
    before = logps(kit.groups)
    after = logps([*kit.groups[:2], [(start, changed), *kit.groups[2][1:]], kit.groups[3]])
    same = torch.ones(kit.total, dtype=torch.bool)
    same[start + 2 : start + 6] = False
    torch.testing.assert_close(after[same], before[same], atol=2e-6, rtol=0)
    assert ((after - before)[~same].abs() > 1e-4).all()


def test_who_attends_to_whom_by_hand():
    """With keys that are unit vectors and a flat softmax the result names what a token sees: prompt p,
    completions a, b; prompt q, c.
    """
    segments = torch.tensor([[0, 2, 0, 0], [2, 2, 0, 2], [4, 1, 0, 2], [5, 1, 0, 0], [6, 1, 5, 1]])
    expected = [
        # p  p  a  a  b  q  c
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    value = torch.eye(7).expand(
        1, 1, -1, -1
    )  # (1, H, T, d): what comes out at place t is the mean of the unit vectors it sees
    seen = qwen.segments_sdpa(segments)(torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 7, 7), value, 1.0, 0)[
        0, :, 0
    ]  # (T, d)
    assert (seen > 0).int().tolist() == expected
    torch.testing.assert_close(seen.sum(1), torch.ones(7))


def one_by_one(q, k, v, cu_q, cu_k, max_q, max_k, scaling, causal):
    """What FlashAttention's documentation promises of its kernel, as a loop: the causal mask is aligned to
    the bottom right corner.
    """
    out = []
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        assert b - a <= max_q and d - c <= max_k
        keys, values = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scaling
        if causal:
            scores = scores.masked_fill(
                ~torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1]),
                -torch.inf,
            )
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(out)


@each_family
def test_the_way_to_the_varlen_kernel(kit, monkeypatch):
    """The kernel itself needs a GPU; what goes into it and what comes out is checked with a loop in its
    place.
    """
    monkeypatch.setattr(qwen, "varlen", one_by_one)
    other = Kit(kit.folder)
    other.net.config._attn_implementation = "segments_flash_varlen"
    assert_same(other.packed(155), kit.expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_varlen_kernel_equals_sdpa():
    """bfloat16 against float32 sdpa: values and gradients within the 2^-8 relative error of a bfloat16
    number, times a few.
    """
    segments = torch.tensor(
        [[0, 40, 0, 0], [40, 30, 0, 40], [70, 7, 0, 40], [77, 90, 0, 0], [167, 1, 77, 90], [168, 64, 77, 90]]
    ).cuda()
    q, k, v = (torch.randn(1, h, 232, 64, device="cuda", requires_grad=True) for h in (6, 2, 2))
    way = torch.randn(1, 232, 6, 64, device="cuda")
    results = []
    for attend, dtype in (
        (qwen.segments_sdpa(segments), torch.float32),
        (qwen.segments_varlen(segments), torch.bfloat16),
    ):
        out = attend(q.to(dtype), k.to(dtype), v.to(dtype), 0.125, 0).float()
        results.append((out, *torch.autograd.grad((out * way).sum(), (q, k, v))))
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() < 0.01 * exact.norm()


# -----------------------------------------------------------------------------
# loading, prompts, banned ids
# -----------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize(
    "sizes", [[], [(56, 56)], [(112, 84), (56, 84)], [(100, 75)], [(640, 480)], [(20, 20)]]
)
def test_encode_prompt_equals_the_processor(kit, sizes):
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    prompt = data.encode_prompt(
        make_row("How many cubes?", *images), kit.processor, "think", max_pixels=40000
    )
    instruction = "  Output the thinking process in <think> </think> "
    instruction += "and final answer (number) in <answer> </answer> tags."
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + "<|vision_start|><|image_pad|><|vision_end|>" * len(images)
        + "How many cubes?"
        + instruction
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    resized = prompt["row"]["images"]
    full = kit.processor(
        text=[text],
        images=resized or None,
        return_tensors="pt",
        size={"shortest_edge": 3136, "longest_edge": 40000},
    )
    assert prompt["input_ids"] == full["input_ids"][0].tolist()
    assert prompt["token_ids"] == kit.processor.tokenizer(text, add_special_tokens=False).input_ids
    for key in ("pixel_values", "image_grid_thw"):
        assert prompt[key] is None if not images else torch.equal(prompt[key], full[key])
    unit = 2 * kit.processor.image_processor.patch_size  # one visual token is unit x unit pixels
    visual = sum(im.width * im.height // unit**2 for im in resized)
    assert prompt["input_ids"].count(kit.net.config.image_token_id) == visual
    assert all(
        im.width % unit == im.height % unit == 0 and 3136 <= im.width * im.height <= 40000 for im in resized
    )


@each_family
def test_banned_ids(kit):
    tokenizer, rows = kit.processor.tokenizer, kit.net.config.get_text_config().vocab_size
    assert (
        kit.net.get_output_embeddings().weight.shape[0] == rows > len(tokenizer)
    )  # there is padding of the vocabulary
    assert set(range(len(tokenizer), rows)) < set(kit.banned)
    specials = {t: tokenizer.convert_tokens_to_ids(t) for t in qwen.SPECIAL_TOKENS}
    assert {t for t, i in specials.items() if i in kit.banned} == set(specials) - {
        "<|im_end|>",
        "<|endoftext|>",
    }
    assert kit.end == [specials["<|im_end|>"], specials["<|endoftext|>"]]
    assert len(kit.banned) == len(specials) - 2 + rows - len(
        tokenizer
    )  # and nothing else: any ordinary text can be written


@one_family
def test_added_tokens_that_are_not_special_stay_allowed(kit):
    processor = qwen.load_processor(kit.folder)
    processor.tokenizer.add_tokens(["<think>", "</think>"])
    assert not set(processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])) & set(
        qwen.banned_ids(kit.net.config, processor)
    )


def test_load_errors_name_the_remedy(tmp_path, tiny_folder):
    folder = str(tmp_path / "nothing")
    for load in (qwen.load_model, qwen.load_processor):
        with pytest.raises(
            SystemExit,
            match=f"^model: there is no '{folder}'; name a checkpoint folder or a hub id$",
        ):
            load(folder)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        SystemExit, match="is a 'llama' checkpoint; this code trains qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5$"
    ):
        qwen.load_model(str(tmp_path))
    with pytest.raises(SystemExit, match="^dtype: 'half' is none of float32, bfloat16, float16$"):
        qwen.load_model(tiny_folder(), "half")
    with pytest.raises(SystemExit, match="^attn: 'flash' is none of auto, sdpa, varlen"):
        qwen.load_model(tiny_folder(), attn="flash")
    with pytest.raises(SystemExit, match="^attn: varlen needs .* set attn='sdpa'$"):
        qwen.load_model(tiny_folder(), attn="varlen")
    with pytest.raises(SystemExit, match="^family: 'gpt2' is none of qwen2_vl"):
        qwen.build_tiny(str(tmp_path), [], "gpt2")


def test_a_damaged_checkpoint_ends_in_one_sentence(tmp_path, tiny_folder):
    """Transformers itself would fill a weight that is missing with random numbers."""
    from safetensors.torch import load_file, save_file

    def refused(damage, *words):
        folder = tmp_path / damage.__name__
        shutil.copytree(tiny_folder(), folder)
        damage(folder)
        with pytest.raises(SystemExit) as stopped:
            qwen.load_processor(str(folder))
            qwen.load_model(str(folder))
        sentence = str(stopped.value)
        assert "\n" not in sentence and all(word in sentence for word in (str(folder), *words)), sentence

    def empty_config(folder):
        (folder / "config.json").write_text("")

    def list_config(folder):
        (folder / "config.json").write_text("[]")

    def cut_weights(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def no_weights(folder):
        (folder / "model.safetensors").unlink()

    def one_weight_missing(folder):
        weights = load_file(folder / "model.safetensors")
        del weights[sorted(weights)[3]]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def no_tokenizer(folder):
        (folder / "tokenizer.json").unlink()

    def flipped_bit(folder):
        path = folder / "model.safetensors"
        checkpoint.write_manifest(folder, [path])
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    refused(empty_config, "config.json' cannot be read")
    refused(list_config, "config.json' cannot be read")
    refused(cut_weights, "cannot be loaded")
    refused(no_weights, "cannot be loaded", "model.safetensors")
    refused(one_weight_missing, "lacks 1 of its weights")
    refused(no_tokenizer, "cannot be loaded")
    refused(flipped_bit, "is damaged: model.safetensors is not what was written")


def test_a_missing_model_is_told_how_to_make_it(tmp_path, monkeypatch):
    """The path of one of our own configs, or a checkpoint that a run has not or no longer."""

    def told(path):
        with pytest.raises(SystemExit) as stopped:
            qwen.check_model_folder(path)
        return str(stopped.value)

    monkeypatch.chdir(tmp_path)  # where out/ is empty
    command = "torchrun --nproc_per_node=2 train_sft.py configs/tiny_sft.py"
    assert told("out/tiny_sft/step-000450").endswith(
        f"there is no 'out/tiny_sft/step-000450'; make it with: {command}"
    )
    assert qwen.command_that_makes("out/clevr/step-000100").endswith("train_grpo.py configs/clevr.py")
    assert qwen.command_that_makes("out/tiny") == "python qwen.py out/tiny"
    assert qwen.command_that_makes("out/else/step-000100") == ""
    run = tmp_path / "run"
    (run / "step-000020").mkdir(parents=True)
    (run / "step-000100").mkdir()
    (run / "config.json").write_text('{"steps": 100}')
    for path in (run, run / "step-000400"):
        assert f"'{path}' is no checkpoint; the newest one there is '{run}/step-000100'" in told(str(path))


# -----------------------------------------------------------------------------
# rollouts with transformers
# -----------------------------------------------------------------------------

SEEDS = [100, 200, 300, 400]


def rollout(
    kit,
    prompts=None,
    n=3,
    seeds=SEEDS,
    temperature=TEMPERATURE,
    top_p=1.0,
    top_k=0,
    max_tokens=8,
    end=None,
    **more,
):
    prompts = kit.prompts if prompts is None else prompts
    return sampling.rollout_hf(
        kit.net, prompts, n, seeds, temperature, top_p, top_k, max_tokens, kit.banned, end or kit.end, **more
    )


def assert_logps_are_the_policys(kit, groups, temperature=TEMPERATURE):
    """Against both the packed policy and plain transformers."""
    start, completions = 0, []
    for group in groups:
        completions.append([])
        for c in group:
            completions[-1].append((start, c.ids))
            start += len(c.ids)
    logps = torch.tensor([x for group in groups for c in group for x in c.logps])
    policy = qwen.Policy(kit.net, kit.banned, temperature)
    with torch.no_grad():
        for batch in qwen.pack(kit.prompts, completions, kit.net, 1000):
            torch.testing.assert_close(policy(batch)[0], logps[batch["token"]], atol=1e-5, rtol=1e-5)
        plain = torch.cat(
            [kit.plain(p, c.ids)[0] for p, group in zip(kit.prompts, groups, strict=True) for c in group]
        )
    if temperature == TEMPERATURE:
        torch.testing.assert_close(logps, plain, atol=1e-5, rtol=1e-5)


@each_family
def test_rollout_logps_are_the_policys(kit):
    """Prompts of four lengths with 0, 1 and 2 images in one batch: padding is in play."""
    groups = rollout(kit)
    assert [len(g) for g in groups] == [3] * 4 and len({len(p["input_ids"]) for p in kit.prompts}) == 4
    assert all(
        len(c.ids) == len(c.logps) <= 8 and not set(c.ids) & set(kit.banned) for g in groups for c in g
    )
    assert_logps_are_the_policys(kit, groups)


SHIPPED = {"do_sample": True, "top_k": 1, "top_p": 0.001, "temperature": 0.01}


@one_family
@pytest.mark.parametrize(
    "shipped",
    [
        pytest.param(SHIPPED, id="sampling"),
        pytest.param(SHIPPED | {"repetition_penalty": 1.05}, id="repetition_penalty"),
    ],
)
def test_rollout_ignores_the_checkpoints_generation_config(kit, shipped, monkeypatch):
    """Published Qwen checkpoints carry a top_k of 1, a top_p, a temperature and a repetition penalty; the
    knobs of the run decide.
    """
    before = rollout(kit)
    monkeypatch.setattr(kit.net, "generation_config", transformers.GenerationConfig(**shipped))
    groups = rollout(kit)
    assert_logps_are_the_policys(kit, groups)
    assert groups == before


@each_family
def test_same_seeds_same_completions_however_the_batch_is_cut(kit):
    groups = rollout(kit)
    ids = [[c.ids for c in g] for g in groups]
    assert [[c.ids for c in g] for g in rollout(kit)] == ids
    assert [[c.ids for c in g] for g in rollout(kit, batch=1)] == ids  # one prompt at a time
    assert [[c.ids for c in g] for g in rollout(kit, batch=6)] == ids
    assert [[c.ids for c in g] for g in rollout(kit, kit.prompts[::-1], seeds=SEEDS[::-1])] == ids[::-1]
    # completion i of a prompt is the one that seed + i gives alone
    assert rollout(kit, kit.prompts[2:3], n=1, seeds=[302])[0][0].ids == ids[2][2]
    other = [[c.ids for c in g] for g in rollout(kit, seeds=[s + 50 for s in SEEDS])]
    assert all(a != b for one, two in zip(ids, other, strict=True) for a, b in zip(one, two, strict=True))
    assert len({tuple(i) for g in ids for i in g}) == 12  # within a group they differ, too


@both_kinds
def test_rollout_leaves_the_model_as_it_was_and_works_in_training_mode(kit):
    expected = rollout(kit)
    other = Kit(kit.folder)
    other.net.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert [[c.ids for c in g] for g in rollout(other)] == [[c.ids for c in g] for g in expected]
    assert other.net.training
    assert_same(other.packed(1000), kit.expected)  # a training step after a rollout is not disturbed by it


@both_kinds
def test_the_end_token_ends_it(kit):
    """With every third token declared an end token, most completions end within eight: the first end token
    is the last token.
    """
    end = kit.allowed[::3] + [kit.end[1]]
    groups = rollout(kit, n=8, end=end)
    ended = [c for g in groups for c in g if c.finished]
    assert len(ended) > 16
    for c in (c for g in groups for c in g):
        assert c.finished == (c.ids[-1] in end) and not set(c.ids[:-1]) & set(end)
        assert c.finished or len(c.ids) == 8
    assert len({len(c.ids) for c in ended}) > 2  # the rows of the batch ended at different times
    assert_logps_are_the_policys(kit, groups)
    # what came before the end does not depend on where others ended
    free = [c.ids for g in rollout(kit, n=8) for c in g]
    assert all(
        ids[: len(c.ids)] == c.ids for ids, c in zip(free, [c for g in groups for c in g], strict=True)
    )


def test_cut_by_hand():
    end = [7, 9]  # <|im_end|>, <|endoftext|>
    assert sampling.cut([1, 2, 7, 9, 9], [-1.0, -2.0, -3.0, 0.0, 0.0], end) == (
        [1, 2, 7],
        [-1.0, -2.0, -3.0],
        True,
    )
    assert sampling.cut([1, 9, 9, 9], [-1.0, -2.0, 0.0, 0.0], end) == (
        [1, 9],
        [-1.0, -2.0],
        True,
    )  # <|endoftext|> ends it, too
    assert sampling.cut([7, 1], [-1.0, -2.0], end) == ([7], [-1.0], True)
    assert sampling.cut([1, 2, 3], [-1.0, -2.0, -3.0], end) == ([1, 2, 3], [-1.0, -2.0, -3.0], False)
    assert sampling.cut([1, 2, 7], [-1.0, -2.0, -3.0], end).finished  # the last token that was allowed


def test_sample_seeds_do_not_overlap():
    """Completion i of a prompt uses seed + i: 64 completions of any two prompts in 500 steps of 16 prompts
    draw different noise.
    """
    seeds = sorted(sampling.sample_seed(0, step, p) for step in range(500) for p in range(16))
    assert seeds[0] >= 0 and seeds[-1] + 64 < 2**32
    overlapping = sum(b - a < 64 for a, b in zip(seeds, seeds[1:], strict=False))
    # 8,000 seeds spread at random over 2^31 have about 8000^2 / 2^31 * 64 = 1.9 neighbours closer than 64
    assert overlapping < 10
    assert sampling.sample_seed(0, 3, 1) == sampling.sample_seed(0, 3, 1) != sampling.sample_seed(1, 3, 1)


@one_family
@pytest.mark.parametrize("top_k", [0, 12])
def test_first_tokens_have_the_frequencies_of_the_softmax(kit, top_k):
    """2,000 seeded draws; with top_k the 12 most probable tokens, renormalised."""
    n, prompt = 2000, kit.prompts[1]
    seeds = [1000 * i for i in range(10)]
    drawn = rollout(
        kit, [prompt] * 10, n=n // 10, seeds=seeds, temperature=0.4, top_k=top_k, max_tokens=1, batch=400
    )
    counts = torch.bincount(torch.tensor([c.ids[0] for g in drawn for c in g]), minlength=1024).double()
    with torch.no_grad():
        logits = (
            kit.plain(prompt, [kit.end[0]])[1][0].double() * TEMPERATURE / 0.4
        )  # log-probs at 0.7 -> logits at 0.4
    p = torch.zeros(1024, dtype=torch.float64)
    p[kit.allowed] = logits[kit.allowed].softmax(-1)
    if top_k:
        p[p < p.topk(12).values.min()] = 0
        p /= p.sum()
    assert (counts[p == 0] == 0).all() and counts.sum() == n
    big = p * n >= 10
    z = (counts - n * p)[big] / (n * p * (1 - p))[big].sqrt()
    assert big.sum() >= 12 and z.abs().max() < 4
    rest = p[~big].sum()  # all rare tokens together
    assert abs(counts[~big].sum() - n * rest) <= 4 * (n * rest * (1 - rest)).sqrt()
    # the log-probs that come with the draws are of the same distribution
    assert all(abs(c.logps[0] - p[c.ids[0]].log()) < 1e-4 for c in drawn[0])


@each_family
def test_greedy_equals_transformers_own(kit):
    groups = rollout(kit, n=1, temperature=0.0, max_tokens=12)
    for prompt, (completion,) in zip(kit.prompts, groups, strict=True):
        ids = torch.tensor([prompt["input_ids"]])
        vision = {k: prompt[k] for k in ("pixel_values", "image_grid_thw") if prompt[k] is not None}
        types = (ids == kit.net.config.image_token_id).int()
        out = kit.outside.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            do_sample=False,
            suppress_tokens=kit.banned,
            eos_token_id=kit.end,
            pad_token_id=kit.end[1],
            max_new_tokens=12,
            **vision,
        )
        assert completion.ids == out[0, ids.shape[1] :].tolist()
    assert_logps_are_the_policys(kit, groups, temperature=1.0)
