"""Every use of what the documentation of transformers and PyTorch does not promise.

What can be called is called here, and nowhere else. What is overridden in a subclass, or relied on in the way in which
transformers calls its own modules, is listed here and stands where it is needed. A new release that lacks a name fails
`tests/models/test_private_transformers.py`; the test that an entry names fails where only its meaning changed. The
upper bound of transformers in pyproject.toml is the minor release that all of them ran with.

Exported checkpoints carry `modeling_truedepth.py`, which uses none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@contextmanager
def attention_implementation(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Make the modules that hold `config` attend by a registered implementation; afterwards as before.

    `set_attn_implementation` does the same in public, but walks over all modules: too slow for each decode step.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def init_module(model: PreTrainedModel, module: nn.Module) -> None:
    """Give a module of a model the values that no checkpoint holds, as transformers does after loading."""
    model._init_weights(module)


def stored_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The tensor of a checkpoint that each parameter and buffer is loaded from, as `from_pretrained` tells by names.

    Tensors whose values are made of several stored ones are left out, and so are those that nothing is loaded from.

    Args:
        model: on the meta device.
        stored: all names in the checkpoint.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules: list[Any] = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = model.state_dict()
    found: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):
        new, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if new not in wanted and name in wanted:
            new, converted = rename_source_key(name, [], [], model.base_model_prefix, wanted)
        if new in wanted and converted is None:
            found.setdefault(new, name)  # of several, the first is loaded
    return found


def gguf_tokenizer(architecture: str, held: dict[str, Any]) -> Tokenizer:
    """The vocabulary, the merges and the special tokens of a GGUF file.

    Args:
        held: `tokenizer_type`, `tokens`, and where there are any `token_type`, `scores` and `merges`.
    """
    from transformers.integrations import gguf

    found: tuple[Tokenizer, dict[str, Any]] = gguf.convert_gguf_tokenizer(architecture, held)  # type: ignore[attr-defined]
    return found[0]


def hooks_before(module: nn.Module) -> list[Any]:
    """What is called before a module's forward."""
    return list(module._forward_pre_hooks.values())


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or after a module's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` stands around a module, or `compile` was called on it."""
    return module._compiled_call_impl is not None or "_orig_mod" in dict(module.named_children())


def is_quantized(model: Any) -> bool:
    """Whether a model's parameters hold a quantizer's codes instead of weights.

    Its configuration cannot tell: it keeps `quantization_config` where loading has dequantized.
    """
    return getattr(model, "hf_quantizer", None) is not None


class PrivateUse(NamedTuple):
    """One thing that is relied on."""

    name: str
    """The module, the class or function in it, and the name in that."""
    why: str
    """What truedepth needs it for."""
    test: str
    """What fails when its meaning changes: file and function."""


_USES = """
torch.nn.Module._forward_pre_hooks
    hooks may change what a packed weight is, or act where the engine does not call
    tests/engine/test_weight_readers.py::test_tokens_and_weights
torch.nn.Module._parameters
    a packed weight is put in the place of a parameter without a copy, and found where it is computed instead
    tests/engine/test_weight_readers.py::test_packed_weights_can_be_read_and_nothing_else
torch.utils._pytree.tree_map_only
    finds packed weights among the arguments of a function that reads them
    tests/engine/test_weight_readers.py::test_packed_weights_can_be_read_and_nothing_else
torch.nn.Module._forward_hooks
    the engine does not call the whole model, so that hooks there would do nothing
    tests/engine/test_weight_readers.py::test_hooks_on_the_whole_model_are_refused
torch.nn.Module._compiled_call_impl
    compiled code reads the weights that it was compiled for, which are then not packed
    tests/engine/test_weight_readers.py::test_compiled_code_finds_its_weights
torch._dynamo.eval_frame.OptimizedModule._orig_mod
    the same, where `torch.compile` stands around a module
    tests/engine/test_weight_readers.py::test_compiled_code_finds_its_weights
transformers.integrations.gguf.convert_gguf_tokenizer
    makes vocabulary and merges of a GGUF file; `from_pretrained` fails on ids beyond the vocabulary
    tests/models/gguf/test_gguf_llama_cpp.py::test_token_ids
transformers.PreTrainedConfig._attn_implementation
    attention modules look it up at each call: the engine puts its own attention there
    tests/engine/test_engine.py::test_the_model_attends_as_before_afterwards
transformers.PreTrainedModel._init_weights
    computes rotary frequencies of models whose weights are read tensor by tensor
    tests/parallel/test_ranks.py::test_logits_of_a_checkpoint
transformers.PreTrainedModel.hf_quantizer
    tells weights from a quantizer's codes, whose mean would be nonsense
    tests/models/test_rewire_restore.py::test_merge_of_quantized_layers_is_refused
transformers.conversion_mapping.get_model_conversion_mapping
    the rules by which tensors of a checkpoint are renamed, for models that are read tensor by tensor
    tests/models/test_tensors.py::test_names_that_load_also_open
transformers.core_model_loading.rename_source_key
    applies these rules, and puts the name of the model without its head in front or takes it away
    tests/models/test_tensors.py::test_names_that_load_also_open
transformers.core_model_loading.dot_natural_key
    the order in which tensors are looked at, of which the first of a name is loaded
    tests/models/test_tensors.py::test_names_that_load_also_open
transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward
    layers are called with attention_mask, position_ids, past_key_values and position_embeddings, by these names
    tests/models/test_rewire_equations.py::test_plan_equals_its_equations
transformers.models.llama.modeling_llama.LlamaAttention.forward
    returns its output first; hands query, key, value, mask and scaling to the attention implementation
    tests/engine/test_engine.py::test_every_family_writes_what_transformers_writes
transformers.cache_utils.DynamicLayer.is_initialized
    entries of skipped layers that were never written are given a shape, so that `crop` works
    tests/models/test_rewire_decoding.py::test_cache_can_be_cropped
transformers.cache_utils.DynamicLayer.keys
    entries of skipped layers are freed, or lengthened by zeros as wide as they are
    tests/models/test_rewire_decoding.py::test_skipped_caches_are_freed_at_the_first_decode_step
transformers.PreTrainedConfig.base_model_tp_plan
    says by the styles 'colwise', 'rowwise' and 'replicated_with_grad_allreduce' how ranks share a layer
    tests/parallel/test_split_models.py::test_two_ranks_give_the_logits_of_one_process
transformers.Trainer._get_train_sampler
    rows are drawn step by step, so that ranks and micro-batches do not change what a step sees
    tests/training/test_trainer.py::test_an_interrupted_training_goes_on_bit_for_bit
transformers.Trainer._run_epoch
    the sampler must know the epoch where several ranks resume within one
    tests/training/test_trainer.py::test_an_interrupted_training_goes_on_bit_for_bit
transformers.Trainer._load_from_checkpoint
    a training that had finished is loaded without making one more step
    tests/training/test_run.py::test_a_finished_run_that_is_resumed_stays_as_it_is
transformers.Trainer._get_grad_norm
    a gradient that is not a number ends the training before the step
    tests/training/test_trainer.py::test_a_gradient
transformers.Trainer._get_output_dir
    a checkpoint is written aside, and renamed when it is whole
    tests/training/test_trainer.py::test_a_failure_keeps_the_one_before
transformers.Trainer._save
    a saved configuration keeps the cache that training switches off
    tests/training/test_trainer.py::test_a_saved_model_loads
transformers.Trainer._save_checkpoint
    a checkpoint is written aside, and renamed when it is whole
    tests/training/test_trainer.py::test_a_failure_keeps_the_one_before
transformers.Trainer._get_num_items_in_batch
    tokens of prompts are neither trained on nor counted
    tests/training/test_recovery.py::test_two_passes
transformers.Trainer.loss_is_scaled_for_ga
    losses are divided by the tokens of the whole step already
    tests/training/test_trainer.py::test_a_step_is_the_mean_over_its_tokens
transformers.TrainingArguments._n_gpu
    several GPUs are used by several ranks, not by copies of the model in one process
    tests/training/test_run.py::test_everything_that_is_written
transformers.PreTrainedModel._loss_function
    a loss that was put on a model is taken away again
    tests/training/test_exit_loss.py::test_the_model_has_its_own_loss_again
torch.ops.mkldnn._linear_pointwise
    a product with weights that oneDNN has laid out once, instead of at each call
    tests/engine/test_packing.py::test_packed_logits_are_close_to_those_of_dense_weights
torch.ops.mkldnn._reorder_linear_weight
    lays weights out for that product
    tests/engine/test_packing.py::test_every_parameter_comes_back_bit_for_bit
torch.ops.mkldnn._is_mkldnn_bf16_supported
    whether oneDNN has the product in bfloat16 on this processor
    tests/engine/test_packing.py::test_other_dtypes
torch.utils._python_dispatch.TorchDispatchMode
    counts the operations of a layer, for hardware profiles
    tests/hardware/test_profiling.py::test_a_profile_of_one_device
"""
"""Three lines each, as the fields of `PrivateUse`: what this module calls, how transformers calls its own modules, what
the trainers override or set, and what is PyTorch's."""

_lines = [line.strip() for line in _USES.strip().splitlines()]
PRIVATE_USES = tuple(map(PrivateUse, _lines[::3], _lines[1::3], _lines[2::3]))
