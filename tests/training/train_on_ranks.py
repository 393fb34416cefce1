"""A tiny training, run by `test_ranks.py` in one process or several.

    python train_on_ranks.py FOLDER ROWS [--resume] [--interrupt STEP] [--break STEP]

ROWS is the number of rows that a rank takes at once; a step has four in all.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from truedepth.errors import TruedepthError
from truedepth.training.tokenized import TokenizedItems
from truedepth.training.tokens import Tokens
from truedepth.training.trainer import DepthTrainer, Snapshot


def rows(count: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 21, (count,), generator=generator)
    ids = torch.randint(3, 64, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    places = torch.tensor([[0, 1, number] for number in range(count)])
    learnt = torch.rand(len(ids), generator=generator) > 0.3
    learnt[lengths.cumsum(0) - 1] = True
    items = TokenizedItems(ids, learnt, lengths.cumsum(0), torch.zeros(count, dtype=torch.bool), places, ("items",))
    return Tokens(items, 24)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("rows", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--interrupt", type=int)
    parser.add_argument("--break", dest="broken", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=options.folder,
        max_steps=8,
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=4 // (options.rows * ranks),
        per_device_eval_batch_size=3,
        eval_strategy="steps",
        eval_steps=4,
        logging_steps=2,
        save_steps=100,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo" if ranks > 1 else None,
    )
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)

    class Broken(DepthTrainer):
        """One of the ranks has a loss that is not a number."""

        def compute_loss(self, *args: Any, **named: Any) -> Any:
            loss = super().compute_loss(*args, **named)
            bad = self.state.global_step + 1 == options.broken and self.args.process_index == ranks - 1
            return loss * math.nan if bad else loss

    def on_snapshot(snapshot: Snapshot) -> None:
        if snapshot.step == options.interrupt:  # on the first rank only
            os.kill(os.getpid(), signal.SIGINT)

    # Six steps of four rows: the last two steps are in the second epoch. Held-out rows do not fall into equal shares.
    trainer = Broken(model, arguments, rows(52, 0), rows(13, 1), on_snapshot=on_snapshot)
    try:
        trainer.train(options.resume)
    except KeyboardInterrupt:
        print("interrupted")
    except TruedepthError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
