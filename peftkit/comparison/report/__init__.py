"""Reports of a comparison: HTML page, tables and charts.

`comparison.analysis` computes the numbers and tests.
"""
