"""audiovae completion SHELL: a script that completes verbs, options and their values."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from typing import Any

from audiovae import saved
from audiovae.cli.main import VERBS, Parser, fail, module_of
from audiovae.settings import MODEL_SETTINGS

_SHELLS = {
    "bash": "",
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n",
}
_SCRIPT = """# Now: eval "$(audiovae completion {shell})"; for good: audiovae completion {shell} >> ~/.{shell}rc
{begin}_audiovae() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        esac
        if [ -z "$words" ] && [ "${{word#-}}" != "$word" ]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _audiovae audiovae"""


def run(given: Sequence[str]) -> int:
    """Print the script for a shell; files are completed where it says nothing."""
    if len(given) != 1 or given[0] not in _SHELLS:
        fail(f'completion: name a shell, {" or ".join(_SHELLS)}: eval "$(audiovae completion bash)"')
    of_verbs = {verb: _options(verb) for verb in VERBS}
    values = [
        (f"{verb} {option}", " ".join(choices))
        for verb, options in of_verbs.items()
        for option, choices in options.items()
        if choices
    ]
    options = [(verb, " ".join(sorted(found))) for verb, found in of_verbs.items()]
    verbs = " ".join([*VERBS, "completion"])
    script = _SCRIPT.format(
        shell=given[0], begin=_SHELLS[given[0]], verbs=verbs, values=_cases(values, 12), options=_cases(options, 16)
    )
    print(script)
    return 0


def _cases(pairs: Sequence[tuple[str, str]], indent: int) -> str:
    return "\n".join(f'{"":{indent}}"{pattern}") words="{words}" ;;' for pattern, words in pairs)


def _options(verb: str) -> dict[str, list[str]]:
    """Options of a verb, for any type of model, with the values that each can have, if they can be listed."""
    found: dict[str, list[str]] = {}
    for kind in MODEL_SETTINGS if verb == "train" else [""]:
        parser = Parser(prog=f"audiovae {verb}", allow_abbrev=False)
        Parser.given = ["--type", kind]
        module_of(verb).add_arguments(parser)
        for action in parser._actions:
            for name in action.option_strings:
                if name.startswith("--") and action.help is not argparse.SUPPRESS:
                    found[name] = saved.shipped_names() if name in ("--model", "--init") else _choices(action)
    return found


def _choices(action: Any) -> list[str]:
    kind = getattr(action, "_typehint", None)
    if kind is bool:
        return ["true", "false"]
    return [str(choice) for choice in action.choices or typing.get_args(kind) if isinstance(choice, str)]
