"""Both jobs of `optimize`: the plan that loses least, and the draft that gains most."""
