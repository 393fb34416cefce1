"""`truedepth measure --profile`: the hardware profile of this machine, or of the ranks that `torchrun` started."""

from __future__ import annotations

from pathlib import Path

import click

from truedepth.cli.options import print_json
from truedepth.cli.ranks import join_ranks


def measure_and_show(output: Path | None, dtype: str, device: str, as_json: bool) -> None:
    """Measure, and write the profile to `output` or print it as YAML, or as JSON; the first rank alone does so.

    Raises:
        UsageError, TruedepthError, OutputError: see the functions that this calls.
    """
    from truedepth.hardware.profiling import measure_profile, save_profile, to_yaml
    from truedepth.models.loading.placement import resolve_device, resolve_dtype
    from truedepth.records.progress import terminal

    ranks = join_ranks(device, {})
    resolved = ranks.device if ranks else resolve_device(device)
    profile = measure_profile(resolved, resolve_dtype(dtype, resolved), terminal)
    if ranks and ranks.rank > 0:
        return
    if output is not None:
        save_profile(profile, output)
    if as_json:
        print_json(profile.model_dump(exclude_none=True))
    elif output is None:
        click.echo(to_yaml(profile), nl=False)
    else:
        click.echo(f"wrote {output}; use it with: truedepth predict MODEL --plan PLAN --hardware {output}")
