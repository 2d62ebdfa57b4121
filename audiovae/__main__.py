"""The console script, and python -m audiovae VERB ... where none is installed."""

import os
import sys

from audiovae.cli.signals import leave_at_once

# PyTorch keeps what it compiled for every shape of a product: by default 1024 of them, some 500 MB in a folder of files
# of many lengths. It reads these when it is loaded.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_SHAPES_KEPT = "64"


def main() -> int:
    for name in _CACHES:
        os.environ.setdefault(name, _SHAPES_KEPT)
    leave_at_once()  # before the modules of the command line are loaded, which takes a while
    from audiovae.cli.main import main as run

    return run(None)


if __name__ == "__main__":
    sys.exit(main())
