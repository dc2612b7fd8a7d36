"""Run the command line as `python -m peftkit`."""

from peftkit.cli.main import main

if __name__ == "__main__":
    main()
