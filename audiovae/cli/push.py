"""audiovae push MODEL OWNER/NAME."""

from __future__ import annotations

from typing import Any

import jsonargparse

from audiovae.cli import arguments


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="MODEL", help="a model folder, or the name of a shipped model")
    parser.add_argument("repository", metavar="OWNER/NAME", help="where on the hub; it is made where there is none")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made where there is none; default: main")
    parser.add_argument("--private", action="store_true", help="a repository that is made is seen by its owner alone")
    arguments.add_common(parser)


def run(options: Any) -> int:
    from audiovae import hub, saved
    from audiovae.cli.batch import print_json

    folder = saved.find(options.folder)
    saved.read(folder)  # what is damaged is not shared
    commit = hub.push(folder, options.repository, list(saved.FILES), options.private, options.revision)
    if options.json:
        print_json({"commit": commit})
    elif not options.quiet:
        revision = f"@{options.revision}" if options.revision else ""
        print(f"{commit}; load it with --model {options.repository}{revision}")
    return 0
