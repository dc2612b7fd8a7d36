"""The commands, one module each: `add_arguments(parser)` defines its arguments, `run(arguments)` runs it.

The first line of a module's docstring is the help text of its command. Heavy imports belong into the functions.
"""
