"""Starts the command line: `python -m swm`."""

from swm.cli.main import main
from swm.models.processes import leave

if __name__ == "__main__":
    main()
    leave()
