"""The card of a written checkpoint: what it is, what it was made from, and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from truedepth.models.loading.embedded import embedded_model
from truedepth.records.version import VERSION

if TYPE_CHECKING:
    from truedepth.export.hf.self_check import SelfCheck
    from truedepth.export.hf.written import HfExport
    from truedepth.plan import DepthPlan
    from truedepth.search.plan_results import Results


def card(source: str, model_type: str, plan: DepthPlan, written: HfExport, measured: Results | None) -> str:
    """The text of `README.md`, in Markdown with the hub's front matter."""
    name = Path(source).name if Path(source).exists() else source
    wide = "Truedepth" in written.architecture
    parts = [
        _front_matter(source),
        f"# {name} under a depth plan",
        f"{name} ({model_type}, {plan.num_layers} layers) with {plan.effective_depth} layers, written by "
        f"truedepth {VERSION}. Nothing was trained for this.",
        _plan_section(plan),
        _loading_section(written, wide),
        _check_section(written.check),
    ]
    if measured is not None:
        parts.append(_measured_section(measured))
    return "\n\n".join(parts) + "\n"


def _front_matter(source: str) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [truedepth]"]
    if embedded := embedded_model(source):
        lines.append(f"license: {embedded.licence.lower()}")
    elif not Path(source).exists():
        lines.append(f"base_model: {source}")
    return "\n".join(["---", *lines, "---"])


def _plan_section(plan: DepthPlan) -> str:
    skipped = ", ".join(map(str, plan.layers_skipped)) or "none"
    return f"""## The plan

```
{plan.notation}
```

Layers of the source, from 0. In `(20|21)` two layers read the same input and became one wide layer (u = x + ΣA(x),
then y = u + ΣF(u), with A = norm + attention and F = norm + FFN); `(20+21)` is one layer with the mean of two layers'
weights. Layers left out: {skipped}. `plan.yaml` has the same for programs."""


def _loading_section(written: HfExport, wide: bool) -> str:
    if not wide:
        return f"""## Loading

A plain `{written.architecture}`: everything that loads the source loads this."""
    return f"""## Loading

Layers differ in the number of heads and the width of the FFN (`per_layer_config` in `config.json`), as
`{written.architecture}` has them.

```sh
truedepth generate PATH --prompt 'Why is the sky blue?'
vllm serve PATH    # truedepth, where it is installed, makes vLLM know the architecture
```

```python
AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)  # without truedepth, by the file that comes along
```"""


def _check_section(check: SelfCheck | None) -> str:
    if check is None:
        return "## Check\n\nAll tensors are copies of the source's."
    return f"""## Check

The plan on the source against this checkpoint, both computed in float32, over {check.tokens} tokens: largest difference
of two logits {check.max_abs_error:.2g} (the largest logit is {check.max_abs_logit:.3g}); same most likely token at
{check.agreement:.1%} of the positions."""


def _measured_section(results: Results) -> str:
    from truedepth.report.format import number, percent, perplexity

    rows = [
        ("perplexity, source", perplexity(results.perplexity.base)),
        ("perplexity, this plan", perplexity(results.perplexity.plan)),
        ("KL divergence, nats a token", number(results.kl)),
        ("same most likely token", percent(results.agreement)),
    ]
    speedup = results.speedup
    if speedup.measured is not None:
        rows.insert(0, ("decode speedup", f"{speedup.measured:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"))
    machine = results.machine
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    return f"""## Measured

By `truedepth optimize`, of the plan on the source, before it became this checkpoint; on {machine.device}
({machine.processor}), {results.model.dtype}, batch 1; quality on {results.text.test_tokens} tokens of
{results.text.source}.

| what | value |
| --- | --- |
{table}"""
