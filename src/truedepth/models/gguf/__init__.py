"""GGUF, the file format of llama.cpp: reading a file, and turning it into a transformers model and tokenizer.

transformers reads GGUF too, but takes some eight times as long (it parses the vocabulary three times and the
tensor names once a module), leaves a model that cannot be saved, and drops what the file says about
rotary scaling. See docs/loading.md.
"""
