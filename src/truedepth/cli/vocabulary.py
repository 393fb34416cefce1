"""`truedepth vocabulary`: count the tokens of a text, and keep the most frequent ones for drafts to propose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from truedepth.cli.options import (
    AT_LEAST_1,
    examples,
    json_option,
    load_model,
    loading_options,
    model_argument,
    output_option,
    overwrite_option,
    print_json,
)
from truedepth.errors import TextError
from truedepth.records.text_files import read_text


@click.command(
    epilog=examples(
        "truedepth vocabulary smollm2-135m --text chat.txt -o vocabulary",
        "truedepth vocabulary ./checkpoint --text prose.txt --text code.txt --size 16384 -o ./checkpoint",
    )
)
@model_argument
@click.option(
    "--text",
    "files",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    required=True,
    help="Text (UTF-8) such as the model writes; may be given again. At least some hundred kB.",
)
@click.option("--size", type=AT_LEAST_1, default=8192, show_default=True, help="How many tokens to keep.")
@output_option("Where to write it; may be the checkpoint's own folder.", "FOLDER")
@overwrite_option
@loading_options
@json_option
def command(
    model: str, files: tuple[Path, ...], size: int, output: Path, overwrite: bool, as_json: bool, **loading: Any
) -> None:
    """Make a draft vocabulary: the tokens that a draft may propose.

    A draft that reads fewer rows of the LM head is cheaper. Nothing is lost, since the whole head verifies; a token
    outside the part is merely never drafted.
    """
    from truedepth.engine.drafts.heads.vocabulary import (
        VOCABULARY_FILES,
        build_vocabulary,
        end_ids_of,
        vocabulary_size_of,
    )
    from truedepth.records.files import require_new
    from truedepth.records.progress import terminal

    require_new(output / f"{VOCABULARY_FILES}.json", overwrite=overwrite)
    texts = [read_text(file, "a readable text file", TextError) for file in files]
    loaded = load_model(model, **loading)
    whole = vocabulary_size_of(loaded.model)
    with terminal("Counting tokens", 1):
        vocabulary = build_vocabulary(
            loaded.tokenizer,
            texts,
            size,
            vocabulary_size=whole,
            end_ids=end_ids_of(loaded.model),
            source=", ".join(map(str, files)),
        )
    vocabulary.save(output, loaded.model, loaded.tokenizer)
    if as_json:
        print_json(
            {
                "size": size,
                "vocabulary_size": whole,
                "coverage": vocabulary.coverage,
                "source": vocabulary.source,
                "output": output,
            }
        )
        return
    click.echo(f"{size} of {whole} tokens cover {vocabulary.coverage:.1%} of {vocabulary.source}; written to {output}")
