"""The engine: a model made ready for decoding, plainly or by drafting and verifying."""
