"""`detres replay` from a checkout: `python tools/replay.py`."""

import sys

from detres.cli.replay import main

if __name__ == "__main__":
    sys.exit(main())
