"""A small model whose early exits are trained, for benchmarks of self-speculative decoding.

    python benchmarks/trained_exits.py FOLDER

Trains a llama of 16 layers on the source of Python's standard library, and keeps it in FOLDER: a `transformers`
checkpoint, held-out prompts (`prompts.jsonl`) and what was done (`training.json`). A run that was interrupted goes on
from its last checkpoint; a finished folder is left as it is.

Four layers of the embedded model, and the first 4096 tokens of its vocabulary (a byte-level BPE of its own, since
merges come in order), are what training starts from. It has two parts:

1. Those four layers with the head, by next-token loss: the first exit.
2. All layers; those added write nothing at first (block expansion, LLaMA Pro, arXiv 2401.02415, section 3.2), so
   the model starts as good as its exit. The loss is a sum over exits that share the head, as in LayerSkip
   (arXiv 2404.16710, section 4.1.2), with two terms a step: the last layer's, and that of one exit, in rotation.

The text it writes is poor: it has read some 200 thousand tokens, its later layers a sixth of them, and those hardly
change what the exit says. What it is for is decoding at the acceptance that trained exits give, in layers heavy enough
for memory bandwidth to bound them; `training.json` has the losses and how often the exits agree with the last layer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from truedepth.models.loading.embedded import DEFAULT
from truedepth.models.loading.load import load
from truedepth.records.files import write_atomic
from truedepth.records.progress import Progress, terminal

END_ID = 0
"""The token that ends a text."""

EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
HELD_OUT_SHARE = 20
"""One file in so many is held out."""
PROMPT_TOKENS, NUM_PROMPTS = 64, 40
PART = "part.safetensors"
"""The checkpoint that an interrupted run goes on from."""


@dataclass(frozen=True)
class Training:
    """How the model is made. A step reads `batch` * `length` tokens.

    Attributes:
        exit_layers: layers of the embedded model that the first exit starts from.
        added_layers: those that the layers after it start from, their output projections set to zero.
        exits: numbers of layers after which there is an exit.
        exit_weight: of an exit's loss, where the last layer's is 1.
        vocabulary: the first tokens of the embedded model's.
    """

    exit_layers: tuple[int, ...] = (0, 1, 15, 29)
    added_layers: tuple[int, ...] = tuple(range(16, 28))
    exits: tuple[int, ...] = (4, 8)
    exit_weight: float = 0.5
    vocabulary: int = 4096
    batch: int = 3
    length: int = 192
    exit_steps: int = 300
    whole_steps: int = 60
    exit_rate: float = 1e-3
    whole_rate: float = 1e-4
    warmup: int = 10
    checkpoint_every: int = 20

    @property
    def exit(self) -> int:
        return len(self.exit_layers)

    @property
    def layers(self) -> int:
        return len(self.exit_layers + self.added_layers)

    @property
    def steps(self) -> int:
        return self.exit_steps + self.whole_steps

    def learning_rate(self, step: int) -> float:
        """Learning rate: for each part a warm-up, then half a cosine to a tenth."""
        peak, at, of = self.exit_rate, step, self.exit_steps
        if step >= self.exit_steps:
            peak, at, of = self.whole_rate, step - self.exit_steps, self.whole_steps
        warm = min(1.0, (at + 1) / self.warmup)
        return peak * warm * (0.55 + 0.45 * math.cos(math.pi * at / of))


def trained_exits(folder: Path, training: Training | None = None, progress: Progress = terminal) -> Path:
    """The folder of the model, which is trained there unless it is already. Its first exit is `Training.exit`."""
    training = training or Training()
    if (folder / "training.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    kept, held_out = sources()
    source = load(DEFAULT, dtype="float32", device="cpu")
    tokenizer = _tokenizer(source.tokenizer, training)
    model = _initial(source.model, training)
    del source
    seconds = _train(folder, model, _tokens(tokenizer, kept), training, progress)
    _write_prompts(folder, tokenizer, held_out)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    figures = {
        "training": asdict(training),
        "python": sys.version.split()[0],
        "tokens": training.steps * training.batch * training.length,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "held_out": _held_out_figures(model, _tokens(tokenizer, held_out), training),
    }
    write_atomic(folder / "training.json", json.dumps(figures, indent=2) + "\n")
    (folder / PART).unlink(missing_ok=True)
    return folder


def sources() -> tuple[list[str], list[str]]:
    """The standard library's source files: those to train on, and those held out."""
    root = Path(sysconfig.get_path("stdlib"))
    kept: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if EXCLUDED.isdisjoint(name.parts) and (text := path.read_text(encoding="utf-8", errors="ignore")):
            held = zlib.crc32(name.as_posix().encode()) % HELD_OUT_SHARE == 0
            (held_out if held else kept).append(text)
    return kept, held_out


def _tokenizer(whole: PreTrainedTokenizerBase, training: Training) -> PreTrainedTokenizerFast:
    """The first tokens of a byte-level BPE tokenizer, and the merges that make them."""
    backend: Any = whole
    described = json.loads(backend.backend_tokenizer.to_str())
    model = described["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < training.vocabulary}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= model["vocab"].keys()]
    described["added_tokens"] = [added for added in described["added_tokens"] if added["id"] < training.vocabulary]
    end = next(added["content"] for added in described["added_tokens"] if added["id"] == END_ID)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token=end, pad_token=end
    )


def _initial(source: PreTrainedModel, training: Training) -> LlamaForCausalLM:
    """The model before training."""
    taken = training.exit_layers + training.added_layers
    changed = {
        "vocab_size": training.vocabulary,
        "num_hidden_layers": len(taken),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
    model = LlamaForCausalLM(LlamaConfig(**source.config.to_dict() | changed))
    core: Any = source.model
    rows = core.embed_tokens.weight[: training.vocabulary]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(rows)
        model.model.norm.load_state_dict(core.norm.state_dict())
        for at, (layer, index) in enumerate(zip(model.model.layers, taken, strict=True)):
            layer.load_state_dict(core.layers[index].state_dict())
            if at >= training.exit:
                nn.init.zeros_(layer.self_attn.o_proj.weight)
                nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts, an end token after each: (N,), int64."""
    found = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.tensor([token for text in found for token in [*text.ids, tokenizer.eos_token_id]])


def _train(folder: Path, model: LlamaForCausalLM, tokens: Tensor, training: Training, progress: Progress) -> float:
    """Train; returns the seconds that the steps took."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    done, seconds = _resume(folder, model, optimizer)
    with progress("training a model with early exits", training.steps) as advance:
        for _ in range(done):
            advance()
        for step in range(done, training.steps):
            begun = time.perf_counter()
            _step(model, optimizer, _batch(tokens, step, training), step, training)
            seconds += time.perf_counter() - begun
            if (step + 1) % training.checkpoint_every == 0:
                _checkpoint(folder, model, optimizer, step + 1, seconds)
            advance()
    model.eval()
    return seconds


def _batch(tokens: Tensor, step: int, training: Training) -> Tensor:
    """The tokens of a step, the same in every run: (batch, length + 1)."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(tokens) - training.length - 1, (training.batch, 1), generator=generator)
    return tokens[starts + torch.arange(training.length + 1)]


def _step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Tensor, step: int, training: Training
) -> None:
    whole = step >= training.exit_steps
    depths = [training.exits[step % len(training.exits)], training.layers] if whole else [training.exit]
    losses = _losses(model, batch, depths)
    loss = losses[0] if not whole else (training.exit_weight * losses[0] + losses[1]) / (1 + training.exit_weight)
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _losses(model: LlamaForCausalLM, batch: Tensor, depths: list[int]) -> list[Tensor]:
    """Next-token loss at each of some depths, in rising order."""
    targets = batch[:, 1:].flatten()
    return [
        nn.functional.cross_entropy(logits.flatten(0, 1), targets) for logits in _exits(model, batch[:, :-1], depths)
    ]


def _exits(model: LlamaForCausalLM, ids: Tensor, depths: list[int]) -> Iterator[Tensor]:
    """The logits after each of some numbers of layers: (B, T) to (B, T, V) each."""
    core = model.model
    hidden = core.embed_tokens(ids)  # (B, T, D)
    rotary = core.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
    for depth, layer in enumerate(core.layers[: depths[-1]], 1):
        hidden = layer(hidden, position_embeddings=rotary)
        if depth in depths:
            yield model.lm_head(core.norm(hidden))


def _checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    aside = folder / f"new-{PART}"
    save_file(state, aside, metadata={"step": str(step), "seconds": str(seconds)})
    aside.replace(folder / PART)


def _resume(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Put the last checkpoint back; returns its step and seconds, (0, 0.0) without one."""
    path = folder / PART
    if not path.exists():
        return 0, 0.0
    state = load_file(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")})
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["seconds"])


@torch.no_grad()
def _held_out_figures(model: LlamaForCausalLM, tokens: Tensor, training: Training) -> dict[str, float]:
    """Losses on held-out files, and how often each exit's most likely token is the last layer's."""
    windows = tokens[: len(tokens) // training.length * training.length].view(-1, training.length)[::4][:32]
    depths = [*training.exits, training.layers]
    logits = list(_exits(model, windows[:, :-1], depths))
    figures: dict[str, float] = {}
    for depth, each in zip(depths, logits, strict=True):
        loss = nn.functional.cross_entropy(each.flatten(0, 1), windows[:, 1:].flatten())
        figures[f"loss_{depth}"] = round(loss.item(), 3)
        figures[f"agreement_{depth}"] = round((each.argmax(-1) == logits[-1].argmax(-1)).float().mean().item(), 3)
    return figures


def _write_prompts(folder: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """Pieces of held-out files, in the form of spec_bench.jsonl."""
    lines = []
    for at in range(NUM_PROMPTS):
        ids = tokenizer(texts[at % len(texts)])["input_ids"]
        generator = torch.Generator().manual_seed(at)
        start = int(torch.randint(max(1, len(ids) - PROMPT_TOKENS), (1,), generator=generator))
        text = tokenizer.decode(ids[start : start + PROMPT_TOKENS])
        lines.append(json.dumps({"question_id": at, "category": "code", "turns": [text]}))
    write_atomic(folder / "prompts.jsonl", "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    trained_exits(options.folder)
    print((options.folder / "training.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
