"""One module per command: `add_arguments(parser)` defines the arguments, `run(arguments)` runs the command.

The first line of the module docstring is the help text of the command. Heavy imports are inside of functions.
"""
