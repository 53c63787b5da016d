"""`detres predict` from a checkout: `python tools/predict.py`."""

import sys

from detres.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
