"""How much memory writing a plan as a checkpoint takes, above that of the interpreter with its libraries.

    python benchmarks/export_memory.py
    python benchmarks/export_memory.py --gigabytes 0.1

Writes a random checkpoint of the given size to a temporary folder, exports a plan with pairs, and prints what the
process took at its peak; export_memory.json beside this script keeps it. A resident set counts what is mapped from
files, too. For Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HIDDEN, FFN, VOCABULARY = 1024, 4096, 32_000
LAYER_PARAMETERS = HIDDEN * (2 * HIDDEN + 2 * HIDDEN // 4 + 3 * FFN) + 2 * HIDDEN


def peak_bytes() -> int:
    """The largest resident set of this process so far. Linux's own figure: `ru_maxrss` begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """A random Llama in bfloat16; returns its number of layers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    layers = max(4, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * HIDDEN) / LAYER_PARAMETERS))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0]).save_pretrained(folder)
    return layers


def export(folder: Path, output: Path, layers: int) -> dict[str, Any]:
    """Export a plan that pairs the middle half of the layers; the figures of this process."""
    # All that an export imports, before the measurement starts.
    import truedepth.export.hf.export
    import truedepth.export.hf.self_check
    import truedepth.export.hf.shards
    import truedepth.models.modeling_truedepth
    import truedepth.models.rewire
    import truedepth.models.streamed
    from truedepth.plan import DepthPlan

    before = peak_bytes()
    first = layers // 4
    pairs = " ".join(f"({layer}|{layer + 1})" for layer in range(first, first + layers // 2, 2))
    plan = DepthPlan.parse(f"0-{first - 1} {pairs} {first + layers // 2 // 2 * 2}-{layers - 1}", layers)
    written = truedepth.export.hf.export.export_hf(str(folder), plan, output)
    assert written.check is not None
    return {
        "plan": plan.notation,
        "weights_bytes": written.nbytes,
        "interpreter_bytes": before,
        "peak_bytes": peak_bytes(),
        "above_bytes": peak_bytes() - before,
        "max_abs_error": written.check.max_abs_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the source's weights")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--export", nargs=3, metavar=("FOLDER", "OUTPUT", "LAYERS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.export:
        print(json.dumps(export(Path(asked.export[0]), Path(asked.export[1]), int(asked.export[2]))))
        return
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        layers = write_checkpoint(source, asked.gigabytes)
        command = [sys.executable, __file__, "--export", str(source), str(Path(place) / "output"), str(layers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        text = json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=2)
        asked.output.write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
