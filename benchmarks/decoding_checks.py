"""`decoding.py --equality` and `--memory`: that self-speculation changes no token, and what memory it takes."""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from decoding_subjects import BUILT_IN, Subject, encode, source_of
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from truedepth.engine.drafts.drafts import AnyDraft, Draft
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.loop.batch import MOST_DRAFTED
from truedepth.engine.sampling.request import Request
from truedepth.methods.plan_text import read_plan
from truedepth.models.gguf.file import read_gguf
from truedepth.models.gguf.tokenizer import tokenizer_of
from truedepth.models.loading.checkpoint import load_tokenizer
from truedepth.models.loading.embedded import embedded_model
from truedepth.models.loading.load import load
from truedepth.plan import DepthPlan
from truedepth.records.progress import Progress

HEAD = "the packaged head"

DRAFTS = {
    "exit:8": "exit:8",
    "exit:20": "exit:20",
    "skip": "0-10 12-24 26-29",
    "lp": "0-11 (12|13) (14|15) (16|17) 18-29",
    "unified-skipping@1.5": "unified-skipping@1.5",
}
"""The drafts of the check, for the embedded model's 30 layers."""

DRAFTED = 3
"""Tokens a round. These exits are untrained, and more would seldom be taken."""

WARM_UP = 200
"""Requests before memory is looked at."""


def equality(tested: Subject, new_tokens: int, batches: list[int], record: Path, progress: Progress) -> dict[str, Any]:
    """Greedy self-speculation against plain greedy decoding, token for token, by plans and by the packaged head.

    Every answer goes into `record` at once (JSON lines); answers that are there already are not computed again.

    Returns:
        By draft and batch size: sequences, tokens, differing sequences, acceptance.
    """
    known = _known(record)
    engine = tested.engine
    drafts: dict[str, AnyDraft] = {HEAD: engine.default_draft()}
    drafts |= {name: engine.draft(read_plan(text, tested.num_layers)) for name, text in DRAFTS.items()}
    work = [(batch, name) for batch in batches for name in [None, *drafts]]
    with record.open("a", encoding="utf-8") as file, progress("equality", len(work) * len(tested.prompts)) as advance:
        for batch, name in work:
            for start in range(0, len(tested.prompts), batch):
                group = range(start, min(start + batch, len(tested.prompts)))
                missing = [index for index in group if (batch, name, index, new_tokens) not in known]
                answers = _answers(tested, drafts.get(name or ""), group, new_tokens) if missing else []
                for answer in answers:
                    answer |= {"batch": batch, "draft": name, "new_tokens": new_tokens}
                    known[batch, name, answer["prompt"], new_tokens] = answer
                    print(json.dumps(answer), file=file, flush=True)
                for _ in group:
                    advance()
    rows = [_row(known, batch, name, len(tested.prompts), new_tokens) for batch, name in work if name is not None]
    return {"new_tokens": new_tokens, "drafted": DRAFTED, "plans": DRAFTS, "rows": rows}


def _known(record: Path) -> dict[tuple[int, str | None, int, int], dict[str, Any]]:
    if not record.exists():
        return {}
    lines = record.read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines if line.endswith("}")]
    return {(each["batch"], each["draft"], each["prompt"], each["new_tokens"]): each for each in answers}


def _answers(tested: Subject, draft: AnyDraft | None, group: range, new_tokens: int) -> list[dict[str, Any]]:
    drafts = [] if draft is None else [draft]
    results = tested.engine.generate(
        [Request(tested.prompts[index], new_tokens, ignore_end=True) for index in group],
        drafts=drafts,
        policy=FixedPolicy(DRAFTED) if drafts else None,
    )
    return [
        {"prompt": index, "tokens": list(result.token_ids), "drafted": result.drafted, "accepted": result.accepted}
        for index, result in zip(group, results, strict=True)
    ]


def _row(known: dict[Any, dict[str, Any]], batch: int, name: str, prompts: int, new_tokens: int) -> dict[str, Any]:
    own = [known[batch, name, index, new_tokens] for index in range(prompts)]
    plain = [known[batch, None, index, new_tokens] for index in range(prompts)]
    return {
        "draft": name,
        "batch": batch,
        "sequences": prompts,
        "tokens": sum(len(answer["tokens"]) for answer in own),
        "differing_sequences": sum(a["tokens"] != b["tokens"] for a, b in zip(own, plain, strict=True)),
        "acceptance": sum(answer["accepted"] for answer in own) / max(1, sum(answer["drafted"] for answer in own)),
    }


def memory(name: str, cache: Path, batch: int, new_tokens: int, requests: int) -> dict[str, Any]:
    """What plain and self-speculative decoding take in memory, and whether many short requests leak.

    Both in a process of their own. What it holds with the tokenizer, after the same work with a model of next to no
    weights, does not count: imports, thread pools, kernels.
    """
    return {
        "batch": batch,
        "new_tokens": new_tokens,
        "peak": _apart(_peak, name, cache, batch, new_tokens),
        "many_requests": _apart(_many, name, cache, requests),
    }


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _peak(name: str, cache: Path, batch: int, new_tokens: int) -> dict[str, Any]:
    _small_run()
    tokenizer = _tokenizer(source_of(name, cache))
    before = _resident()
    del tokenizer  # the model comes with another
    with _open(name, cache) as opened:
        engine = opened.engine
        with_loading = _peak_resident() - before
        _reset_peak()
        requests = [Request(opened.prompt, new_tokens, ignore_end=True)] * batch
        engine.generate(requests)
        plain = _peak_resident() - before
        engine.generate(requests, drafts=[opened.draft], policy=FixedPolicy(4))
        peak = _peak_resident() - before
        caches = _cache_bytes(engine, batch, len(opened.prompt) + new_tokens)
    return {
        "weight_bytes": opened.weight_bytes,
        "cache_bytes": caches,
        "peak_while_loading_bytes": with_loading,
        "peak_plain_bytes": plain,
        "peak_bytes": peak,
        "peak_over_weights_and_caches": peak / (opened.weight_bytes + caches),
    }


def _many(name: str, cache: Path, requests: int) -> dict[str, Any]:
    """Short requests, plain and speculative in turn; the process's memory after every tenth of them."""
    seen: list[int] = []
    with _open(name, cache) as opened:
        for at in range(requests + WARM_UP):
            if at >= WARM_UP and (at - WARM_UP) % max(1, requests // 10) == 0:
                gc.collect()
                seen.append(_resident())
            start = at % 8
            request = Request(opened.prompt[start : start + 4 + at % 5], 1 + at % 4, ignore_end=True)
            opened.engine.generate([request], drafts=[opened.draft] if at % 2 else [])
        gc.collect()
        seen.append(_resident())
    return {"requests": requests, "resident_bytes": seen, "grown_bytes": seen[-1] - seen[0]}


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    if embedded := embedded_model(source):
        return tokenizer_of(read_gguf(embedded.require()))
    return load_tokenizer(Path(source), trust_remote_code=False)


def _small_run() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    with Engine(LlamaForCausalLM(config).eval()) as engine:
        draft = engine.draft(DepthPlan.of_layers([0], 2))
        engine.generate([Request([1, 2, 3], 16)], drafts=[draft], policy=FixedPolicy(4))


@dataclass(frozen=True)
class _Opened:
    """An engine with what a memory check needs."""

    engine: Engine
    draft: Draft
    prompt: list[int]
    weight_bytes: int


@contextmanager
def _open(name: str, cache: Path) -> Iterator[_Opened]:
    loaded = load(source_of(name, cache), dtype="float32", device="cpu")
    weights = sum(tensor.nbytes for tensor in loaded.model.parameters())
    prompt = encode(loaded.tokenizer, BUILT_IN[0])
    with Engine(loaded.model, loaded.tokenizer) as engine:
        num_layers = engine.target.num_layers
        draft = engine.draft(DepthPlan.of_layers(range(max(1, num_layers // 4)), num_layers))
        yield _Opened(engine, draft, prompt, weights)


def _cache_bytes(engine: Engine, batch: int, tokens: int) -> int:
    """Keys and values of every layer, with the room that a round of drafting may need."""
    config: Any = engine.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 2 * config.num_key_value_heads * head_dim * torch.finfo(torch.float32).bits // 8
    return int(batch * (tokens + MOST_DRAFTED + 1) * config.num_hidden_layers * width)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _peak_resident() -> int:
    """Bytes; the most since the last `_reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
