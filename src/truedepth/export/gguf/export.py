"""A plan on a model as a GGUF file, which stock llama.cpp runs.

Where all stages are equally wide, the file is of the model's own architecture, with fewer blocks. Where groups make
some stages wider, it is of llama.cpp's architecture `deci` (made for Nemotron), which reads one width a block.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.errors import OutputError
from truedepth.export.gguf.layout import Layout, layout_of
from truedepth.export.gguf.metadata import context_of, model_metadata, write_values
from truedepth.export.gguf.rotary import Rotary, rotary_of
from truedepth.export.gguf.tokenizer import carry_over, write_tokenizer
from truedepth.export.gguf.types import Stored, encode, file_type, require_type, stored_as
from truedepth.models.gguf.architectures import EMBEDDING, OUTPUT
from truedepth.models.loading.source import Source, open_source
from truedepth.records.files import output_error, written_aside
from truedepth.records.progress import Progress, silent

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

    from truedepth.plan import DepthPlan


@dataclass(frozen=True)
class GgufExport:
    """A GGUF file that was written.

    Attributes:
        path: the file.
        architecture: as llama.cpp calls it.
        type: of its matrices.
        blocks: how many there are: the plan's effective depth.
        context: the longest context in tokens.
        nbytes: size of the file.
        notes: what a user should know, in sentences.
    """

    path: Path
    architecture: str
    type: str
    blocks: int
    context: int
    nbytes: int
    notes: tuple[str, ...]


def export_gguf(
    source: str | Source,
    plan: DepthPlan,
    output: str | Path,
    *,
    type: str = "f16",
    progress: Progress = silent,
) -> GgufExport:
    """Write a plan on a model as a GGUF file, holding a few layers in memory at a time.

    Args:
        source: whatever `truedepth.load` takes, or a model opened by `open_source`.
        plan: groups in form `lp` become wide layers; a plan that only skips layers or merges them keeps the model's
            architecture.
        output: the file; an earlier one of that name is replaced when the new one is whole.
        type: of the matrices: see `gguf_types.TYPES`.

    Raises:
        UsageError: gguf-py cannot write this type, or its numbers have no room for the model's.
        PlanError: the plan is for another number of layers, or llama.cpp cannot run it.
        UnsupportedModelError: llama.cpp has no architecture for what the plan makes of this family, or the tokenizer
            cannot be written.
        ModelLoadError: the model cannot be found or read.
        OutputError: the file cannot be written, or lies inside of the model.
    """
    from truedepth.models.fuse import fused_layers
    from truedepth.models.loading.quiet import quiet_transformers

    output, type = Path(output), require_type(type)
    opened = open_source(source, "gguf") if isinstance(source, str) else source
    opened.family.require("gguf")
    opened.require_apart(output)
    layers = list(fused_layers(opened.blank.__getitem__, opened.config, opened.family, plan))
    layout = layout_of(opened.config, opened.family, layers)
    rotary = rotary_of(opened.config, layout.head_dim)
    layout.require_rotary(rotary.tensors)
    context, limited = context_of(opened.config)
    with written_aside(output) as aside, quiet_transformers():
        writer = _writer(aside, opened, plan, layout, rotary, type)
        stored = _add_tensors(writer, _tensors(opened, plan, layout, rotary, blank=True), type, opened)
        _require_room(output, sum(entry.nbytes for entry in stored.values()))
        try:
            _write(writer, _tensors(opened, plan, layout, rotary), stored, progress)
        finally:
            writer.close()
    notes = tuple(note for note in (limited, rotary.note, _uneven(stored, type)) if note)
    return GgufExport(output, layout.architecture, type, len(layout.heads), context, output.stat().st_size, notes)


def _tensors(
    source: Source, plan: DepthPlan, layout: Layout, rotary: Rotary, *, blank: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the order of the file, one stage after the other; on the meta device if `blank`."""
    from truedepth.models.fuse import fused_layers

    read, family = source.blank.__getitem__ if blank else source.read, source.family

    def precise(name: str) -> Tensor:
        # What is folded or averaged is then rounded once, to the type in the file.
        return read(name).float()

    yield from layout.outside({f"{family.embedding}.weight": read(f"{family.embedding}.weight")})
    yield from rotary.tensors.items()
    for index, layer in enumerate(fused_layers(precise, source.config, family, plan)):
        yield from layout.block(index, layer)
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    for name in (f"{family.final_norm}.weight", head, f"{family.head}.bias"):
        if name in source.blank:
            yield from layout.outside({name: read(name)})
        elif name == head and layout.facts.head_required:
            yield from layout.outside({name: read(embedding)})


def _writer(path: Path, source: Source, plan: DepthPlan, layout: Layout, rotary: Rotary, type: str) -> GGUFWriter:
    """A writer with all metadata."""
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type("model")
    writer.add_file_type(file_type(type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_values(writer, model_metadata(source.config, layout, rotary), layout.architecture)
    write_values(writer, {"plan": plan.notation, "source_layers": plan.num_layers, "source": source.name}, "truedepth")
    if source.file is not None:
        carry_over(writer, source.file)
    else:
        assert source.tokenizer is not None
        write_tokenizer(writer, source.tokenizer, source.config)
    return writer


def _add_tensors(
    writer: GGUFWriter, tensors: Iterator[tuple[str, Tensor]], type: str, source: Source
) -> dict[str, Stored]:
    """Tell the writer what will come; its header has the offset of every tensor."""
    tied = f"{source.family.head}.weight" not in source.blank
    heads = {OUTPUT, EMBEDDING} if tied else {OUTPUT}
    stored: dict[str, Stored] = {}
    for name, tensor in tensors:
        entry = stored_as(type, tuple(tensor.shape), head=name in heads)
        writer.add_tensor_info(name, entry.byte_shape, entry.dtype, entry.nbytes, raw_dtype=entry.kind)
        stored[name] = entry
    return stored


def _write(
    writer: GGUFWriter, tensors: Iterator[tuple[str, Tensor]], stored: dict[str, Stored], progress: Progress
) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress("Writing tensors", len(stored)) as advance:
        for name, tensor in tensors:
            writer.write_tensor_data(encode(name, tensor, stored[name]))
            advance()
    writer.flush()
    assert writer.fout is not None
    os.fsync(writer.fout[0].fileno())


def _require_room(output: Path, nbytes: int) -> None:
    """Refuse early what would fill the disk."""
    try:
        free = shutil.disk_usage(output.parent).free
    except OSError as error:
        raise output_error(output, error) from error
    if nbytes > free:
        raise OutputError(
            f"the file {output} would have {nbytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free; choose a "
            "smaller type or another disk"
        )


def _uneven(stored: dict[str, Stored], type: str) -> str | None:
    """About matrices whose rows are no whole number of blocks."""
    import gguf

    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type.upper()]]
    rows = {entry.shape[-1] for entry in stored.values() if len(entry.shape) > 1 and entry.shape[-1] % block}
    if not rows:
        return None
    widths = ", ".join(map(str, sorted(rows)))
    return f"matrices with rows of {widths} values are stored as f16: {type} has blocks of {block}"
