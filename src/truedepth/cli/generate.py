"""`truedepth generate`: write text with a model under a plan."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truedepth.cli.options import (
    examples,
    json_option,
    load_model,
    loading_options,
    model_argument,
    num_layers_of,
    plan_options,
    print_json,
    resolve_plan,
)
from truedepth.errors import TextError, UsageError
from truedepth.plan import DepthPlan, Form, Prefill

if TYPE_CHECKING:
    from truedepth.generation import Generated
    from truedepth.models.load import LoadedModel


@click.command(
    epilog=examples(
        "truedepth generate smollm2-135m --prompt 'Why is the sky blue?'",
        "truedepth generate smollm2-135m --plan run --prompt-file question.txt",
        "truedepth generate smollm2-135m --plan '0-19 (20|21) (22|23) 24-29' --prompt Hi --temperature 0.7",
        "echo 'Once upon a time' | truedepth generate ./checkpoint --raw",
    )
)
@model_argument
@click.option("--prompt", metavar="TEXT", help="The prompt. Without it, standard input is read.")
@click.option("--prompt-file", type=click.Path(path_type=Path), metavar="FILE", help="Read the prompt from a file.")
@plan_options
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Stop after so many tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, help="Sample from the k most likely tokens.")
@click.option("--top-p", type=float, help="Sample from the most likely tokens that have this probability.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--raw", is_flag=True, help="Continue the prompt; do not put it into the model's chat template.")
@loading_options
@json_option
def command(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    plan: str | None,
    form: Form | None,
    prefill: Prefill | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    raw: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Write text with a model under a plan, and say how fast that was."""
    from truedepth.generation import Sampling, generate

    sampling = Sampling(temperature, top_k, top_p, seed)
    text = _prompt(prompt, prompt_file)
    loaded = load_model(model, **loading)
    chosen = _apply(loaded, plan, form, prefill)
    written = generate(
        loaded,
        text,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        raw=raw,
        on_text=None if as_json else _print_piece,
    )
    if as_json:
        print_json({**dataclasses.asdict(written), "plan": chosen.to_dict()})
    else:
        click.echo()
        click.echo(_summary(written, chosen), err=True)


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from wherever it was given."""
    if prompt is not None and file is not None:
        raise UsageError("both --prompt and --prompt-file are given; give one of them")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        raise UsageError("there is no prompt; give --prompt, --prompt-file, or text on standard input")
    name = str(file) if file else "standard input"
    try:
        return (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8")
    except OSError as error:
        raise TextError(f"cannot read the prompt from {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _apply(loaded: LoadedModel, plan: str | None, form: Form | None, prefill: Prefill | None) -> DepthPlan:
    from truedepth.models.rewire import apply

    chosen = resolve_plan(plan, num_layers_of(loaded), form, prefill)
    if not chosen.is_full:
        apply(loaded.model, chosen)
    return chosen


def _print_piece(text: str) -> None:
    click.echo(text, nl=False)


def _summary(written: Generated, plan: DepthPlan) -> str:
    speed = written.decode_tokens_per_second
    rate = f", {speed:.1f} tokens/s" if speed is not None else ""
    tokens = "1 token" if written.tokens == 1 else f"{written.tokens} tokens"
    return (
        f"{tokens}{rate} after {written.first_token_seconds:.2f} s for the prompt's "
        f"{written.prompt_tokens}; effective depth {plan.effective_depth} of {plan.num_layers}"
    )
