"""The primitive of decoding: a range of stages from given hidden states, over preallocated caches."""
