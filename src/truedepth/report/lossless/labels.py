"""The findings of the search for a draft in plain sentences, the same in the HTML report and in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from truedepth.report.format import percent, times

if TYPE_CHECKING:
    from truedepth.search.draft_results import CandidateRecord, DraftRecord, LosslessResults, TimedRecord


@dataclass(frozen=True, slots=True)
class DraftRow:
    """A draft in a table: what is expected of it, and what was measured, where it was.

    Attributes:
        candidate: its figures, at the size of the vocabulary that is best for its plan.
        timed: its timing, on the test split rather than the validation split where there are both.
        is_best: whether it is the draft that the result is about.
    """

    candidate: CandidateRecord
    timed: TimedRecord | None
    is_best: bool


def rows(results: LosslessResults) -> list[DraftRow]:
    """One row a plan, the best first, then by expected tokens a second."""
    timed = {record.draft: record for record in [*results.finalists, results.best]}
    by_plan: dict[tuple[str, str], CandidateRecord] = {}
    for candidate in results.candidates:
        by_plan.setdefault((candidate.draft.form, candidate.draft.notation), candidate)
    found = [
        DraftRow(candidate, timed.get(candidate.draft), candidate.draft == results.best.draft)
        for candidate in by_plan.values()
    ]
    return sorted(found, key=lambda row: not row.is_best)


def name(draft: DraftRecord) -> str:
    """A draft's plan in short: 'exit:8', 'greedy-removal, 26 layers', 'layer-parallel, 20 stages'."""
    if draft.exit:
        return title(draft)
    plan = draft.to_plan()
    return f"{title(draft)}, {plan.effective_depth} {'stages' if plan.groups else 'layers'}"


def title(draft: DraftRecord) -> str:
    """The same without its depth, but for exits."""
    return f"exit:{draft.exit}" if draft.exit else draft.method


def vocabulary(draft: DraftRecord) -> str:
    """How many tokens a draft's head may propose."""
    return "all" if draft.vocabulary is None else f"{draft.vocabulary:,}"


def description(draft: DraftRecord) -> str:
    """A draft in a sentence: 'the first 8 layers', 'the plan 0-24 26-29 (greedy-removal)'."""
    if draft.exit:
        plan = "the first layer" if draft.exit == 1 else f"the first {draft.exit} layers"
    else:
        plan = f"the plan {draft.notation} ({draft.method})"
    return plan if draft.vocabulary is None else f"{plan}, limited to {draft.vocabulary:,} tokens of the vocabulary"


def length(record: TimedRecord) -> str:
    """How much is drafted."""
    if record.num_speculative_tokens is None:
        return "as many tokens as pay"
    return "one token" if record.num_speculative_tokens == 1 else f"{record.num_speculative_tokens} tokens"


def headline(results: LosslessResults) -> str:
    """The outcome in one sentence."""
    if results.pays:
        same = "the same" if results.rounding is None else "the same up to rounding"
        return f"{results.model.name} decodes {results.best.speedup:.2f} times as fast with a draft, and writes {same}."
    return f"No draft pays for {results.model.name} on this machine."


def finding(results: LosslessResults) -> str:
    """The best draft, what it brought, and why."""
    best = results.best
    spread = f"{best.low:.2f} to {best.high:.2f} from run to run, three of four above {best.lower_quartile:.2f}"
    if results.pays:
        return (
            f"Drafting {length(best)} at a time with {description(best.draft)}, and verifying with the whole model, "
            f"brings {times(best.speedup)} ({spread}). {accepted(best)}"
        )
    return (
        f"Plain decoding stays fastest. The best draft is {description(best.draft)}: in timing it came to "
        f"{times(best.speedup)} ({spread}). {agreement(results)}"
    )


def exactness(results: LosslessResults) -> str:
    """Whether drafting may change a token, where one drafts."""
    if results.rounding is None or not results.pays:
        return ""
    return f"Where two tokens are nearly equally likely, either may be written: {results.rounding}."


def accepted(record: TimedRecord) -> str:
    """How much of what was drafted was accepted."""
    if not record.drafted:
        return "Nothing was drafted."
    return f"{percent(record.accepted / record.drafted)} of the drafted tokens were accepted."


def agreement(results: LosslessResults) -> str:
    """Where the best draft agrees with the model, and where it would have to for it to pay."""
    best = candidate_of(results, results.best.draft)
    told = f"It agrees with the model at {percent(best.agreement)} of the places"
    if best.break_even is None:
        return f"{told}, and would not pay even if all of its tokens were accepted."
    return f"{told}; from {percent(best.break_even)} on it should pay (the break-even acceptance)."


def advice(results: LosslessResults) -> str:
    """What to do where no draft pays."""
    if results.pays:
        return ""
    exit_, num_layers, limit = results.aim.exit, results.model.num_layers, results.aim.break_even
    where = f"after {exit_} of the {num_layers} layers"
    if limit is None:
        return (
            f"An exit {where} would not pay on this machine even if all of its tokens were accepted: verifying several "
            "tokens costs too much here. Decode plainly."
        )
    return (
        f"Trained exits agree far more often: one {where} would pay from {percent(limit)} on. Train the model's exits "
        "(LayerSkip, arXiv 2404.16710), or an exit head, and look again."
    )


def candidate_of(results: LosslessResults, draft: DraftRecord) -> CandidateRecord:
    """The figures that the search had of a draft."""
    return next(candidate for candidate in results.candidates if candidate.draft == draft)


def share(value: float | None) -> str:
    """An agreement, or what stands where there is none."""
    return "never" if value is None else percent(value)
