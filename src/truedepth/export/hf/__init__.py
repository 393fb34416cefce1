"""A plan on a model as a checkpoint for transformers and vLLM."""
