"""The console script, and python -m audiovae VERB ... where none is installed."""

import sys

from audiovae.cli.signals import leave_at_once


def main() -> int:
    leave_at_once()  # before the modules of the command line are loaded, which takes a while
    from audiovae.cli.main import main as run

    return run(None)


if __name__ == "__main__":
    sys.exit(main())
