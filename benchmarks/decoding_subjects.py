"""The models that `decoding.py` decodes with, and the prompts they are given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding_entrants import Prompts
from trained_exits import Training, sources, trained_exits
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary, build_vocabulary, end_ids_of
from truedepth.engine.engine import Engine
from truedepth.models.loading.load import load
from truedepth.plan import DepthPlan

TRAINED = "trained-exits"
"""The name of the model that the benchmark trains itself."""

BUILT_IN = (
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "What are the main differences between a list and a tuple in Python? Give an example of each.",
    "Summarize the causes of the First World War in one paragraph.",
    "Plan a three-day trip to Rome for a family with two children.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Explain each step.",
    "Write an email to a colleague who has missed a meeting, and tell them what was decided.",
    "Describe how bread is made, from the flour to the loaf.",
)


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        name: in tables and plots.
        source: what `subject` was asked for.
        engine: of one copy of the model, whose weights it has packed.
        model: the other copy, as it was loaded.
        prompts: token ids, chat template applied where there is one.
        exit: the layers of its first exit, a fourth of all where exits are not trained.
    """

    name: str
    source: str
    engine: Engine
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    exit: int

    @property
    def num_layers(self) -> int:
        return self.engine.target.num_layers

    @property
    def exit_plan(self) -> DepthPlan:
        """The draft: the layers up to the first exit."""
        return DepthPlan.of_layers(range(self.exit), self.num_layers)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens to draft a round, worth trying: more where exits are trained."""
        return (4, 6, 8) if self.name == TRAINED else (3,)

    def to_dict(self) -> dict[str, Any]:
        """What it is, in plain numbers and strings."""
        return {
            "model": self.name,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "layers": self.num_layers,
            "hidden_size": self.model.config.hidden_size,
            "exit": self.exit,
            "prompts": len(self.prompts),
            "prompt_tokens": sum(map(len, self.prompts)),
        }


@contextmanager
def subject(name: str, cache: Path, prompts_file: Path | None, count: int, dtype: str = "float32") -> Iterator[Subject]:
    """A model by name; the engine is closed afterwards.

    Args:
        name: of an embedded model, a folder, or `TRAINED`.
        cache: where `TRAINED` is kept, once trained.
        prompts_file: JSON lines with `turns`, of which the first is used; None: some that are built in. `TRAINED`
            is always given the held-out files that it was trained for.
        count: how many prompts.
        dtype: of both copies.
    """
    loaded, reference = (load(source_of(name, cache), dtype=dtype, device="cpu") for _ in range(2))
    if name == TRAINED:
        prompts_file = cache / TRAINED / "prompts.jsonl"
    texts = BUILT_IN if prompts_file is None else read_prompts(prompts_file)
    # Entrants write on beyond the end of a text, so that all do the same work.
    config: Any = reference.model.generation_config
    config.eos_token_id = None
    with Engine(loaded.model, loaded.tokenizer) as engine:
        yield Subject(
            name=Path(name).name,
            source=name,
            engine=engine,
            model=reference.model,
            tokenizer=loaded.tokenizer,
            prompts=[encode(loaded.tokenizer, text) for text in spread(texts, count)],
            exit=Training().exit if name == TRAINED else max(1, engine.target.num_layers // 4),
        )


def draft_vocabulary(tested: Subject) -> DraftVocabulary:
    """A fourth of the vocabulary, the most frequent tokens of the text that `TRAINED` was trained on."""
    size = tested.engine.runner.vocabulary_size
    kept, _ = sources()
    return build_vocabulary(
        tested.tokenizer,
        kept,
        size // 4,
        vocabulary_size=size,
        end_ids=end_ids_of(tested.engine.model),
        source="Python standard library source",
    )


def source_of(name: str, cache: Path) -> str:
    """What `load` takes for a model; trains `TRAINED` unless it is in `cache` already."""
    return str(trained_exits(cache / TRAINED)) if name == TRAINED else name


def read_prompts(path: Path) -> list[str]:
    """The first turn of each line."""
    return [json.loads(line)["turns"][0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts, evenly from all of them, so that a file sorted by kind gives every kind."""
    if not 0 < count <= len(texts):
        raise SystemExit(f"there are {len(texts)} prompts; ask for 1 to {len(texts)}, not {count}")
    return [texts[at * len(texts) // count] for at in range(count)]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A prompt's token ids, as one message of a chat where the tokenizer has a template."""
    backend: Any = tokenizer
    ids: list[int]
    if backend.chat_template is None:
        ids = backend(text)["input_ids"]
        return ids
    message = [{"role": "user", "content": text}]
    templated = backend.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    ids = templated["input_ids"]
    return ids
