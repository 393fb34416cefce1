"""Numbers of a configuration, checked before anything is built by them: a mistaken one could ask for endless memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from truedepth.errors import ModelLoadError
from truedepth.plan import MOST_LAYERS

# The most that is taken for a model's number, many times what any model has.
SIZES = {
    "num_hidden_layers": MOST_LAYERS,
    "vocab_size": 10**8,
    "hidden_size": 10**7,
    "intermediate_size": 10**7,
    "moe_intermediate_size": 10**7,
    "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5,
    "head_dim": 10**5,
    "num_experts": 10**5,
    "num_local_experts": 10**5,
    "num_experts_per_tok": 10**5,
    "max_position_embeddings": 10**10,
    "original_max_position_embeddings": 10**10,
    "sliding_window": 10**10,
}
RATES = ("rope_theta", "rms_norm_eps", "rope_local_base_freq", "partial_rotary_factor", "query_pre_attn_scalar")
ROTARY = ("rope_scaling", "rope_parameters")
ALWAYS = (*RATES, *ROTARY)
"""What to check of whatever type a model is: older configurations have other places for it than the type's class."""
FREE = ("mscale", "mscale_all_dim")
"""Numbers of rotary embeddings that may be 0."""
_SHOWN = 40


def check_numbers(
    values: Mapping[str, Any],
    where: str,
    stored: Mapping[str, int] | None = None,
    remedy: str = "use the model's own configuration",
) -> None:
    """Refuse numbers that no model can have. What is left out, or null, is left to the defaults of the model's type.

    Args:
        values: by their names in a transformers configuration.
        where: what says so, for messages.
        stored: by the names of such numbers, of how many of these the weights have tensors, where they are at hand.
        remedy: what to do about it.

    Raises:
        ModelLoadError: with the number that is wrong.
    """
    try:
        for name, most in SIZES.items():
            _check_size(name, values.get(name), most)
        for name in RATES:
            _check_rate(name, values.get(name))
        for name in ROTARY:
            _check_rotary(name, values.get(name))
        _check_together(values, stored or {})
    except _WrongError as error:
        raise ModelLoadError(f"{where} says {error}; {remedy}") from None


class _WrongError(Exception):
    """A number that cannot be."""

    def __init__(self, name: str, value: Any, must: str) -> None:
        said = repr(value)
        super().__init__(f"{name} {said if len(said) <= _SHOWN else said[:_SHOWN] + '...'}, which must be {must}")


def _check_together(values: Mapping[str, Any], stored: Mapping[str, int]) -> None:
    for name, count in stored.items():
        if (said := values.get(name)) is not None and said > count:
            raise _WrongError(name, said, f"at most {count}, of which the weights have tensors")
    heads, shared = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads is not None and shared is not None and heads % shared:
        raise _WrongError("num_key_value_heads", shared, f"a divisor of its {heads} attention heads")
    used, experts = values.get("num_experts_per_tok"), values.get("num_experts") or values.get("num_local_experts")
    if used is not None and experts is not None and used > experts:
        raise _WrongError("num_experts_per_tok", used, f"at most its {experts} experts")


def _check_size(name: str, value: Any, most: int) -> None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise _WrongError(name, value, f"a whole number from 1 to {most}")


def _check_rate(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _WrongError(name, value, "a number above 0")


def _check_rotary(name: str, value: Any) -> None:
    """Parameters of rotary embedding, for all layers or by attention type."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise _WrongError(name, value, "a group of settings")
    for key, own in value.items():
        inside = f"{name}.{key}"
        if isinstance(own, Mapping):
            _check_rotary(inside, own)
        elif key in SIZES:
            _check_size(inside, own, SIZES[key])
        elif isinstance(own, list):
            for number in own:
                _check_rate(inside, number)
        elif key not in FREE and not isinstance(own, (bool, str)):
            _check_rate(inside, own)
        elif key in ("factor", "rope_theta"):
            raise _WrongError(inside, own, "a number above 0")
