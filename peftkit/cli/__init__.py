"""Command line: one module per command in `commands`, parser and dispatch in `main`.

A command only parses arguments, calls functions of other packages and prints.
"""
