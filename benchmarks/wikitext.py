"""WikiText as people write, by article, and which articles no training may see."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

HELD_OUT_SHARE = 10
"""One item in so many is held out."""


def is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def articles(path: Path) -> dict[str, str]:
    """Articles of WikiText by title, as people write: without markup, spaces before punctuation, and unknown words."""
    text = re.sub(r"(?<=[.\n] )[^.\n]*<unk>[^.\n]*\. ", "", path.read_text(encoding="utf-8"))
    text = re.sub(r" @(.)@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?)\]'%])", r"\1", re.sub(r"([(\[$]) ", r"\1", text)).replace(" n't", "n't")
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    parts = re.split(r"^ = ([^=\n]+) = *\n", text, flags=re.MULTILINE)
    bodies = (re.sub(r"^ =+ .* =+ *$", "", body, flags=re.MULTILINE) for body in parts[2::2])
    paragraphs = ("\n\n".join(line.strip() for line in body.split("\n") if line.strip()) for body in bodies)
    return {title.strip(): body for title, body in zip(parts[1::2], paragraphs, strict=True) if len(body) > 1000}
