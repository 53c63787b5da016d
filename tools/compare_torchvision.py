"""`detres compare-torchvision` from a checkout: `python tools/compare_torchvision.py`."""

import sys

from detres.cli.compare_torchvision import main

if __name__ == "__main__":
    sys.exit(main())
