"""Run by test_tensor_parallel.py on two ranks: logits of a checkpoint by transformers' tensor parallelism.

Usage: torchrun --nproc-per-node 2 tensor_parallel.py FOLDER IDS, where IDS is JSON: a list of token ids.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    import truedepth.models.modeling_truedepth  # noqa: F401  (transformers knows the architecture then)

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto", dtype=torch.float32)
    wide = model.model.layers[1].self_attn.q_proj.weight
    local = wide.to_local() if hasattr(wide, "to_local") else wide
    with torch.no_grad():
        logits = model(torch.tensor([json.loads(sys.argv[2])])).logits[0, -1]
    if dist.get_rank() == 0:
        print("RESULT", json.dumps({"rows": local.shape[0], "logits": logits.tolist()}))
    dist.barrier()
    dist.destroy_process_group()
