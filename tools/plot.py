"""`detres plot` from a checkout: `python tools/plot.py`."""

import sys

from detres.cli.plot import main

if __name__ == "__main__":
    sys.exit(main())
