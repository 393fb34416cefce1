"""Which drafted tokens the target takes, and the token that it adds: what makes speculation lossless."""

from __future__ import annotations

import torch
from torch import Tensor

from truedepth.engine.sampling.logits_sampler import draw


def accept_greedy(drafted: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The longest matching prefix, plus the target's token.

    Args:
        drafted: (B, d), int64.
        chosen: the target's most likely token at each of the drafted positions and the one after, (B, d + 1), int64.

    Returns:
        How many drafted tokens are taken, (B,), and the target's token after them, (B,).
    """
    taken = (drafted == chosen[:, :-1]).long().cumprod(-1).sum(-1)  # (B,)
    return taken, chosen.gather(1, taken[:, None])[:, 0]


def accept_sampled(
    drafted: Tensor, target: Tensor, draft: Tensor, uniforms: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """Speculative sampling (arXiv 2211.17192, algorithm 1): the result is distributed as the target's own samples.

    A token x drawn from q is taken with probability min(1, p(x) / q(x)). After the first that is not, the next token
    comes from max(0, p - q), normalised; where all are taken, from p at the position after.

    Args:
        drafted: (B, d), int64, drawn from `draft`.
        target: p, (B, d + 1, V).
        draft: q, (B, d, V).
        uniforms: independent numbers in [0, 1), (B, d + 1); those beyond limits[b] + 1 do not count.
        limits: the most drafted tokens that each sequence may take, (B,), int64, up to d. Those after them are as if
            they had not been drafted.

    Returns:
        How many drafted tokens are taken, (B,), and the token after them, (B,).
    """
    length = drafted.shape[1]
    p, q = (probs[:, :length].gather(2, drafted[..., None])[..., 0] for probs in (target, draft))  # (B, d)
    taken = (uniforms[:, :length] * q < p).long().cumprod(-1).sum(-1).minimum(limits)  # (B,)
    rows = torch.arange(len(taken), device=taken.device)
    after = target[rows, taken]  # (B, V)
    if length:
        refused = (taken < limits)[:, None]
        rest = (after - draft[rows, taken.clamp_max(length - 1)]).clamp_min(0)  # (B, V)
        # Where p and q are equal but for rounding, nothing may be left over; p is then right as it is.
        after = torch.where(refused & (rest.sum(-1, keepdim=True) > 0), rest, after)
    return taken, draw(after, uniforms.gather(1, limits[:, None])[:, 0])
