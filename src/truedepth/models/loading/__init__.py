"""Models by whatever a user may call them: opened, checked, and loaded."""
