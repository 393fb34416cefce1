"""Run by test_tensor_parallel.py on two ranks: logits of checkpoints by transformers' tensor parallelism.

Usage: torchrun --nproc-per-node 2 tensor_parallel.py IDS FOLDER ..., where IDS is JSON: a list of token ids.
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
    ids = torch.tensor([json.loads(sys.argv[1])])
    found = []
    for folder in sys.argv[2:]:
        model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32)
        wide = model.model.layers[1].self_attn.q_proj.weight
        local = wide.to_local() if hasattr(wide, "to_local") else wide
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        found.append({"rows": local.shape[0], "logits": logits.tolist()})
    if dist.get_rank() == 0:
        print("RESULT", json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
