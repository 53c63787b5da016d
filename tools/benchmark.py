"""`detres benchmark` from a checkout: `python tools/benchmark.py`."""

import sys

from detres.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
