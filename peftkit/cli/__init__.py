"""Command line: one module per command in `commands`, the parser and the dispatch in `main`.

No command is implemented here. A command parses its arguments, calls functions of other packages and prints.
"""
