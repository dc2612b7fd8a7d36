"""Reports of a comparison: HTML page, tables and charts.

Numbers come from `comparison.analysis`; nothing is computed or tested for significance here.
"""
