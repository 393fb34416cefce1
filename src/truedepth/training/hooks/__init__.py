"""Putting things around a live model, and taking them off again."""
