"""What turns hidden states into proposals: the target's own head, trained heads, and their files."""
