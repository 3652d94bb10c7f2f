"""The policy's forward pass and the transformers rollout, on tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL models in float32.

The packed rows (a whole group behind one prompt, several groups in a row, groups cut in pieces, padded micro-batches) must
give the log-probs AND the gradients of plain transformers: one row per completion, no packing, the model's own positions
and causal mask, log-softmax by hand. The sampler must draw from that same distribution, reproducibly.

    python -m pytest tests/test_model.py
"""

import functools
import random

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import data
import model
import sampling

CLASSES = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
FAMILIES = [pytest.param(f, marks=[] if hasattr(transformers, c) else pytest.mark.skip("not in this transformers")) for f, c in CLASSES.items()]
TEMPERATURE = 0.7


def picture(seed, width=56, height=56):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_row(problem, *images):
    return {"id": problem, "images": list(images), "problem": problem, "solution": "3", "task": "count", "thinking": None}


class Kit:
    """A tiny model with its processor; `net` is sharpened, because at initialisation it hardly looks at its input."""

    def __init__(self, folder, attn="sdpa"):
        self.folder, self.processor = folder, model.load_processor(folder)
        self.net = model.load_model(folder, "float32", attn, say=lambda line: None).eval()
        with torch.no_grad():
            for p in self.net.parameters():
                if p.ndim > 1:
                    p *= 5
        self.banned, self.end = model.banned_ids(self.net.config, self.processor), model.end_ids(self.processor)
        self.allowed = sorted(set(range(self.net.config.get_text_config().vocab_size)) - set(self.banned))
        rows = [make_row("How many cubes?", picture(0)), make_row("Two and two?"), make_row("Which is larger, and why?", picture(1), picture(2, 112, 84)),
                make_row("How many red spheres are there?", picture(3))]  # fmt: skip
        self.prompts = [self.encode(r) for r in rows]
        rng, start, self.groups = random.Random(0), 0, []
        for lengths in ((4, 1, 7), (3, 5, 2), (6, 2, 9), (1, 1, 8)):
            group = []
            for n in lengths:
                group.append((start, [rng.choice(self.allowed) for _ in range(n - 1)] + [self.end[0]]))
                start += n
            self.groups.append(group)
        self.total = start
        self.weights = torch.randn(start, generator=torch.Generator().manual_seed(0))  # of the tokens in the loss

    def encode(self, row, **more):
        return data.encode_prompt(row, self.processor, "direct", **more)

    def plain(self, prompt, ids):
        """Log-probs (C,) of a completion and all log-probs (C, V), from transformers' own forward pass on [prompt | completion] alone."""
        full = torch.tensor([prompt["input_ids"] + ids])
        vision = {k: prompt[k] for k in ("pixel_values", "image_grid_thw") if prompt[k] is not None}
        types = (full == self.net.config.image_token_id).int()
        logits = self.net(input_ids=full, attention_mask=torch.ones_like(full), mm_token_type_ids=types, use_cache=False, **vision).logits[0]
        logits = logits[len(prompt["input_ids"]) - 1 : -1] / TEMPERATURE  # (C, V): position t predicts token t + 1
        allowed = torch.zeros(logits.shape[1]).index_fill(0, torch.tensor(self.allowed), 1.0)
        top = logits.detach().max()
        logps = logits - top - ((logits - top).exp() * allowed).sum(-1, keepdim=True).log()
        return logps[torch.arange(len(ids)), ids], logps

    @functools.cached_property
    def expected(self):
        """Log-probs (L,) of all completions, and gradients by parameter name of sum_t weight_t * logp_t, one completion at a time."""
        self.net.zero_grad()
        out = torch.zeros(self.total)
        for prompt, group in zip(self.prompts, self.groups, strict=True):
            for start, ids in group:
                logp, _ = self.plain(prompt, ids)
                (logp * self.weights[start : start + len(ids)]).sum().backward()
                out[start : start + len(ids)] = logp.detach()
        return out, {name: p.grad.clone() for name, p in self.net.named_parameters()}

    def packed(self, row_tokens, micro_tokens, policy=None, prompts=None, groups=None):
        """The same from packed rows; also the shapes of the micro-batches."""
        policy = policy or model.Policy(self.net, self.banned, TEMPERATURE)
        self.net.zero_grad()
        out = torch.full((self.total,), torch.nan)
        batches = model.pack(prompts or self.prompts, groups or self.groups, self.net, row_tokens, micro_tokens)
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


def assert_same(result, expected, tol=1e-5):
    logps, gradients = result[:2]
    torch.testing.assert_close(logps, expected[0], atol=tol, rtol=tol)
    for name, g in expected[1].items():
        assert (gradients[name] - g).norm() <= 10 * tol * g.norm() + 1e-7, name


# -----------------------------------------------------------------------------
# packed rows
# -----------------------------------------------------------------------------

LAYOUTS = {  # row_tokens, micro_tokens, shapes of the micro-batches as [rows]
    "a group per row": (0, 1),
    "all groups in one row": (10**6, 10**6),
    "two groups in a row, padded": (-1, 10**6),
    "a group split over rows": (1, 1),
    "split, all rows in one micro-batch": (1, 10**6),
    "rows of very different length in micro-batches": (1, 300),
}


def test_x(tiny_folder):
    import time
    for f in CLASSES:
        k = Kit(tiny_folder(f))
        t = time.time()
        e = k.expected
        print(f, [len(p["input_ids"]) for p in k.prompts], "plain", time.time() - t, e[0][:8])
        sizes = [len(p["input_ids"]) + sum(len(c) for _, c in g) for p, g in zip(k.prompts, k.groups)]
        for rt, mt in [(max(sizes), 1), (10**6, 10**6), (sorted(sizes)[0] + sorted(sizes)[1], 10**6), (1, 1), (1, 10**6), (1, 300)]:
            t = time.time()
            r = k.packed(rt, mt)
            worst = max(((r[1][n] - g).norm() / g.norm()).item() for n, g in e[1].items() if g.norm() > 1e-7)
            print(rt, mt, [tuple(b["input_ids"].shape) for b in r[2]], "logp", (r[0] - e[0]).abs().max().item(), "grad", worst, time.time() - t)
        print("zero grads", [n for n, g in e[1].items() if g.norm() <= 1e-7])
        with torch.no_grad():
            other = k.encode(make_row("How many cubes?", picture(9)))
            print("image matters", (k.plain(k.prompts[0], k.groups[0][2][1])[0] - k.plain(other, k.groups[0][2][1])[0]).abs())
            print("entropy", torch.distributions.Categorical(logits=k.plain(other, k.groups[0][2][1])[1][:, k.allowed]).entropy())
