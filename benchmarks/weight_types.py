"""`decoding.py --weights`: plain decoding with weights of other types.

Needs the package `torchao` for int8 (`pip install torchao`), which truedepth does not depend on.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from decoding_compare import compare
from decoding_entrants import DraftConfig, Transformers, Truedepth, compiled
from decoding_subjects import Subject, source_of
from transformers import PreTrainedModel

from truedepth.engine.engine import Engine
from truedepth.models.loading.load import load
from truedepth.records.progress import Progress

INT8_BYTES = 1.0
"""A weight; the scales, one a row, hardly count."""


def weight_types(tested: Subject, cache: Path, new_tokens: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """Figures of `compare` for float32, bfloat16 and int8, batch 1."""
    left_out: dict[str, str] = {}
    context = max(map(len, tested.prompts)) + new_tokens + 1
    found: list[DraftConfig] = [
        Truedepth("truedepth, float32", tested.engine),
        Transformers("transformers, float32", tested.model),
    ]
    with ExitStack() as engines:
        half = _another(tested, cache, torch.bfloat16)
        engine = engines.enter_context(Engine(half))
        found.append(Truedepth("truedepth, bfloat16", engine, bytes_per_value=2.0))
        if find_spec("torchao") is None:
            left_out["int8"] = "torchao is not installed"
        else:
            found += _int8(tested, cache, context)
        compared = compare(found, tested.prompts, batch=1, new_tokens=new_tokens, repeats=repeats, progress=progress)
        return {**compared.to_dict(tested.model), "left_out": left_out}


def _int8(tested: Subject, cache: Path, context: int) -> list[DraftConfig]:
    """int8 weights, quantised by row as they are read, the LM head's too."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = _another(tested, cache, torch.float32)
    if quantised.config.tie_word_embeddings:
        # The embedding stays as it is; only the head is quantised.
        quantised.lm_head.weight = torch.nn.Parameter(quantised.lm_head.weight.detach().clone())
    # An engine packs weights that are plain tensors only. A closed one runs the model's own linear layers.
    engine = Engine(quantised)
    engine.close()
    quantize_(quantised, Int8WeightOnlyConfig())
    found: list[DraftConfig] = [
        Truedepth("truedepth, int8 (torchao)", engine, bytes_per_value=INT8_BYTES),
        Transformers("transformers, int8 (torchao)", quantised, bytes_per_value=INT8_BYTES),
    ]
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        fast = compiled("transformers, int8 (torchao), compiled", quantised, context)
        fast.bytes_per_value = INT8_BYTES
        found.append(fast)
    return found


def _another(tested: Subject, cache: Path, dtype: torch.dtype) -> PreTrainedModel:
    """One more copy of the model."""
    name = str(dtype).removeprefix("torch.")
    model = load(source_of(tested.source, cache), dtype=name, device="cpu").model
    config: Any = model.generation_config
    config.eos_token_id = None
    return model
