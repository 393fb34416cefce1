"""Other machines: profiles of figures with sources, and what plans would cost there."""
