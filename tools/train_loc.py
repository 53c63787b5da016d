"""`detres train-loc` from a checkout: `python tools/train_loc.py`."""

import sys

from detres.cli.train_loc import main

if __name__ == "__main__":
    sys.exit(main())
