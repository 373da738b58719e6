"""Measurements of the project: ratios and tables, never tests. See docs/results.md."""
