"""The report of the main job: a plan, what it brings, and what it costs."""
