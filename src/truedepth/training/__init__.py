"""Training for depth: what makes exits usable, and what brings back the quality that a plan costs."""
