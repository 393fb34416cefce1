"""`truedepth generate`: write text with a model under a plan, with or without a draft."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from truedepth.cli.options import (
    LOADING,
    examples,
    json_option,
    load_model,
    loading_options,
    model_argument,
    options,
    plan_options,
    print_json,
)
from truedepth.cli.ranks import join_ranks
from truedepth.errors import TextError, UsageError
from truedepth.methods.plan_text import PLAN_FORMATS, read_plan
from truedepth.plan import DepthPlan, Form, Prefill
from truedepth.records.text_files import decode_text, read_text

if TYPE_CHECKING:
    from truedepth.engine.drafts.drafts import AnyDraft
    from truedepth.engine.generation import Options, Stream
    from truedepth.engine.sampling.logits_sampler import SamplingParams
    from truedepth.engine.sampling.result import GenerationResult
    from truedepth.measuring.drafting_gain import DraftingGain
    from truedepth.models.loading.load import LoadedModel
    from truedepth.parallel.ranks import GroupRanks

_ACCEPTED = "green"
"""Colour of drafted tokens in a terminal."""

_SCHEMA_VERSION = 2
"""Of what `--json` prints; docs/decoding.md has its keys."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


_sampling_options = options(
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, help="Sample from the k most likely tokens."),
    click.option("--top-p", type=float, help="Sample from the most likely tokens that have this probability."),
    click.option("--min-p", type=float, help="Sample from tokens with this share of the likeliest one's chance."),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        show_default=True,
        help="Make tokens that are there already this much less likely.",
    ),
    click.option("--seed", type=int, help="The same seed gives the same text."),
)
"""The arguments of `truedepth.SamplingParams`."""

_draft_options = options(
    click.option(
        "--draft",
        "drafts",
        multiple=True,
        metavar="DRAFT",
        help="Speculate: draft with this and let the model verify. On a CPU in float32 and bfloat16 that changes no "
        "token of greedy text; where it may, by rounding, a line says so. Several times: choose among "
        f"these. DRAFT is {PLAN_FORMATS}; the folder of a trained head or of its training; or 'default' for the head "
        "that comes with the model. Of a run's folder everything is used, its draft vocabulary too.",
    ),
    click.option(
        "--draft-length",
        "num_speculative_tokens",
        type=int,
        metavar="N",
        help="Draft N tokens each time.  [default: what pays, as seen]",
    ),
    click.option(
        "--draft-vocabulary",
        "vocabulary",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Draft only the tokens of the draft vocabulary in this folder.",
    ),
)


@click.command(
    epilog=examples(
        "truedepth generate smollm2-135m --prompt 'Why is the sky blue?'",
        "truedepth generate smollm2-135m --draft default --prompt 'Why is the sky blue?' --compare",
        "truedepth generate smollm2-135m --plan run --prompt-file question.txt",
        "truedepth generate ./layerskip-checkpoint --draft exit:8 --prompt 'Why is the sky blue?' --stats",
        "truedepth generate smollm2-135m --plan '0-19 (20|21) (22|23) 24-29' --prompt Hi --temperature 0.7",
        "echo 'Once upon a time' | truedepth generate ./checkpoint --raw",
    )
)
@model_argument
@click.option("--prompt", metavar="TEXT", help="The prompt. Without it, standard input is read.")
@click.option("--prompt-file", type=click.Path(path_type=Path), metavar="FILE", help="Read the prompt from a file.")
@plan_options
@_draft_options
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Stop after so many tokens.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the text before this. May be given several times.")
@_sampling_options
@click.option("--raw", is_flag=True, help="Continue the prompt; do not put it into the model's chat template.")
@click.option("--chat-template", metavar="NAME", help="The chat template, where the tokenizer has several by name.")
@click.option("--stats", is_flag=True, help="Print a table of times and of what was drafted and accepted.")
@click.option("--compare", is_flag=True, help="Then time the draft against plain decoding, several runs in turns.")
@click.option("--logprobs", is_flag=True, help="With --json: add each token's log probability.")
@loading_options
@json_option
def command(
    model: str,
    prompt: str | None,
    prompt_file: Path | None,
    plan: str | None,
    form: Form | None,
    prefill: Prefill | None,
    drafts: tuple[str, ...],
    stats: bool,
    compare: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write text with a model under a plan, and say how fast that was.

    With --draft, a shallower plan or a head drafts tokens and the model verifies several at once: the text stays the
    same.
    """
    from truedepth.engine.sampling.logits_sampler import SamplingParams
    from truedepth.models.rewire import apply

    loading = {name: options.pop(name) for name in LOADING}
    length, vocabulary = options["num_speculative_tokens"], options["vocabulary"]
    refused = {"--draft": drafts, "--draft-length": length, "--draft-vocabulary": vocabulary}
    ranks = join_ranks(loading["device"], refused)
    if (as_json and stats) or (options["logprobs"] and not as_json):
        raise UsageError("--json has all figures without --stats, and --logprobs needs --json")
    if compare and not drafts:
        raise UsageError("--compare times a draft against plain decoding, and there is none; give --draft")
    sampling_params = SamplingParams(**{name: options.pop(name) for name in _SAMPLING})
    text = _prompt(prompt, prompt_file, ranks)
    read = partial(read_plan, plan, form=form, prefill=prefill)
    if ranks:
        loaded, chosen, sampling_params = _load_part(model, read, ranks, sampling_params, **loading)
    else:
        loaded = load_model(model, **loading)
        chosen = read(loaded.num_layers)
        if not chosen.is_full:
            apply(loaded.model, chosen)
    options["sampling_params"] = sampling_params
    written = _write(loaded, text, drafts, cast("Options", options), compare=compare, silent=as_json)
    if as_json:
        _print_as_json(written, chosen, ranks)
    else:
        _summarise(written, chosen, ranks, stats=stats)
    if written.interrupted:
        raise click.Abort


@dataclass(frozen=True)
class _Written:
    """What a call has brought.

    Attributes:
        drafts: each as it was given, and what was made of it.
        rounding: see `Engine.rounding`.
    """

    result: GenerationResult
    drafts: list[tuple[str, AnyDraft]]
    gain: DraftingGain | None
    interrupted: bool
    rounding: str | None


def _write(
    loaded: LoadedModel, text: str, drafts: tuple[str, ...], options: Options, *, compare: bool, silent: bool
) -> _Written:
    """Show the text while it is written, then compare if asked."""
    from truedepth.engine.engine import Engine
    from truedepth.engine.generation import stream
    from truedepth.engine.speculation import Speculation
    from truedepth.measuring.drafting_gain import drafting_gain
    from truedepth.records.progress import terminal

    length, vocabulary = options["num_speculative_tokens"], options["vocabulary"]
    speculation = Speculation(draft=drafts, num_speculative_tokens=length, vocabulary=vocabulary)
    with Engine(loaded.model, loaded.tokenizer) as engine:
        prepared, _ = speculation.prepare(engine)
        options["draft"], options["progress"] = prepared, terminal
        pieces = stream(engine, text, **options)
        interrupted = _show(pieces, silent=silent)
        gain = drafting_gain(engine, text, **options) if compare and not interrupted else None
        used = list(zip(drafts, prepared, strict=True))
        return _Written(pieces.result, used, gain, interrupted, engine.rounding)


def _print_as_json(written: _Written, plan: DepthPlan, ranks: GroupRanks | None) -> None:
    shared = {"count": ranks.size, "backend": ranks.backend, **asdict(ranks.traffic)} if ranks else None
    print_json(
        {
            "schema_version": _SCHEMA_VERSION,
            **written.result.to_dict(),
            "plan": plan.to_dict(),
            "drafts": [{"draft": given, **draft.to_dict()} for given, draft in written.drafts],
            **({"rounding": written.rounding} if written.drafts else {}),
            **({"comparison": asdict(written.gain)} if written.gain else {}),
            **({"ranks": shared} if shared else {}),
        }
    )


def _load_part(
    model: str, read: Callable[[int], DepthPlan], ranks: GroupRanks, sampling_params: SamplingParams, **loading: Any
) -> tuple[LoadedModel, DepthPlan, SamplingParams]:
    """This rank's part of the model, the plan that it runs, and sampling by the same seed on all ranks."""
    from truedepth.parallel.load import load_split

    loading["device"] = ranks.device
    parts = load_split(model, lambda num_layers: {"plan": read(num_layers)}, ranks, **loading)
    if sampling_params.temperature > 0 and sampling_params.seed is None:
        sampling_params = replace(sampling_params, seed=ranks.first_choice(secrets.randbits(63)))
    return parts.loaded("plan"), parts.plans["plan"], sampling_params


def _prompt(prompt: str | None, file: Path | None, ranks: GroupRanks | None) -> str:
    """The prompt from wherever it was given."""
    if prompt is not None and file is not None:
        raise UsageError("both --prompt and --prompt-file are given; give one of them")
    if prompt is not None:
        return prompt
    if file is None and ranks:
        raise UsageError("several ranks cannot read one standard input; give --prompt or --prompt-file")
    if file is None and sys.stdin.isatty():
        raise UsageError("there is no prompt; give --prompt, --prompt-file, or text on standard input")
    if file is None:
        return decode_text(sys.stdin.buffer.read(), "standard input", TextError)
    return read_text(file, "a readable text file", TextError)


def _show(pieces: Stream, *, silent: bool) -> bool:
    """Print pieces as they come; whether they were interrupted."""
    colour = _has_colour()
    try:
        for piece in pieces:
            if not silent:
                drafted = colour and piece.from_draft
                click.echo(click.style(piece.text, fg=_ACCEPTED) if drafted else piece.text, nl=False, color=colour)
    except KeyboardInterrupt:
        pieces.close()
        return True
    finally:
        if not silent:
            click.echo()
    return False


def _has_colour() -> bool:
    """Whether standard output is a terminal that shows colours, and the user wants them."""
    from rich.console import Console

    console = Console()
    return console.color_system is not None and not console.no_color


def _summarise(written: _Written, plan: DepthPlan, ranks: GroupRanks | None, *, stats: bool) -> None:
    """Say on stderr how it went."""
    result = written.result
    speed = result.tokens_per_second
    rate = f", {speed:.1f} tokens/s" if speed is not None else ""
    count = len(result.token_ids)
    click.echo(
        f"{count} {'token' if count == 1 else 'tokens'}{rate} after {result.timings.first_token:.2f} s for the "
        f"prompt's {result.prompt_tokens}; effective depth {plan.effective_depth} of {plan.num_layers}",
        err=True,
    )
    if written.drafts:
        _summarise_drafting(result)
        if written.rounding:
            click.echo(f"the same text but where two tokens are nearly equally likely: {written.rounding}", err=True)
    if ranks:
        click.echo(
            f"{ranks.size} ranks over {ranks.backend}: {plan.all_reduces} all-reduces a token, "
            f"{ranks.traffic.all_reduces} counted in all",
            err=True,
        )
    if stats:
        from rich.console import Console

        from truedepth.report.terminal import decoding_table

        Console(stderr=True).print(decoding_table(result))
    if written.gain:
        _print_gain(written.gain)


def _summarise_drafting(result: GenerationResult) -> None:
    from truedepth.report.format import percent

    if result.acceptance is None:
        click.echo("no tokens were drafted", err=True)
        return
    colour = _has_colour()
    legend = click.style(f" ({_ACCEPTED})", fg=_ACCEPTED) if colour else ""
    click.echo(
        f"{result.accepted} of {result.drafted} drafted tokens accepted{legend}, {percent(result.acceptance)}; "
        f"{(len(result.token_ids) - 1) / len(result.steps):.2f} tokens a step",
        err=True,
        color=colour,
    )


def _print_gain(gain: DraftingGain) -> None:
    """Say on stderr what the draft is worth."""
    speedup = gain.speedup
    same = {None: "", True: "; the same text", False: "; not the same text"}[gain.same_text]
    click.echo(
        f"compared: {gain.tokens_per_second:.1f} tokens/s with the draft, {gain.plain_tokens_per_second:.1f} without, "
        f"{speedup.median:.2f}x ({speedup.low:.2f} to {speedup.high:.2f}){same}",
        err=True,
    )
