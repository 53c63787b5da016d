"""`detres check-data` from a checkout: `python tools/check_data.py`."""

import sys

from detres.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
