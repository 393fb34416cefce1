"""Fixtures for training: a tokenizer of bytes that chats, files of items, and tiny trainings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    """`byte_tokenizer(template=...)`: a token for each byte, `<pad>` 0, `<s>` 1, `</s>` 2; it adds none by itself.

    Its chat template writes `[role]content</s>`.
    """

    def make(template: str | None = CHAT) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        specials = ["<pad>", "<s>", "</s>"]
        symbols = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        pad, start, end = specials
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=start, eos_token=end)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """`write_lines([{...}, ...], name="items.jsonl")`: a file of JSON lines; a string is written as it is."""

    def write(lines: Sequence[Any], name: str = "items.jsonl") -> Path:
        path = tmp_path / name
        text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def random_items() -> Callable[..., Any]:
    """`random_items(count, seed=0, shortest=3, longest=20, documents=False)`: `TokenizedItems` of 64 tokens."""
    import torch

    from truedepth.training.data.tokenized import TokenizedItems

    def make(count: int, seed: int = 0, shortest: int = 3, longest: int = 20, documents: bool = False) -> Any:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
        ids = torch.randint(3, 64, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
        loss_mask = (
            torch.ones(len(ids), dtype=torch.bool) if documents else torch.rand(len(ids), generator=generator) > 0.3
        )
        loss_mask[lengths.cumsum(0) - 1] = True
        return TokenizedItems(
            ids=ids,
            loss_mask=loss_mask,
            stops=lengths.cumsum(0),
            divisible=torch.full((count,), documents),
            origins=torch.tensor([[0, 1, index + 1] for index in range(count)], dtype=torch.int64).reshape(-1, 3),
            names=("items.jsonl",),
        )

    return make


@pytest.fixture
def start(tmp_path: Path, tiny_model: Callable[..., Any], random_items: Callable[..., Any]) -> Callable[..., Any]:
    """`start("name", **settings)`: a trainer in the folder `name` on a tiny llama with dropout and 14 rows.

    `trainer` is its class; `model`, `on_snapshot`, `items` and all arguments of `TrainingArguments` may be given.
    """
    from transformers import TrainingArguments

    from truedepth.training.data.rows import TokenRows
    from truedepth.training.trainer.depth_trainer import DepthTrainer

    def make(
        name: str = "run",
        *,
        trainer: type[DepthTrainer] = DepthTrainer,
        model: Any = None,
        items: Any = None,
        on_snapshot: Callable[[Any], None] = lambda snapshot: None,
        **settings: Any,
    ) -> DepthTrainer:
        rows = TokenRows(items or random_items(40), 32)
        settings = {
            "max_steps": 9,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_steps": 100,
            "learning_rate": 1e-3,
            "report_to": [],
            "use_cpu": True,
            **settings,
        }
        arguments = TrainingArguments(output_dir=str(tmp_path / name), **settings)
        model = model or tiny_model("llama", attention_dropout=0.1)
        return trainer(model, arguments, rows, TokenRows(random_items(9, seed=1), 32), on_snapshot=on_snapshot)

    return make


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate collects garbage whenever a training starts, which takes longer than the training."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def quick_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings with a cache of their own and no bandwidth to measure."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("truedepth.training.run.read_bandwidth", lambda device: 1e9)
