"""What examples/report.py is made of: reading results, comparing them, tables, plots."""
