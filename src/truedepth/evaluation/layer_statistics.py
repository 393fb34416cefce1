"""What hidden states tell of layers, for whatever text they were recorded on."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import cosine_similarity


class LayerStatistics:
    """The statistics of `truedepth.methods.base.Evidence`.

    Attributes:
        hidden: the input of each layer and, last, the output of the last one: L + 1 tensors (N, T, D).
    """

    hidden: list[Tensor]

    @property
    def num_layers(self) -> int:
        return len(self.hidden) - 1

    def _counted(self, cosines: Tensor) -> Tensor:
        """Those of the tokens that count, here all: (N, T) to any shape."""
        return cosines

    def block_influence(self) -> list[float]:
        """ShortGPT (arXiv 2403.03853), eq. 1: mean over tokens of 1 - cos(x_l, x_{l+1}), for each layer l."""
        return [1.0 - self._cosine(layer, layer + 1).mean().item() for layer in range(self.num_layers)]

    def angular_distance(self, block: int) -> list[float]:
        """arXiv 2403.17887, eq. 5, over all tokens: arccos(cos(x_l, x_{l+block})) / pi, for each start l."""
        starts = range(self.num_layers - block + 1)
        return [(self._cosine(start, start + block).clamp(-1, 1).acos() / math.pi).mean().item() for start in starts]

    def _cosine(self, first: int, second: int) -> Tensor:
        """cos(x_first, x_second) of the tokens that count."""
        return self._counted(cosine_similarity(self.hidden[first].float(), self.hidden[second].float(), dim=-1))
