"""`detres train-det` from a checkout: `python tools/train_det.py`."""

import sys

from detres.cli.train_det import main

if __name__ == "__main__":
    sys.exit(main())
