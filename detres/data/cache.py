"""Where what is made once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the environment variable DETRES_CACHE, else ~/.cache/detres; it need not exist."""
    return Path(os.environ.get("DETRES_CACHE") or Path.home() / ".cache" / "detres")
