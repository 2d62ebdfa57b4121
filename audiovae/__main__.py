"""python -m audiovae VERB ...: the console script where none is installed."""

import sys

from audiovae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
