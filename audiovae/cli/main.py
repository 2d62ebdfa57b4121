"""audiovae VERB ...: finds the verb, parses its options, turns errors into one line and an exit status.

Exit status: 0 all done; 1 some of several files failed, the others are done; 2 nothing was done: bad usage or input;
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import importlib
import inspect
import io
import json
import keyword
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jsonargparse
import yaml

from audiovae import __version__
from audiovae.cli.signals import ends_in_one_line
from audiovae.cli.summary import tell_end
from audiovae.errors import AudiovaeError, asks_for_tracebacks, unexpected

VERBS = {
    "prepare": "pack recordings for training: a folder, a table, or a data set of another library",
    "train": "train a prior on a packed corpus",
    "import": "a published checkpoint to a model",
    "export": "a model to ONNX files, or to a page, which run without Python",
    "encode": "sound files to latents (.npz)",
    "decode": "latents (.npz) to sound files, the phase by Griffin-Lim",
    "resynthesize": "sound files through encoder and decoder and back to sound",
    "enhance": "speech out of noise: sound files to their speech",
    "separate": "speakers out of a room: recordings of several microphones to a file of each, and of the noise",
    "sample": "draw sound from the prior",
    "score": "how likely is each sound: bounds in nats per frame",
    "evaluate": "resynthesise and score; or compare two folders of sound files",
    "app": "a page on this machine: denoise, look inside, separate, compare, speak live",
    "gather": "join what the processes of --shard or --ray have done, and name what is missing",
    "push": "share a model folder on the Hugging Face hub",
    "info": "what is in a model; without one, what is shipped",
}

_TOP_HELP = """usage: audiovae VERB ...

{verbs}

audiovae help VERB, or audiovae VERB --help, explains a verb; audiovae --version prints the version.
Tab completes verbs and options after: eval "$(audiovae completion bash)", or zsh.
Exit status: 0 all done, 1 some of several files failed, 2 bad usage or input,
130 and 143 ended by Ctrl-C and SIGTERM."""


# How the argument parser words an option, or a key of a YAML file, that it does not know.
_UNKNOWN_NAME = (
    r"unrecognized arguments: (\S+)",
    r"Group '([\w.]+)' does not accept option '(\w+)'",
    r"Option '([\w.]+)' is not accepted",
)
_NOT_POSITIVE = r"([\w.]+): Not of type Positive(Int|Float): (?:.*: )?'?(.*?)'?( does not conform .*)?$"


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Says of a type nothing where it is a function of ours, whose name explains nothing."""

    # Nothing public does it: a later jsonargparse than 4.53.0 may ask another method, and a test would tell.
    def _get_type_str(self, action: argparse.Action) -> str | None:
        if inspect.isfunction(action.type):
            return None
        text = super()._get_type_str(action)
        return {"PositiveInt": "whole number above 0", "PositiveFloat": "number above 0"}.get(text or "", text)


class Parser(jsonargparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest known name for an unknown one."""

    config: str | None = None  # the YAML file that is being read, to name it
    given: Sequence[str] = ()  # the options as typed, for a verb whose other options depend on one of them

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        if wrong := re.search(r'key "([\w.]+)": Expected a (.+)\. Got value: (.*)', line):
            expected = re.sub(r"<class '(\w+)'>|typing\.", r"\1", wrong[2]).replace("tuple", "a list such as [1, 2]")
            line = f"{wrong[1]}: expected {expected}, got {wrong[3]}"
        line = re.sub(r'Parser key "([\w.]+)":', r"\1:", line)
        if wrong := re.search(_NOT_POSITIVE, line):
            line = f"--{wrong[1]}: expected a {'whole ' * (wrong[2] == 'Int')}number above 0, got {wrong[3]}"
        if missing := re.search(r"the following arguments are required: (.*)", line):
            line = f"required: {', '.join(map(self._typed, missing[1].split(', ')))}; {self.prog} --help explains"
        if "parsing config" in line and self.config:
            line = f"{self.config}: is not a YAML file of options ({line.split(':', 1)[1].strip()})"
        for pattern in _UNKNOWN_NAME:
            if unknown := re.search(pattern, line):
                name = ".".join(part for part in unknown.groups() if part)
                line = f"unknown option or key {name!r}" + self._nearest(name)
                break
        fail(f"{self.prog}: {line}")

    def _print_message(self, message: str, file: Any = None) -> None:  # argparse's says nothing of a full disk
        print(message, end="", file=file or sys.stderr)

    def _typed(self, name: str) -> str:
        """How an argument is given on the command line, such as: -o OUT."""
        action = next((action for action in self._actions if action.dest == name), None)
        if action is None:
            return name
        return " ".join([*action.option_strings[:1], str(action.metavar or name)])

    def _nearest(self, name: str) -> str:
        known = sorted({option for action in self._actions for option in action.option_strings})
        near = difflib.get_close_matches("--" + name.lstrip("-"), known, 1, cutoff=0.5)
        if not near:
            return f"; {self.prog} --help lists them"
        return f"; did you mean {near[0] if name.startswith('-') else near[0].lstrip('-')!r}?"


def fail(message: str) -> NoReturn:
    """Print one line to the terminal's error stream and leave with exit status 2."""
    _tell(message)
    sys.exit(2)


def _tell(message: str) -> None:
    line = " ".join(str(message).split())
    print(line if line.startswith("audiovae") else f"audiovae: {line}", file=sys.stderr, flush=True)


@ends_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: never a traceback, but where AUDIOVAE_TRACEBACK=1 asks for it."""
    _prepare_streams()
    _prepare_caches()
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            _flush()
    except BrokenPipeError:  # the reader of our output, such as head, has left
        return 0
    except AudiovaeError as error:
        fail(str(error))
    except Exception as error:
        fail(str(unexpected(error)))


def _prepare_streams() -> None:
    """Give each standard stream that is closed a place to write to, and let all of them print any file name."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would take its number, and what is printed
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _Unfailing(sys.stderr)  # type: ignore[assignment, arg-type]
    if not asks_for_tracebacks():  # of threads and destructors of libraries: what waits for them fails, too
        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = lambda failed: None
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = lambda failed: None
    for stream in (sys.stdout, sys.stderr):  # a file name may be no Unicode
        if isinstance(stream, (io.TextIOWrapper, _Unfailing)):
            stream.reconfigure(errors="backslashreplace")


def _prepare_caches() -> None:
    """Where there is no home to write to, give the libraries that keep something there a folder that ends with us."""
    wanted = [name for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR") if name not in os.environ]
    if wanted and not os.access(os.path.expanduser("~"), os.W_OK):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="audiovae-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            os.environ.update(dict.fromkeys(wanted, folder))


class _Unfailing:
    """A stream on which nothing is lost that the exit status would not tell: one that is full or gone stops no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush() -> None:
    """Write what the standard output still holds, now that an error can be told.

    Raises:
        AudiovaeError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # the interpreter would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise AudiovaeError(f"the standard output cannot be written ({error.strerror})") from error


def _run(given: list[str]) -> int:
    if given and given[0] == "help":
        given = [*given[1:2], "--help"]
    if not given or given[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(_TOP_HELP.format(verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())))
        return 0 if given else 2
    if given[0] == "--version":
        print(f"audiovae {__version__}")
        return 0
    if given[0] == "completion":
        return int(importlib.import_module("audiovae.cli.completion").run(given[1:]))
    verb = given[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, cutoff=0.5)
        fail(f"unknown verb {verb!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(VERBS)}"))
    module = module_of(verb)
    options = _options(verb, module, given[1:])
    options.verb = verb
    began = time.monotonic()
    status = int(module.run(options))
    if status != 2 and not options.quiet:
        tell_end(options, time.monotonic() - began)
    return status


def module_of(verb: str) -> Any:
    """The module of a verb: of its name, which a keyword of the language cannot be."""
    return importlib.import_module(f"audiovae.cli.{verb}{'_' * keyword.iskeyword(verb)}")


def _options(verb: str, module: Any, given: list[str]) -> Any:
    joined = [part for text in given for part in (text.split("=", 1) if text.startswith("--config=") else [text])]
    Parser.config = next((joined[i + 1] for i, text in enumerate(joined[:-1]) if text == "--config"), None)
    Parser.given = given
    parser = Parser(
        prog=f"audiovae {verb}",
        allow_abbrev=False,
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
        formatter_class=_HelpFormatter,
    )
    module.add_arguments(parser)
    try:
        try:
            return parser.parse_args(given)
        except UnicodeDecodeError:  # it reads files as the locale says; a text in place of the file's name is one too
            content = json.dumps(yaml.safe_load(Path(Parser.config or "").read_text(encoding="utf-8")), default=str)
            return parser.parse_args([content if text == Parser.config else text for text in joined])
    except UnicodeDecodeError:
        fail(f"{Parser.config}: is not a YAML file of options, but binary")
    except (yaml.YAMLError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        if asks_for_tracebacks():
            raise
        what = f"{Parser.config}: is not a YAML file of options" if Parser.config else "options that cannot be read"
        fail(f"{what} ({str(error)[:200] or type(error).__name__})")
