"""Training heads with which a frozen model drafts for itself."""
