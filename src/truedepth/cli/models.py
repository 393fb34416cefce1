"""`truedepth models`: what can be loaded here and now, and which families are supported."""

from __future__ import annotations

from typing import Any

import click

from truedepth.cli.options import examples, json_option, print_json


@click.command(epilog=examples("truedepth models", "truedepth models --json"))
@json_option
def command(as_json: bool) -> None:
    """List the supported families, and the embedded and cached models.

    Any checkpoint of a supported family can be loaded: by its name on the Hugging Face hub, from a folder, or
    from a GGUF file.
    """
    listed = _listed()
    if as_json:
        print_json(listed)
    else:
        _print(listed)


def _listed() -> dict[str, list[dict[str, Any]]]:
    from truedepth.families import all_families
    from truedepth.models.loading.cached import cached_models
    from truedepth.models.loading.embedded import embedded_models

    return {
        "families": [
            {"name": family.name, "model_types": family.model_types, "cannot": family.cannot}
            for family in all_families()
        ],
        "embedded": [
            {
                "name": model.name,
                "description": model.description,
                "licence": model.licence,
                "installed": model.installed,
                "install": model.install_command,
            }
            for model in embedded_models()
        ],
        "cached": [{"name": model.name, "bytes": model.size_bytes} for model in cached_models()],
    }


def _print(listed: dict[str, list[dict[str, Any]]]) -> None:
    click.echo("Families (model types; what they cannot do):")
    for family in listed["families"]:
        limits = "; ".join(f"not '{ability}': {reason}" for ability, reason in family["cannot"].items())
        click.echo(f"  {family['name']} ({', '.join(family['model_types'])})" + (f"  {limits}" if limits else ""))
    click.echo("\nEmbedded models:")
    for model in listed["embedded"]:
        click.echo(f"  {model['name']}  {model['description']}, {model['licence']}")
        click.echo("    installed" if model["installed"] else f"    not installed; {model['install']}")
    click.echo("\nModels in the cache of the Hugging Face hub:")
    for model in listed["cached"]:
        click.echo(f"  {model['name']}  {model['bytes'] / 1e9:.1f} GB")
    if not listed["cached"]:
        click.echo("  none")
