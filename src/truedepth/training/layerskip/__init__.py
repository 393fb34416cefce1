"""LayerSkip (arXiv 2404.16710): layer dropout and early-exit losses."""
