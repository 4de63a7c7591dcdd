"""Starts the command line: `python -m swm`."""

from swm.cli.main import main

if __name__ == "__main__":
    main()
