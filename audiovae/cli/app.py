"""audiovae app."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jsonargparse

from audiovae.cli import arguments


def _port(text: str | int) -> int:
    """What --port says."""
    value = str(text)
    if not (value.isascii() and value.isdigit() and int(value) < 2**16):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {value[:40]}")
    return int(value)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=7860, help="of this machine alone; 0 takes any that is free")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page, only say where it is")
    arguments.add_common(parser, "model", model=None)


def run(options: Any) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    from audiovae.app.server import serve

    def ready(address: str) -> None:
        if options.json:
            from audiovae.cli.batch import print_json

            print_json({"address": address})
        elif not options.quiet:
            print(f"{address} (Ctrl-C ends it)")
        sys.stdout.flush()
        if not options.no_browser:
            import webbrowser

            webbrowser.open(address)

    serve(options.port, options.model, ready)
    return 0
