"""Command line: one module a command in `commands`, the parser and the dispatch in `main`.

No command is implemented here. A command parses its arguments, calls one function of another package and prints.
"""
