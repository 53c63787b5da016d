"""`python -m detres COMMAND ...`, where the command `detres` is not on the path."""

import sys

from detres.cli import main

if __name__ == "__main__":
    sys.exit(main())
