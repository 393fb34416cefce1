"""Run by test_vllm.py: greedy tokens of a checkpoint by vLLM, as JSON on standard output.

Usage: python vllm_tokens.py FOLDER RANKS NEW_TOKENS PROMPTS, where PROMPTS is JSON: a list of lists of token ids.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from vllm import LLM, SamplingParams, TokensPrompt

    folder, ranks, new_tokens, prompts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    llm = LLM(folder, tensor_parallel_size=ranks, dtype="float32", enforce_eager=True, max_model_len=256, seed=0)
    # Neither side stops at the end of the text.
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
    print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
