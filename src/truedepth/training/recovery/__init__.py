"""Training under a plan, by text or by the unmodified model."""
