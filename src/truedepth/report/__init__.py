"""What a finished run looks like: the report (`html`), and plans and tables in a terminal (`terminal`)."""

REPORT_FILE = "report.html"
"""What the report is called in a run's folder."""
