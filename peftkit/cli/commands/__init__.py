"""One module per command, with `add_arguments(parser)` and `run(arguments)`.

The first line of the module docstring is the help text of the command. Heavy imports are inside of functions.
"""
