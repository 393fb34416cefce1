"""Layouts of a weight matrix in which a CPU multiplies it fast, made once instead of at every product.

`F.linear` lays a weight out anew for each call with more than one row, which costs more than the product.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Protocol

import torch
from torch import Tensor, nn

from truedepth.engine.cpu.kernels import DTYPES, PAIRED, Kernels, kernels, kernels_for


class Layout(Protocol):
    """A weight (N, K), and its bias, in a layout of its own. The numbers are the same bits."""

    def product(self, hidden: Tensor) -> Tensor:
        """hidden @ weight.T + bias: (..., K) to (..., N)."""
        ...

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows of the weight: (n,), int64, to (n, K)."""
        ...

    def dense(self) -> Tensor:
        """The weight again, (N, K)."""
        ...


def lay_out(weight: Tensor, bias: Tensor | None, *, by_row: bool = False) -> Layout:
    """The layout that is fastest on this machine, of those that take the weight's type; see `can_lay_out`.

    Args:
        weight: (N, K).
        bias: (N,), or None.
        by_row: whether single rows will be asked for.
    """
    compiled = kernels_for(weight)
    if compiled is not None:
        return Panels(weight, bias, compiled)
    return Blocks(weight, bias, _BLOCK if by_row else weight.shape[0])


def can_lay_out(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a layout for weights of this kind on this machine."""
    if device.type != "cpu":
        return False
    if dtype in DTYPES and kernels() is not None:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Panels:
    """For our own kernels: `panel` rows of the weight interleaved, so that a product reads memory in order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, compiled: Kernels) -> None:
        self._kernels = compiled
        self._count, self._size = weight.shape
        panel, paired = compiled.panel, PAIRED[weight.dtype]
        rows, self._odd = -self._count % panel, -self._size % paired
        if rows or self._odd:
            weight = nn.functional.pad(weight, (0, self._odd, 0, rows))
        panels = weight.reshape(-1, panel, weight.shape[1] // paired, paired).transpose(1, 2)
        self.panels = _in_huge_pages(panels)  # (P, K / n, panel, n)
        self._bias = None if bias is None else nn.functional.pad(bias, (0, rows)).contiguous()

    def product(self, hidden: Tensor) -> Tensor:
        if self._odd:
            hidden = nn.functional.pad(hidden, (0, self._odd))
        output = self._kernels.product(hidden, self.panels, self._bias)  # (..., P * panel)
        return output if output.shape[-1] == self._count else output[..., : self._count]

    def rows(self, ids: Tensor) -> Tensor:
        panel = self._kernels.panel
        return self.panels[ids // panel, :, ids % panel].flatten(1)[:, : self._size]

    def dense(self) -> Tensor:
        rows = self.panels.transpose(1, 2).reshape(-1, self._size + self._odd)  # (P * panel, K)
        return rows[: self._count, : self._size].clone(memory_format=torch.contiguous_format)


_WORTH_HUGE_PAGES = 4 * 2**20
"""Bytes. Below, most of a weight would not lie in whole pages of 2 MiB."""


def _in_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy, on Linux in huge pages where there are any: products then read it some 5 % faster."""
    if tensor.nbytes < _WORTH_HUGE_PAGES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.contiguous()
    memory = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    copy = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)  # it keeps `memory`
    return copy.copy_(tensor)


_BLOCK = 1024
"""Rows of a block where single rows are asked for: one is had by unpacking its block."""

_TYPICAL_ROWS = 8
"""What oneDNN is told to lay weights out for; with 1 it picks a layout that is slower for all."""

_LEAST_ROWS = 4
"""Fewer rows are filled up: oneDNN's kernels for one to three rows are slower than for four."""


class Blocks:
    """oneDNN's own layout, in blocks of some rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, block: int) -> None:
        self._block, self._bias = block, bias
        self._size = weight.shape[1]
        self._blocks = [
            torch.ops.mkldnn._reorder_linear_weight(part, _TYPICAL_ROWS) for part in weight.detach().split(block)
        ]

    def product(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])  # (M, K)
        count = rows.shape[0]
        if count == 1:
            rows = rows.expand(_LEAST_ROWS, -1)  # cheaper than padding, and as good
        elif count < _LEAST_ROWS:
            rows = nn.functional.pad(rows, (0, 0, 0, _LEAST_ROWS - count))
        products = [torch.ops.mkldnn._linear_pointwise(rows, part, None, "none", [], "") for part in self._blocks]
        product: Tensor = torch.cat(products, dim=-1) if products[1:] else products[0]
        if self._bias is not None:
            product += self._bias
        return product[:count].view(*hidden.shape[:-1], -1)

    def rows(self, ids: Tensor) -> Tensor:
        found: Tensor = self._blocks[0].new_empty(len(ids), self._size, layout=torch.strided)
        blocks = ids // self._block
        for block in blocks.unique().tolist():
            here = blocks == block
            found[here] = self._blocks[block].to_dense()[ids[here] - block * self._block]
        return found

    def dense(self) -> Tensor:
        return torch.cat([part.to_dense() for part in self._blocks])
