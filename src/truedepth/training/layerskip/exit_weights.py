"""How much each exit's loss counts at each step, and which exits have one at all.

LayerSkip, arXiv 2404.16710, section 4.1.2. The loss of step t is the sum over layers l of

    ẽ(t, l) CE(head(norm(x_{l+1}))),    ẽ(t, l) = C(t, l) e(l) / sum_i C(t, i) e(i)

where x_{l+1} is the output of layer l, and

    e(l) = e_scale sum_{i=0..l} i  for l < L-1,    e(L-1) = (L-1) + e_scale sum_{i=0..L-2} i.

The curriculum C(t, l) is 1 where an exit is enabled and 0 elsewhere; the last layer always is. Since e(0) = 0, the
first layer never has a loss of its own.
"""

from __future__ import annotations


def exit_scales(num_layers: int, e_scale: float) -> list[float]:
    """e(l) for l = 0, ..., L-1."""
    last = num_layers - 1
    if last == 0:
        return [1.0]
    return [*(e_scale * layer * (layer + 1) / 2 for layer in range(last)), last + e_scale * (last - 1) * last / 2]


def rotational(num_layers: int, step: int, every: int) -> list[bool]:
    """C(t, l) of the rotational curriculum: an exit every R layers, moved up by one layer each step.

    Layer l has its turn where l mod R = t mod R, so once in R steps. With R = 1, all exits are always enabled.
    """
    return [layer == num_layers - 1 or layer % every == step % every for layer in range(num_layers)]


def gradual(num_layers: int, step: int, total_steps: int) -> list[bool]:
    """C(t, l) of the gradual curriculum: from the last layer down to the first, one more every T / 2L steps."""
    opened = 2 * num_layers * step // total_steps
    return [num_layers - 1 - layer <= opened for layer in range(num_layers)]


def exit_weights(scales: list[float], enabled: list[bool]) -> dict[int, float]:
    """ẽ(t, l) by layer, ascending, of the exits where it is positive. They sum to 1."""
    counted = {layer: scale for layer, (scale, on) in enumerate(zip(scales, enabled, strict=True)) if on and scale > 0}
    total = sum(counted.values())
    shares = {layer: scale / total for layer, scale in counted.items()}
    return {layer: share for layer, share in shares.items() if share > 0}  # a tiny e_scale may round to none
