"""Give a live causal language model another loss, and take it away again.

The loss is computed inside of the model's forward, where wrappers for distributed training, sharding and mixed
precision expect the work on its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Loss = Callable[[Tensor, Tensor | int | None], Tensor]
"""`loss(labels, num_items)`: of labels (B, T) int64, and what a sum over tokens is to be divided by, if it is known."""


@contextmanager
def own_loss(core: Any, loss: Loss) -> Iterator[None]:
    """Have `core(..., labels=labels).loss` be `loss`, for as long as the context lasts.

    The model's logits are not looked at; call it with `logits_to_keep=1`, so that it makes none.
    """

    def loss_function(
        logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None, **_: Any
    ) -> Tensor:
        return loss(labels, num_items_in_batch)

    before = vars(core).get("_loss_function")
    core.loss_function = loss_function
    try:
        yield
    finally:
        del core._loss_function
        if before is not None:
            core.loss_function = before
