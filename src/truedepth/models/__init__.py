"""Models: loading them, running a plan on them, and how one stage computes."""
