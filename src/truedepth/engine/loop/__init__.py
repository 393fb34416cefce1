"""The decoding loop of a batch."""
