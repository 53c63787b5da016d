"""`detres settings` from a checkout: `python tools/settings.py`."""

import sys

from detres.cli.settings import main

if __name__ == "__main__":
    sys.exit(main())
