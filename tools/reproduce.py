"""`detres reproduce` from a checkout: `python tools/reproduce.py`."""

import sys

from detres.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
