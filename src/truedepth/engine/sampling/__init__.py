"""Requests, logits to tokens, acceptance of drafted tokens, and tokens to text."""
