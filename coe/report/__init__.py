"""Reports: pure functions of a ledger and a plan, as text, JSON and one self-contained HTML file."""
