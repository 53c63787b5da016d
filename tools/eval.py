"""`detres eval` from a checkout: `python tools/eval.py`."""

import sys

from detres.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())
