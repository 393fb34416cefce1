"""What the search for a draft has found: its report (`page`), and a table for a terminal (`table`)."""
