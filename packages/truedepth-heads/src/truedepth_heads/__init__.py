"""Trained draft heads for truedepth, found by entry points of the group `truedepth.heads`."""

from pathlib import Path

SMOLLM2_135M = Path(__file__).with_name("smollm2-135m")
"""For SmolLM2-135M-Instruct; `head.json` in it says from what text it was made and how often it is right."""
