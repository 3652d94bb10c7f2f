"""Gated delta nets (arXiv:2412.06464) in packed groups: three of four layers of a Qwen3.5 are such.

Where attention looks at the keys and values of all earlier tokens, a delta net has a state S of fixed size
for each head, and reads and mends it token by token. With q, k, v from a convolution over the last K = 4
tokens:

    S <- a S                     forget: the decay a of this token, 0 < a < 1
    S <- S + b k (v - S'k)'      mend: what S says of the key k comes nearer to v, by the share b, 0 < b < 1
    out = S'q                    read

No mask keeps tokens apart here: laid end to end, each completion would go on from the state that the one
before it has left. So every prompt and every completion is read by itself, as by the attention in qwen.py:

    prompt        from a state of zeros; its end is kept: state and last K - 1 inputs of the convolution
    completion    from the end of its prompt

The projections around it work on the T tokens as they are. transformers hands keyword arguments of the
model's forward pass on to every layer: `attend` to its attention, and `scan` to its delta nets.

Shapes: T tokens of a micro-batch, n prompts of at most W tokens, S completions of at most C tokens, Hv heads
of values, Hk of keys and queries, dv and dk their sizes, channels = 2 Hk dk + Hv dv.
"""

import torch
import torch.nn.functional as F
from torch import nn


def is_hybrid(config) -> bool:
    """Whether a model of this transformers config has delta nets among its layers."""
    return "linear_attention" in (getattr(config.get_text_config(), "layer_types", None) or [])


def between_segments(segments: torch.Tensor, model: nn.Module):
    """The `scan` of a forward pass over these segments (n + S, 4), see qwen.pack; None if it needs none.

    CPU-GPU sync.
    """
    return Scan(segments) if is_hybrid(model.config) else None


def register() -> None:
    """Teach transformers' gated delta net the keyword `scan`.

    Its class, once in a process: a method of one instance would be copied with it by copy.deepcopy and would
    go on using the weights of the original.
    """
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    plain = Qwen3_5GatedDeltaNet.forward
    if getattr(plain, "takes_scan", False):
        return

    def forward(self, hidden_states, *args, attend=None, scan=None, **kwargs):
        if scan is not None:
            return mix(self, hidden_states, scan)
        if attend is not None:
            raise ValueError(
                "a packed pass without `scan` would leak the state of a gated delta net from one completion "
                "into the next; hand in deltanet.between_segments beside `attend`"
            )
        return plain(self, hidden_states, *args, **kwargs)

    forward.takes_scan = True
    Qwen3_5GatedDeltaNet.forward = forward


def mix(net: nn.Module, hidden: torch.Tensor, scan) -> torch.Tensor:
    """The gated delta net of a layer on hidden (B, T, D), with the recurrence over tokens by `scan`.

    Follows transformers' Qwen3_5GatedDeltaNet.forward.
    """
    B, T, _ = hidden.shape
    qkv = net.in_proj_qkv(hidden)  # (B, T, channels)
    gate = net.in_proj_z(hidden).view(-1, net.head_v_dim)  # (B * T * Hv, dv)
    beta = net.in_proj_b(hidden).sigmoid()  # (B, T, Hv)
    step = F.softplus(net.in_proj_a(hidden).float() + net.dt_bias)  # (B, T, Hv)
    log_decay = -net.A_log.float().exp() * step  # (B, T, Hv) of a, so below 0
    out = scan(net, qkv, log_decay, beta)  # (B, T, Hv, dv)
    out = net.norm(out.reshape(-1, net.head_v_dim), gate)
    return net.out_proj(out.view(B, T, -1))


def delta_rule(net, qkv, log_decay, beta, state=None, one_token=False):
    """The recurrence, by transformers' own functions in torch, on GPUs too.

    qkv (rows, length, channels) after the convolution, log_decay and beta (rows, length, Hv), state (rows,
    Hv, dk, dv) before the first token, zeros if None. Returns (rows, length, Hv, dv) and the state after the
    last.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5 as kernels

    q, k, v = qkv.split([net.key_dim, net.key_dim, net.value_dim], -1)
    shared = net.num_v_heads // net.num_k_heads  # value heads that a key head serves
    q = q.unflatten(-1, (-1, net.head_k_dim)).repeat_interleave(shared, 2)  # (rows, length, Hv, dk)
    k = k.unflatten(-1, (-1, net.head_k_dim)).repeat_interleave(shared, 2)
    v = v.unflatten(-1, (-1, net.head_v_dim))  # (rows, length, Hv, dv)
    rule = kernels.torch_recurrent_gated_delta_rule if one_token else kernels.torch_chunk_gated_delta_rule
    how = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    if not one_token and qkv.device.type == "cpu":
        how["chunk_size"] = 32  # short rows are padded to a multiple of it; GPU kernels choose their own
    return rule(q, k, v, g=log_decay, beta=beta, initial_state=state, **how)


def convolve(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The causal convolution of x (rows, length, channels), of each channel over a token and K - 1 before it.

    Calls the module, whose weight ZeRO-3 gathers only then.
    """
    from transformers.activations import ACT2FN

    out = net.conv1d(x.transpose(1, 2))  # (rows, channels, length + K - 1): it pads both sides
    return ACT2FN[net.activation](out[:, :, : x.shape[1]]).transpose(1, 2)


class Scan:
    """What a delta net asks for its tokens in a packed pass: the recurrence of every segment by itself.

    Two calls of the kernel: all prompts, then all completions. Prompts are padded on the LEFT, with inputs of
    zero: they leave the state at 0 until the prompt begins, and all prompts end in the last column, where
    their state and their last inputs are taken. Completions are padded on the right, where nobody looks.
    """

    def __init__(self, segments: torch.Tensor):
        device = segments.device
        prompts = segments[segments[:, 3] == 0]  # (n, 4)
        completions = segments[segments[:, 3] > 0]  # (S, 4)
        W = max(int(prompts[:, 1].max()), 8)  # at least the K - 1 columns that a completion looks back on
        C = int(completions[:, 1].max()) if len(completions) else 0
        w = torch.arange(W, device=device)
        c = torch.arange(C, device=device)
        padding = W - prompts[:, 1:2]  # (n, 1) columns before a prompt
        last = int(segments[:, :2].sum(1).max()) - 1

        self.has_completions = C > 0
        # where the padded rows find their tokens in T; in the padding stands any other
        self.prompt_at = (prompts[:, :1] + w - padding).clamp(0, last)  # (n, W)
        self.completion_at = (completions[:, :1] + c).clamp_max(last)  # (S, C)
        self.prompt_real = w >= padding  # (n, W)
        # the place among the n prompts of each completion's own
        self.owner = (completions[:, 2:3] == prompts[:, 0]).int().argmax(1)  # (S,)
        # and where each of the T tokens finds its result in the rows of prompts, then of completions
        completion_real = c < completions[:, 1:2]  # (S, C)
        token_at = torch.cat([self.prompt_at[self.prompt_real], self.completion_at[completion_real]])  # (T,)
        real = torch.cat([self.prompt_real.flatten(), completion_real.flatten()])
        self.result_at = real.nonzero()[:, 0][token_at.argsort()]  # (T,)

    @torch.compiler.disable  # every micro-batch has other lengths
    def __call__(self, net, qkv, log_decay, beta) -> torch.Tensor:
        """The results (1, T, Hv, dv) of the T tokens; qkv (1, T, channels), the others (1, T, Hv)."""
        out, tail, state = self.prompts(net, qkv, log_decay, beta)
        if self.has_completions:
            own = take(qkv, self.completion_at)  # (S, C, channels)
            seen = torch.cat([tail[self.owner], own], 1)  # (S, K - 1 + C, channels)
            mixed = convolve(net, seen)[:, tail.shape[1] :]  # (S, C, channels)
            rates = take(log_decay, self.completion_at), take(beta, self.completion_at)  # (S, C, Hv) each
            more, _ = delta_rule(net, mixed, *rates, state[self.owner])  # (S, C, Hv, dv)
            out = torch.cat([out, more.flatten(0, 1)])
        return out.index_select(0, self.result_at)[None]

    def prompts(self, net, qkv, log_decay, beta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Results (n * W, Hv, dv) of the padded prompts, and their ends: the last inputs of the convolution
        (n, K - 1, channels) and the state (n, Hv, dk, dv).
        """
        own = take(qkv, self.prompt_at) * self.prompt_real[..., None]  # (n, W, channels)
        rates = take(log_decay, self.prompt_at), take(beta, self.prompt_at)  # (n, W, Hv) each
        out, state = delta_rule(net, convolve(net, own), *rates)
        return out.flatten(0, 1), own[:, 1 - net.conv_kernel_size :], state


def take(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """x (1, T, ...) at places (rows, length) -> (rows, length, ...)."""
    return x[0].index_select(0, at.flatten()).unflatten(0, at.shape)


def next_token(net, qkv, log_decay, beta, tail, state):
    """One more token of each of B sequences: result (B, 1, Hv, dv), and their new ends.

    qkv (B, 1, channels), log_decay and beta (B, 1, Hv); tail (B, K - 1, channels) and state (B, Hv, dk, dv)
    are ends, as of Scan.prompts.
    """
    from transformers.activations import ACT2FN

    seen = torch.cat([tail, qkv], 1)  # (B, K, channels)
    mixed = (seen * net.conv1d.weight[:, 0].T).sum(1, keepdim=True)  # (B, 1, channels)
    mixed = ACT2FN[net.activation](mixed)
    out, state = delta_rule(net, mixed, log_decay, beta, state, one_token=True)
    return out, seen[:, 1:], state
