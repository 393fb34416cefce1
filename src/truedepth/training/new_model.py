"""The model that a recipe trains: one that exists, or a new one with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from truedepth.errors import ModelLoadError, TruedepthError, UsageError
from truedepth.families import family_of
from truedepth.models.configuration import check_numbers
from truedepth.models.loading.load import LoadedModel, blank_model, load
from truedepth.models.loading.memory import require_memory
from truedepth.records.messages import one_line
from truedepth.training.data.sources import Conversation, DataSource, Document, read_items
from truedepth.training.recipe import ModelSource, Scratch

PAD, END = "<pad>", "</s>"
"""The special tokens of a tokenizer that is made here."""


def load_or_make(source: ModelSource, text: Sequence[DataSource], seed: int) -> LoadedModel:
    """The model and its tokenizer, on the CPU: the trainer moves it to where it belongs.

    Args:
        text: what a new tokenizer is made from.
        seed: for the weights of a new model.

    Raises:
        UsageError: the configuration makes no model.
        TruedepthError: the model or tokenizer cannot be loaded, or the text cannot be read.
    """
    if source.scratch is not None:
        return _make(source.scratch, text, source, seed)
    return load(str(source.name), dtype=source.dtype, device="cpu", trust_remote_code=source.trust_remote_code)


def _make(scratch: Scratch, text: Sequence[DataSource], source: ModelSource, seed: int) -> LoadedModel:
    if scratch.tokenizer is None:
        tokenizer = make_tokenizer(text, scratch.vocabulary or 0)
    else:
        tokenizer = load(scratch.tokenizer, device="cpu", trust_remote_code=source.trust_remote_code).tokenizer
    specials = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    auto: Any = AutoModelForCausalLM
    try:
        check_numbers(scratch.config, "'config'", remedy="correct it")
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **specials, **scratch.config})
        family_of(config)
        require_memory("new model", blank_model(config), getattr(torch, source.dtype), torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = auto.from_config(config, dtype=getattr(torch, source.dtype))
    except ModelLoadError as error:
        raise UsageError(f"the new model cannot be: {error}") from None
    except TruedepthError:
        raise
    except Exception as error:
        # A configuration can ask for anything, and models fail over it in as many ways.
        raise UsageError(f"the 'config' of the new model makes no model: {one_line(error)}; correct it") from error
    return LoadedModel(model.eval(), tokenizer, f"a new {config.model_type}")


def make_tokenizer(text: Sequence[DataSource], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, by the text's most frequent pairs.

    The same text gives the same tokenizer. It has the special tokens `<pad>` and `</s>`, and no chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(text), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END, padding_side="left")


def _texts(sources: Sequence[DataSource]) -> Iterator[str]:
    for source in sources:
        for item in read_items(source):
            if isinstance(item, Document):
                yield item.text
            elif isinstance(item, Conversation):
                yield from (str(message.get("content") or "") for message in item.messages)
            else:
                yield from (item.prompt, item.response)
