"""`detres convert` from a checkout: `python tools/convert.py`."""

import sys

from detres.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
