"""What all kinds of training share: the trainer, its checkpoints and figures."""
