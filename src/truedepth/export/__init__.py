"""A plan on a model as a checkpoint that other engines run."""
