"""`detres convert-data` from a checkout: `python tools/convert_data.py`."""

import sys

from detres.cli.convert_data import main

if __name__ == "__main__":
    sys.exit(main())
