"""Qwen3.5, whose gated delta nets would leak their state from one packed completion into the next.

tests/test_qwen.py has what this family shares with the others (log-probs and gradients, sampling, greedy
choices). Here: completions of all lengths against transformers as it is, neighbours that must not matter,
LoRA, vLLM, and whole runs of the scripts on one and two processes.

    python -m pytest tests/test_qwen3_5.py        # 2 CPU cores, about a minute and a half
"""

import copy
import os
import random
from pathlib import Path
from unittest import mock

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from helpers import GRPO, SFT, records, run
from test_qwen import SEEDS, TEMPERATURE, Kit, assert_same, make_row, one_token_at_a_time, picture
from transformers.models.qwen3_5 import modeling_qwen3_5

import checkpoint
import common
import deltanet
import memory
import qwen
import sampling


@pytest.fixture(scope="module")
def kit(tiny_folder):
    return Kit(tiny_folder("qwen3_5"))


@pytest.fixture(scope="module")
def long(kit):
    """The kit with four completions of 1 to 90 tokens to each of its prompts, which have 0 to 2 images."""
    rng = random.Random(3)
    other = copy.copy(kit)
    other.groups, other.total = [], 0
    for _ in kit.prompts:
        group = []
        for longest in (1, 20, 50, 90):  # the kernel reads 32 or 64 tokens at a time
            ids = rng.choices(kit.allowed, k=rng.randint(longest // 2 + 1, longest))
            group.append((other.total, ids))
            other.total += len(ids)
        other.groups.append(group)
    other.weights = torch.randn(other.total, generator=torch.Generator().manual_seed(1))
    return other


def logps_of(kit, groups, micro_tokens: int) -> torch.Tensor:
    """Log-probs of all tokens of the groups, packed."""
    total = sum(len(ids) for group in groups for _, ids in group)
    logps = torch.zeros(total)
    for batch in qwen.pack(kit.prompts, groups, kit.net, micro_tokens):
        logps = logps.index_put((batch["token"],), qwen.Policy(kit.net, kit.banned, TEMPERATURE)(batch)[0])
    return logps


@pytest.mark.parametrize("micro_tokens", [10**6, 400, 1], ids=["one pass", "groups split", "each alone"])
def test_long_and_short_completions_equal_transformers(long, micro_tokens):
    """Log-probs, and the gradient of every weight; both by the loop over tokens, whose rounding is small, so
    that what is compared is the packing.
    """
    with mock.patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", one_token_at_a_time):
        assert_same(long.packed(micro_tokens), long.expected, tol=2e-5)


def test_neighbours_change_nothing(long):
    """All other completions of the pack are others, in another order."""
    rng = random.Random(5)
    start, ids = long.groups[2][3]
    others = []
    for group in long.groups:
        others.append([(s, rng.choices(long.allowed, k=len(old))) for s, old in group])
    others[2][3] = (start, ids)
    others[2].reverse()
    with torch.no_grad():
        before, after = (logps_of(long, groups, 10**6) for groups in (long.groups, others))
    own = torch.zeros(len(before), dtype=torch.bool)
    own[start : start + len(ids)] = True
    assert (after - before)[own].abs().max() < 1e-5
    assert (after - before)[~own].abs().median() > 0.1


def test_a_packed_pass_without_the_scan_is_refused(kit):
    (batch,) = qwen.pack(kit.prompts, kit.groups, kit.net, 10**6)
    settings = {k: batch[k] for k in ("input_ids", "position_ids", "pixel_values", "image_grid_thw")}
    attend = qwen.between_segments(batch["segments"], kit.net)
    with pytest.raises(ValueError, match="without `scan` would leak the state of a gated delta net"):
        kit.net.model(**settings, use_cache=False, attend=attend)
    assert deltanet.between_segments(batch["segments"], kit.net) is not None


def test_the_recurrence_by_hand():
    """One head with states of one number: S <- a S, S <- S + b k (v - S k), out = S q / sqrt(1).

    A prompt of two tokens; two completions of one, each of which goes on from its end. The rule divides q
    and k by their lengths, so they are 1.
    """

    class Net:
        key_dim, value_dim, head_k_dim, head_v_dim = 1, 1, 1, 1
        num_k_heads, num_v_heads, conv_kernel_size, activation = 1, 1, 1, "linear"
        conv1d = torch.nn.Conv1d(3, 3, 1, groups=3, bias=False)

    Net.conv1d.weight.data.fill_(1.0)
    segments = torch.tensor([[0, 2, 0, 0], [2, 1, 0, 2], [3, 1, 0, 2]])
    value = torch.tensor([1.0, 3.0, 5.0, 7.0])
    qkv = torch.stack([torch.full((4,), 2.0), torch.full((4,), 4.0), value], 1)[None]  # (1, T, 3)
    a, b = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([1.0, 0.5, 0.5, 0.25])
    out = deltanet.Scan(segments)(Net, qkv, a.log()[None, :, None], b[None, :, None])
    # 0 -> 1; 0.5 -> 0.5 + 0.5 (3 - 0.5) = 1.75; 0.35 -> 0.35 + 0.5 (5 - 0.35); 0.35 -> 0.35 + 0.25 (7 - 0.35)
    expected = torch.tensor([1.0, 1.75, 2.675, 2.0125])
    torch.testing.assert_close(out.flatten(), expected, atol=1e-5, rtol=1e-5)


def test_a_copy_uses_its_own_weights(kit):
    other = copy.copy(kit)
    other.net = copy.deepcopy(kit.net)
    with torch.no_grad():
        other.net.model.language_model.layers[0].linear_attn.in_proj_qkv.weight.mul_(-1)
        difference = logps_of(other, kit.groups, 10**6) - logps_of(kit, kit.groups, 10**6)
    assert difference.abs().max() > 0.1


def test_lora_is_on_every_linear_layer_of_the_language_model(kit):
    net = copy.deepcopy(kit.net)
    wanted = {n for n, m in net.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    qwen.add_lora(net, 2, 4.0)
    adapted = {n for n, m in net.model.language_model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == wanted and any("in_proj_qkv" in name for name in wanted)
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in trained) and not any("visual" in name for name in trained)


# -----------------------------------------------------------------------------
# whole runs
# -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("qwen3_5")


@pytest.fixture(scope="module")
def sft(tiny_folder, tmp):
    """out_dir of 20 steps on one process, stopped after ten of them and resumed."""
    flags = [*SFT, f"--model={tiny_folder('qwen3_5')}", "--batch_size=8", "--learning_rate=2e-3"]
    run([*flags, f"--out_dir={tmp}/sft", "--steps=10"], tmp / "sft.log")
    assert "resume: step 10" in run([*flags, f"--out_dir={tmp}/sft", "--steps=20"], tmp / "sft.log")
    run([*flags, f"--out_dir={tmp}/zero3", "--steps=4", "--zero_stage=3"], tmp / "zero3.log", ranks=2)
    return tmp / "sft"


@pytest.mark.slow
def test_sft_learns_and_zero_3_on_two_processes_repeats_it(sft, tmp):
    """The same losses across the resume, and where the weights of a delta net are gathered from two."""
    one, two = records(sft), records(tmp / "zero3")
    losses = [record["loss"] for record in one]
    assert 6 < losses[0] < 8 and losses[-1] < 0.6 * losses[0]
    assert [record["loss"] for record in two] == pytest.approx(losses[:4], rel=1e-3)


@pytest.mark.slow
def test_grpo_resumes_and_transformers_opens_the_export(sft, tmp):
    from transformers import AutoModelForImageTextToText

    start, out_dir = sft / "step-000020", tmp / "grpo"
    flags = [*GRPO, f"--model={start}", f"--out_dir={out_dir}", "--rollout=hf", "--learning_rate=1e-3"]
    flags += ["--weight_decay=2.0", "--grad_checkpointing=True"]
    run([*flags, "--steps=2"], tmp / "grpo.log")
    assert "resume: step 2" in run([*flags, "--steps=3"], tmp / "grpo.log")
    log = records(out_dir)
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all(record["mismatch"] < 1e-5 for record in log)
    assert log[0]["kl"] < 1e-6 < log[-1]["kl"]
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        for folder in (start, out_dir / "step-000003")
    )
    assert before.keys() == after.keys()
    same = [name for name in after if torch.equal(before[name], after[name])]
    assert not [name for name in same if "linear_attn" in name]


def test_what_cannot_be_done_yet_is_said_in_a_sentence(kit):
    with pytest.raises(
        SystemExit, match="^dtype: on CPUs vLLM runs the gated delta nets .* bfloat16 alone; "
    ):
        sampling.start_vllm(kit.folder, "float32", max_model_len=512)
    with pytest.raises(SystemExit, match="^plan: '.*' is a qwen3_5, .* a run starts without a plan"):
        memory.read_shape(kit.folder)
    said = []
    memory.check({"plan": "", "model": kit.folder}, 1, 10**9, said.append)
    assert said == ["memory: no plan for a qwen3_5"]


# -----------------------------------------------------------------------------
# vLLM
# -----------------------------------------------------------------------------


def float32_delta_rule(
    mixed_qkv: torch.Tensor, b: torch.Tensor, a: torch.Tensor, core_attn_out: torch.Tensor, layer_name
) -> None:
    """vLLM's gated delta net on a CPU, in float32 and in torch: its own kernels are in bfloat16 alone.

    Only for these tests. The slots of its cache: inputs (slots, K - 1, channels), states (slots, Hv, dv, dk),
    which nothing else reads, so that they are used here as (slots, Hv, dk, dv).
    """
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    context = get_forward_context()
    net = context.no_compile_layers[gdn_attention._resolve_layer_name(layer_name)]
    meta = (context.attn_metadata or {}).get(net.prefix)
    if meta is None:
        return
    tails, states = net.kv_cache[0], net.kv_cache[1]
    states = states.view(len(states), -1, net.head_k_dim, net.head_v_dim)
    log_decay = -net.A_log.float().exp() * torch.nn.functional.softplus(a.float() + net.dt_bias.float())
    bounds = meta.non_spec_query_start_loc.tolist()
    slots = meta.non_spec_state_indices_tensor.tolist()
    for i in range(meta.num_decodes + meta.num_prefills):
        begin, end, slot = bounds[i], bounds[i + 1], slots[i]
        goes_on = i < meta.num_decodes or bool(meta.has_initial_state[i])
        tail = tails[slot].float() * goes_on
        state = states[slot].float() * goes_on
        for t in range(begin, end):
            seen = torch.cat([tail, mixed_qkv[t : t + 1].float()])  # (K, channels)
            weight = net.conv1d.weight.view(seen.shape[1], -1)  # (channels, K)
            x = torch.nn.functional.silu((seen * weight.T).sum(0))
            q, k, v = x.split([net.key_dim, net.key_dim, net.value_dim])
            shared = net.num_v_heads // net.num_k_heads
            q, k = (y.view(-1, net.head_k_dim).repeat_interleave(shared, 0) for y in (q, k))  # (Hv, dk)
            q, k = (y * (y.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for y in (q, k))
            state = state * log_decay[t].exp()[:, None, None]
            wrong = v.view(-1, net.head_v_dim) - torch.einsum("hkv,hk->hv", state, k)
            state = state + torch.einsum("hk,hv->hkv", k, b[t].sigmoid()[:, None] * wrong)
            out = torch.einsum("hkv,hk->hv", state, q) * net.head_k_dim**-0.5
            core_attn_out[t] = out.to(core_attn_out.dtype)
            tail = seen[1:]
        tails[slot] = tail.to(tails.dtype)
        states[slot] = state.to(states.dtype)


@pytest.mark.slow
def test_vllm_samples_from_the_trainers_policy(tiny_folder, monkeypatch):
    """In float32, before and after an update and its sync, with the tied head; greedy choices are ours."""
    gdn_attention = pytest.importorskip("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention")
    float32_delta_rule.__annotations__["layer_name"] = gdn_attention.LayerNameType  # vLLM reads them
    monkeypatch.setattr(gdn_attention, "cpu_gdn_attention_core", float32_delta_rule)
    monkeypatch.setattr(sampling, "VLLM_CPU_DELTA_NETS", ("bfloat16", "float32"))
    common.setup(0)
    kit = Kit(tiny_folder("qwen3_5"))
    kit.prompts.append(kit.encode(make_row("How many? " * 60, picture(5))))  # longer than a block of 128
    llm = sampling.start_vllm(kit.folder, "float32", max_model_len=512, max_images=2, max_num_seqs=32)
    ids = {"top_p": 1.0, "top_k": 0, "banned": kit.banned, "end": kit.end}
    try:
        for update in range(2):
            if update:
                with torch.no_grad():
                    for weight in kit.net.parameters():
                        weight.add_(0.1 * weight.std() * torch.randn_like(weight))
                sampling.sync_weights(llm, checkpoint.full_state(kit.net, 0))
            knobs = {"n": 3, "seeds": [*SEEDS, 500], "temperature": TEMPERATURE, "max_tokens": 12} | ids
            sampled = sampling.rollout_vllm(llm, kit.prompts, **knobs)
            start, packed, theirs = 0, [], []
            for group in sampled:
                packed.append([])
                for completion in group:
                    packed[-1].append((start, completion.ids))
                    start += len(completion.ids)
                    theirs += completion.logps
            with torch.no_grad():
                ours = logps_of(kit, packed, 10**6)
            assert (ours - torch.tensor(theirs)).abs().max() < 1e-4
            greedy = knobs | {"n": 1, "temperature": 0.0}
            from_vllm = sampling.rollout_vllm(llm, kit.prompts, **greedy)
            from_us = sampling.rollout_hf(kit.net, kit.prompts, **greedy)
            assert [group[0].ids for group in from_vllm] == [group[0].ids for group in from_us]
    finally:
        common.finish(llm)


@pytest.mark.slow
def test_vllm_in_bfloat16_with_lora(tiny_folder, tmp):
    """A whole run as on any CPU, with vLLM's own kernels; its syncs bring the merged weights.

    The mismatch is the rounding of bfloat16, before the updates and after them.
    """
    flags = [*GRPO, f"--model={tiny_folder('qwen3_5')}", f"--out_dir={tmp}/bfloat16", "--rollout=vllm"]
    flags += ["--dtype=bfloat16", "--zero_stage=2", "--steps=3", "--lora_rank=4", "--learning_rate=1e-2"]
    flags += ["--weight_decay=2.0", "--reward_weights={'letters:share': 1.0}", "--reward_workers=0"]
    run(flags, tmp / "bfloat16.log", env={"PYTHONPATH": str(Path(__file__).parent)})
    log = records(tmp / "bfloat16")
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all(record["mismatch"] < 0.05 for record in log)
    assert log[0]["kl"] < 1e-6 and log[-1]["kl"] > 1e-4
