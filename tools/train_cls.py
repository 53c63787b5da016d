"""`detres train-cls` from a checkout: `python tools/train_cls.py`."""

import sys

from detres.cli.train_cls import main

if __name__ == "__main__":
    sys.exit(main())
