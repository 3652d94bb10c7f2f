"""The math of GRPO: advantages, loss weights, clipped loss, KL estimate, importance weight, schedule, token
log-probs, token budget.

Every function is held against something outside it: numbers worked out by hand, a slow loop written from
the paper's formula in float64, finite differences, an exact expectation over a small vocabulary, or
PyTorch's own cross entropy.

    python -m pytest tests/test_math.py
"""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import checkpoint
import common
import qwen
from common import learning_rate
from qwen import token_logprobs
from train_grpo import clipped_policy_loss, group_advantages, importance_weight, k3, token_weights


def close(a, b, tol=1e-6):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -----------------------------------------------------------------------------
# advantages
# -----------------------------------------------------------------------------


def test_group_advantages_hand_numbers():
    # [1, 0, 0, 1]: mean 1/2, squared deviations sum to 1, std = sqrt(1 / 3) = 0.57735 with divisor n - 1
    # (with n it would be 0.5)
    a = 0.5 / (0.5773502692 + 1e-4)  # 0.865875
    close(group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])), [[a, -a, -a, a]])
    assert abs(a - 0.865875) < 1e-6
    # [2, 0, 1]: mean 1, std 1; and [1, 2, 3, 6]: mean 3, squared deviations 4 + 1 + 0 + 9 = 14
    close(group_advantages(torch.tensor([[2.0, 0.0, 1.0]])), [[1 / 1.0001, -1 / 1.0001, 0.0]])
    close(
        group_advantages(torch.tensor([[1.0, 2.0, 3.0, 6.0]])),
        [[x / (math.sqrt(14 / 3) + 1e-4) for x in (-2, -1, 0, 3)]],
    )
    # eps is added to the std, not to the variance: with eps = 1 the divisor is 1.57735
    close(
        group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), eps=1.0),
        [[x / 1.5773502692 for x in (0.5, -0.5, -0.5, 0.5)]],
    )


def test_groups_do_not_touch_each_other():
    r = torch.tensor([[1.0, 0.0], [100.0, 300.0]])
    close(group_advantages(r)[0], [x / (math.sqrt(0.5) + 1e-4) for x in (0.5, -0.5)])
    close(group_advantages(r)[1], [x / (math.sqrt(20000) + 1e-4) for x in (-100, 100)])


@pytest.mark.parametrize("adv_norm", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 2.0, 0.5])
def test_flat_group_is_exactly_zero(adv_norm, value):
    a = group_advantages(torch.full((3, 8), value), adv_norm)
    assert torch.equal(a, torch.zeros(3, 8))


def test_flat_group_beside_another_and_rewards_not_exact_in_binary():
    a = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    assert torch.equal(a[1], torch.zeros(4)) and (a[0] != 0).all()
    # 0.1, 0.3, 0.7 have no exact mean in float32; an advantage is about 1, and Adam makes much of a small one
    for value in (0.1, 0.3, 0.7, 1.1, 1.7):
        for g in (3, 5, 7, 8, 10):
            assert group_advantages(torch.full((1, g), value)).abs().max() < 1e-9


def test_batch_and_none():
    r = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    # batch: std of 0, 1, 2, 3 around their mean 1.5 is sqrt(5 / 3); the mean taken off is still the group's
    close(group_advantages(r, "batch"), [[x / (math.sqrt(5 / 3) + 1e-4) for x in (0.5, -0.5)]] * 2)
    close(group_advantages(r, "none"), [[0.5, -0.5], [0.5, -0.5]], tol=0)


# -----------------------------------------------------------------------------
# weights of the tokens
# -----------------------------------------------------------------------------


def test_token_weights_hand_numbers():
    lengths = torch.tensor([2.0, 4.0, 10.0])
    close(token_weights(lengths, "sequence", 3, 16, 20), [1 / 6, 1 / 12, 1 / 30])
    close(token_weights(lengths, "token", 3, 16, 20), [1 / 16] * 3)
    close(token_weights(lengths, "constant", 3, 16, 20), [1 / 60] * 3)
    for loss_norm, total in (("sequence", 1), ("token", 1), ("constant", 16 / 60)):
        close((token_weights(lengths, loss_norm, 3, 16, 20) * lengths).sum(), total)


def test_loss_norms_are_the_papers_averages():
    lengths = [3, 1, 5]
    per_token = [randn(n, seed=n) for n in lengths]
    flat, sequence = torch.cat(per_token), torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    expected = {
        "sequence": sum(x.mean() for x in per_token) / 3,  # GRPO eq. 3
        "token": flat.mean(),  # DAPO eq. 8
        "constant": sum(x.sum() for x in per_token) / (3 * 64),  # Dr. GRPO
    }
    for loss_norm, number in expected.items():
        close(
            (token_weights(torch.tensor(lengths).double(), loss_norm, 3, 9, 64)[sequence] * flat).sum(),
            number,
        )


@pytest.mark.parametrize("loss_norm", ["sequence", "token", "constant"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_two_micro_batches_give_the_loss_and_gradient_of_one(loss_norm, ratio_level):
    lengths = torch.tensor([3.0, 1.0, 5.0, 2.0])
    sequence = torch.repeat_interleave(torch.arange(4), lengths.long())
    hidden, table, old = randn(11, 6), randn(6, 7, seed=1), randn(11, seed=2) - 2
    target = torch.arange(11) % 7
    advantage = torch.tensor([1.3, -0.7, 0.2, -1.1], dtype=torch.float64)[sequence]
    weight = token_weights(lengths.double(), loss_norm, 4, 11, 8)[sequence]

    def run(parts):
        w, total = table.clone().requires_grad_(), 0.0
        for i in parts:
            logp = (hidden[i] @ w).log_softmax(-1).gather(1, target[i, None])[:, 0]
            loss = (
                weight[i]
                * clipped_policy_loss(logp, old[i], advantage[i], sequence[i], 0.2, 0.3, ratio_level)[0]
            ).sum()
            loss.backward()
            total += loss.item()
        return total, w.grad

    whole, gradient = run([torch.arange(11)])
    # sequences 0 and 2 in one micro-batch, 3 and 1 (in that order) in the other
    total, summed = run([torch.tensor([0, 1, 2, 4, 5, 6, 7, 8]), torch.tensor([9, 10, 3])])
    close(total, whole, 1e-12)
    close(summed, gradient, 1e-12)
    assert gradient.abs().max() > 1e-3


# -----------------------------------------------------------------------------
# the clipped loss
# -----------------------------------------------------------------------------


def slow_loss(logp, old, advantage, sequence, low, high, level):
    """GRPO eq. 3 and GSPO eq. 7, one token at a time."""
    losses = []
    for t in range(len(logp)):
        own = [u for u in range(len(logp)) if sequence[u] == sequence[t]] if level == "sequence" else [t]
        ratio = math.prod(math.exp(logp[u] - old[u]) for u in own) ** (1 / len(own))
        clipped = min(max(ratio, 1 - low), 1 + high)
        losses.append(-min(ratio * advantage[t], clipped * advantage[t]))
    return losses


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.05, 0.6), (0.0003, 0.0004)])
def test_against_the_slow_loop(level, low, high):
    for seed in range(5):
        logp, old = randn(40, seed=seed) * 0.3 - 2, randn(40, seed=seed + 100) * 0.3 - 2
        sequence = torch.randint(
            0, 6, (40,), generator=torch.Generator().manual_seed(seed)
        )  # any order, numbers may be missing
        advantage = randn(6, seed=seed + 200)[sequence]
        loss, active = clipped_policy_loss(logp, old, advantage, sequence, low, high, level)
        close(
            loss,
            slow_loss(logp.tolist(), old.tolist(), advantage.tolist(), sequence.tolist(), low, high, level),
            1e-12,
        )
        # the clip is active exactly where a clip from [0, infinity) would have given another loss
        free, never = clipped_policy_loss(logp, old, advantage, sequence, 1.0, math.inf, level)
        assert torch.equal(active, (loss - free).abs() > 1e-12) and not never.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "active", "slope"),
    [
        (1.5, 2.0, -2.4, True, 0.0),  # good token, already more likely than 1.2: no further push
        (1.1, 2.0, -2.2, False, -2.2),
        (0.5, 2.0, -1.0, False, -1.0),  # good token that became less likely: pulled back, never clipped
        (0.5, -2.0, 1.6, True, 0.0),  # bad token, already below 0.8
        (0.9, -2.0, 1.8, False, 1.8),
        (1.5, -2.0, 3.0, False, 3.0),  # bad token that became more likely: pushed down, never clipped
        (3.0, 0.0, 0.0, False, 0.0),
    ],
)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_clip_binds_on_the_right_side(ratio, advantage, loss, active, slope, level):
    logp = torch.tensor([math.log(ratio) - 1], dtype=torch.float64, requires_grad=True)
    value, flag = clipped_policy_loss(
        logp, torch.tensor([-1.0]), torch.tensor([advantage]), torch.tensor([0]), 0.2, 0.2, level
    )
    value.sum().backward()
    close(value.detach(), [loss])
    close(logp.grad, [slope])  # d(-ratio * A) / d logp = -ratio * A, or 0 where the clip holds
    assert flag.tolist() == [active]


def test_low_and_high_are_not_swapped():
    """DAPO's clip-higher, [1 - 0.2, 1 + 0.28]: ratio 1.25 is free for a good token, 0.75 is clipped for a
    bad one.
    """
    logp, zero = torch.tensor([1.25, 1.35, 0.75, 0.85]).log(), torch.zeros(4)
    loss, active = clipped_policy_loss(
        logp, zero, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.arange(4), 0.2, 0.28
    )
    close(loss, [-1.25, -1.28, 0.8, 0.85])
    assert active.tolist() == [False, True, True, False]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ratio_one_is_reinforce(level):
    """With old = logp.detach() the gradient of sum_t w_t loss_t is  - sum_t w_t A_t grad logp_t, in either
    mode.
    """
    sequence = torch.tensor([0, 0, 0, 1, 2, 2])
    advantage, target = (
        torch.tensor([0.8, -1.5, 0.3], dtype=torch.float64)[sequence],
        torch.tensor([1, 4, 0, 2, 2, 3]),
    )
    weight = token_weights(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64), "sequence", 3, 6, 10)[sequence]
    x = randn(6, 5).requires_grad_()
    logp = x.log_softmax(-1).gather(1, target[:, None])[:, 0]
    loss, active = clipped_policy_loss(logp, logp.detach(), advantage, sequence, 0.2, 0.2, level)
    (weight * loss).sum().backward()
    # grad of log softmax(x)[target] with respect to x is onehot(target) - softmax(x)
    expected = -(weight * advantage)[:, None] * (F.one_hot(target, 5) - x.detach().softmax(-1))
    close(x.grad, expected, 1e-12)
    close(loss.detach(), -advantage, 1e-12)
    assert not active.any()


def test_gspo_ratio_is_the_geometric_mean():
    # ratios 2 and 0.5 cancel: 1; 1.44 and 1.0 give sqrt(1.44) = 1.2; one token alone keeps its 1.1
    logp, sequence = (
        torch.tensor([2.0, 1.44, 0.5, 1.1, 1.0], dtype=torch.float64).log(),
        torch.tensor([0, 1, 0, 2, 1]),
    )
    loss, _ = clipped_policy_loss(logp, torch.zeros(5), torch.ones(5), sequence, 0.9, 9.0, "sequence")
    close(loss, [-1.0, -1.2, -1.0, -1.1, -1.2], 1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_against_finite_differences(level):
    sequence = torch.tensor([0, 0, 1, 1, 1, 2])
    advantage, old, logp = (
        torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64)[sequence],
        randn(6) - 2,
        randn(6, seed=1) * 0.5 - 2,
    )
    f = lambda x: clipped_policy_loss(x, old, advantage, sequence, 0.2, 0.28, level)[0].sum()  # noqa: E731
    x = logp.clone().requires_grad_()
    f(x).backward()
    h = 1e-6
    numeric = [(f(logp + h * e) - f(logp - h * e)) / (2 * h) for e in torch.eye(6, dtype=torch.float64)]
    close(x.grad, torch.stack(numeric), 1e-7)
    assert (x.grad != 0).any()


# -----------------------------------------------------------------------------
# KL, importance weight
# -----------------------------------------------------------------------------


def test_k3_hand_numbers_and_sign():
    zero = torch.zeros(1)
    close(k3(zero, torch.tensor([math.log(2)])), [2 - math.log(2) - 1])  # 0.306853
    close(k3(torch.tensor([math.log(2)]), zero), [0.5 + math.log(2) - 1])  # 0.193147: the direction matters
    assert k3(torch.tensor([-1.7, -0.3]), torch.tensor([-1.7, -0.3])).tolist() == [0.0, 0.0]
    assert (k3(randn(1000) * 3, randn(1000, seed=1) * 3) >= 0).all()


def test_k3_is_unbiased():
    """Exact expectation over a vocabulary of 7, tokens drawn from the policy: KL(policy || reference), as
    in torch.distributions.
    """
    p, q = randn(7).log_softmax(-1), randn(7, seed=1).log_softmax(-1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    close((p.exp() * k3(p, q)).sum(), kl, 1e-12)
    assert kl > 0.05


def test_k3_gradient_pulls_towards_the_reference():
    # d/dlogp (exp(d) - d - 1) = 1 - exp(d): at ref/policy = 2 it is -1 (raise logp), at 1/2 it is +1/2
    x = torch.zeros(2, requires_grad=True)
    k3(x, torch.tensor([2.0, 0.5]).log()).sum().backward()
    close(x.grad, [-1.0, 0.5])


def test_importance_weight_truncates_and_has_no_gradient():
    old = torch.tensor([3.0, 1.5, 1.0, 0.25]).log().requires_grad_()
    w = importance_weight(old, torch.zeros(4), 2.0)
    close(w, [2.0, 1.5, 1.0, 0.25])  # from above only
    assert not w.requires_grad
    close(importance_weight(old, torch.zeros(4), math.inf), [3.0, 1.5, 1.0, 0.25])


def test_importance_weight_corrects_the_expectation():
    """E over the sampler q of w(token) * f(token) is E over the trainer p of f, as long as nothing is
    truncated.
    """
    p, q, f = randn(9).log_softmax(-1), randn(9, seed=1).log_softmax(-1), randn(9, seed=2)
    close((q.exp() * importance_weight(p, q, 1e9) * f).sum(), (p.exp() * f).sum(), 1e-12)


def test_inputs_are_left_as_they_were():
    r, lengths, logp, old, advantage = (
        randn(3, 4),
        torch.tensor([2.0, 3.0, 1.0]),
        randn(6),
        randn(6, seed=1),
        randn(6, seed=2),
    )
    sequence, logits, banned = torch.tensor([0, 0, 1, 1, 1, 2]), randn(6, 8, seed=3), torch.arange(8) > 6
    inputs = (r, lengths, logp, old, advantage, sequence, logits, banned)
    before = [x.clone() for x in inputs]
    for norm in ("group", "batch", "none"):
        group_advantages(r, norm)
    for norm in ("sequence", "token", "constant"):
        token_weights(lengths, norm, 3, 6, 4)
    for level in ("token", "sequence"):
        clipped_policy_loss(logp, old, advantage, sequence, 0.2, 0.2, level)
    k3(logp, old), importance_weight(old, logp, 2.0), token_logprobs(logits, sequence, 0.5, banned)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


# -----------------------------------------------------------------------------
# learning rate
# -----------------------------------------------------------------------------


def test_learning_rate_hand_numbers():
    def lrs(schedule, at, **more):
        return [learning_rate(s, 10, 1.0, 2, schedule, **more) for s in at]

    for schedule in ("constant", "linear", "cosine"):
        assert lrs(schedule, (0, 1, 2)) == [
            0.5,
            1.0,
            1.0,
        ]  # the first step is not lost; the peak is reached at the end of the warm-up
        assert learning_rate(0, 10, 3e-6, 0, schedule) == 3e-6
    close(lrs("constant", (5, 9)), [1, 1])
    close(lrs("linear", (4, 6, 9)), [0.75, 0.5, 0.125])  # (10 - step) / 8
    close(lrs("cosine", (4, 6, 8)), [0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)])
    close(lrs("linear", (6, 10, 99), floor=0.1), [0.55, 0.1, 0.1])
    close(learning_rate(4, 10, 2e-5, 2, "linear"), 1.5e-5, 1e-12)
    assert learning_rate(0, 1, 1.0, 0, "cosine") == 1.0  # one step in all: no division by zero
    with pytest.raises(SystemExit, match="lr_schedule: 'exp' is none of constant, linear, cosine"):
        common.check_choices({"lr_schedule": "exp"})


# -----------------------------------------------------------------------------
# token log-probs and entropy
# -----------------------------------------------------------------------------

NONE = torch.zeros(11, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_logprobs_against_cross_entropy(temperature):
    logits, target = randn(20, 11).float() * 4, torch.arange(20) % 11
    logp, entropy = token_logprobs(logits, target, temperature, NONE)
    close(logp, -F.cross_entropy(logits / temperature, target, reduction="none"), 1e-5)
    close(entropy, torch.distributions.Categorical(logits=logits / temperature).entropy(), 1e-5)


def test_banned_ids_get_nothing_and_the_rest_renormalises():
    logits, banned = randn(4, 11).float() * 3, torch.tensor([i in (0, 5, 10) for i in range(11)])
    p = torch.stack(
        [token_logprobs(logits, torch.full((4,), v), 0.7, banned)[0].exp() for v in range(11)], 1
    )  # (4, V)
    assert (p[:, banned] == 0).all()
    expected = torch.zeros(4, 11)
    expected[:, ~banned] = (logits[:, ~banned] / 0.7).softmax(
        -1
    )  # a softmax over a vocabulary that never had them
    close(p, expected, 1e-6)
    assert token_logprobs(logits, torch.zeros(4, dtype=torch.long), 0.7, banned)[0].isfinite().all()


def test_entropy_of_a_uniform_distribution_is_log_k():
    for k in (1, 2, 7, 11):
        logp, entropy = token_logprobs(
            torch.full((1, 11), 3.0), torch.tensor([0]), 0.9, torch.arange(11) >= k
        )
        close(entropy, [math.log(k)], 1e-6)
        close(logp, [-math.log(k)], 1e-6)


def test_token_logprobs_gradient():
    """d logp[target] / d logits = (onehot - softmax) / temperature, 0 for banned ids; the entropy carries
    none.
    """
    logits, banned, target = randn(3, 11).requires_grad_(), torch.arange(11) == 4, torch.tensor([1, 0, 10])
    logp, entropy = token_logprobs(logits, target, 0.5, banned)
    logp.sum().backward()
    p = (logits.detach() / 0.5).masked_fill(banned, -torch.inf).softmax(-1)
    close(logits.grad, (F.one_hot(target, 11) - p) / 0.5, 1e-5)
    assert not entropy.requires_grad


def test_entropy_gradient_only_when_asked_for():
    """H = -sum p log p with p = softmax(z / T): dH/dz_j = -p_j (log p_j + H) / T, and 0 for a banned id."""
    logits, banned, target = randn(3, 11).requires_grad_(), torch.arange(11) == 4, torch.tensor([1, 0, 10])
    _, entropy = token_logprobs(logits, target, 0.5, banned, entropy="gradient")
    entropy.sum().backward()
    p = (logits.detach() / 0.5).masked_fill(banned, -torch.inf).softmax(-1)
    log_p = p.clamp_min(1e-300).log()
    H = -(p * log_p).sum(-1, keepdim=True)
    close(entropy, H[:, 0], 1e-5)
    close(logits.grad, -p * (log_p + H) / 0.5, 1e-5)
    with torch.no_grad():
        assert not token_logprobs(logits, target, 0.5, banned, entropy="gradient")[1].requires_grad


def test_bfloat16_logits_are_scored_in_float32():
    logits, target = (randn(8, 11) * 5).bfloat16(), torch.arange(8)
    logp, entropy = token_logprobs(logits, target, 1.0, NONE)
    assert logp.dtype == entropy.dtype == torch.float32
    close(logp, -F.cross_entropy(logits.float(), target, reduction="none"), 1e-6)


# -----------------------------------------------------------------------------
# what is logged
# -----------------------------------------------------------------------------


def test_tally_by_hand():
    """Means over all numbers added; a filler does not count; bools, lists and scalars are numbers."""
    common.setup(0)
    tally = common.Tally()
    tally.add(kl=torch.tensor([1.0, 2.0]), clip_fraction=torch.tensor([True, False]))
    tally.add(kl=torch.tensor([6.0]), clip_fraction=torch.tensor([False]))
    tally.add(0.0, kl=torch.tensor([100.0]), clip_fraction=torch.tensor([True]))
    tally.add(reward=[1.0, 0.5, 0.0, 0.5])
    tally.add(length=3)
    tally.add(length=8)
    means = tally.means()
    assert list(means) == ["kl", "clip_fraction", "reward", "length"]
    close(list(means.values()), [3.0, 1 / 3, 0.5, 5.5])
    only_filler = common.Tally()
    only_filler.add(0.0, kl=torch.tensor([1.0]))
    assert only_filler.means() == {}


def test_logs_of_a_run_that_starts_anew_or_goes_on(tmp_path):
    """A run killed before its first checkpoint starts again at step 0, and evaluates there again."""
    lines = "".join(f'{{"step": {step}}}\n' for step in range(4)) + '{"step": 4, "re'
    for step, kept in ((0, []), (2, [0, 1, 2])):
        (tmp_path / "metrics.jsonl").write_text(lines)
        checkpoint.truncate_logs(tmp_path, step, ["metrics.jsonl"])
        left = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in left] == kept


def test_stopwatch_laps_add_up(monkeypatch):
    now = iter([100.0, 101.5, 104.0, 104.25])
    monkeypatch.setattr(common.time, "time", lambda: next(now))
    watch = common.Stopwatch(torch.device("cpu"))
    for phase in ("data", "rollout", "update"):
        watch.lap(phase)
    record = watch.record()
    assert watch.seconds == {"data": 1.5, "rollout": 2.5, "update": 0.25} and record["seconds"] == 4.25
    assert record["seconds_rollout"] == 2.5 and record["memory_gib"] >= record["memory_data"] > 0


# -----------------------------------------------------------------------------
# tokens of a forward pass
# -----------------------------------------------------------------------------


def test_tokens_that_fit_by_hand():
    """10 GB free at 1 MB a token: three quarters are used; unknown: 4,096; never less than 1,024 or more
    than 65,536.
    """
    assert qwen.tokens_that_fit(10e9, 1e6) == 7500
    assert qwen.tokens_that_fit(10e9, 0.0) == 4096
    assert qwen.tokens_that_fit(1e8, 1e6) == 1024
    assert qwen.tokens_that_fit(1e12, 1e6) == 65536


def test_token_budget_on_a_cpu_is_the_knob():
    for knob, tokens in ((0, 8192), (300, 300)):
        budget = qwen.TokenBudget(knob, torch.device("cpu"))
        budget.learn([{"input_ids": torch.zeros(1, 10)}])
        assert budget.tokens() == tokens


def test_out_of_memory_names_the_knobs_and_the_line(capsys):
    """The first sentence of CUDA's message, what to do, our line where it happened; other errors keep their
    traceback.
    """

    class Raises:
        def __init__(self, error):
            self.error = error

        def __rmul__(self, other):  # called from common.py
            raise self.error

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        ValueError("else"),
    ):
        try:
            qwen.tokens_that_fit(Raises(error), 1.0)
        except Exception as e:
            common.explain_out_of_memory(type(e), e, e.__traceback__)
    text = capsys.readouterr().err
    assert text.startswith("memory: CUDA out of memory. Remedies") and "Tried" not in text
    assert all(
        word in text for word in ("micro_tokens", "grad_checkpointing", "max_prompt_length", "lora_rank")
    )
    assert "\n    qwen.py, line " in text.partition("Traceback")[0]
    assert text.endswith("ValueError: else\n")
