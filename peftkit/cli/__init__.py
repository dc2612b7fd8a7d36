"""Command-line interface: argument definitions and dispatch to the commands.

No command is implemented here; each calls a function of another package.
"""
