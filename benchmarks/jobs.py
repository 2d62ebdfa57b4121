"""Jobs that survive: kills and poisoned files over shards and ray, and what either costs.

    OMP_NUM_THREADS=1 python benchmarks/jobs.py kills       # 100 kills, 10 poisoned files, over 4 shards and over ray
    OMP_NUM_THREADS=1 python benchmarks/jobs.py overhead    # 500 files of ten seconds, against encode --jobs 1
    OMP_NUM_THREADS=1 python benchmarks/jobs.py training    # over two groups of torchrun, one of them killed

* kills: of encode over files of a second and files that end the process that reads them. Whatever is at it is killed at
  random moments (processes of a shard and their workers, at work, idle or starting; workers of ray, and its driver);
  what died is begun again with --resume, as Slurm does. In the end all other rows must be there once and equal those of
  one process, and so must all bytes.
* training: two nodes, each a torchrun of one process, on the loopback. The second one is killed after a checkpoint, and
  both are started again: weights and trace must be those of a run that nothing disturbed.
* overhead: each way with one worker, `--files` files less one file, which is its start; the ways in turn. Medians, and
  the median of what a way took more than --jobs 1 did in the same turn: by the clock, and in processor time, which
  other work on the machine changes less (of ray, whose processes are nobody's children, unknown).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovae.cli.progress import print_table

RATE = 16000
POISON = "poison"
STARTING_SECONDS = 5.0  # a younger process has not begun to work


def encode_or_die(prior: Any, item: Any, options: Any) -> dict[str, Any]:
    """What `audiovae encode` does, but for a poisoned file."""
    if item.source.name.startswith(POISON):
        os.kill(os.getpid(), signal.SIGSEGV)
    from audiovae.cli import encode

    return encode.encode(prior, item, options)


def encode_poisoned(arguments: list[str]) -> int:
    """The command line of `audiovae encode`, whose workers meet poisoned files."""
    from audiovae.cli import encode
    from audiovae.cli.main import main

    encode.encode = encode_or_die  # in this process, which works on none
    return main(["encode", *arguments])


def write_files(folder: Path, n_files: int, seconds: float, n_poisoned: int = 0) -> None:
    folder.mkdir()
    for i in range(n_files):
        wave = 0.1 * np.random.default_rng(i).standard_normal(round(seconds * RATE))
        soundfile.write(folder / f"{i:04d}.wav", wave, RATE)
    for i in range(n_poisoned):  # among the others
        (folder / f"{i * n_files // n_poisoned:04d}.wav").rename(folder / f"{POISON}{i}.wav")


def descendants(process: int) -> list[int]:
    found = []
    for threads in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, threads.read_text().split()):
                found += [child, *descendants(child)]
    return found


def kind(process: int, parents: set[int]) -> str | None:
    """What a process is, to be told and to be killed; None for what is not to be."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        begun = int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[19])
    except (OSError, IndexError):
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")
    state = "starting" if age < STARTING_SECONDS else "later"
    if process in parents:
        return f"shard or driver, {state}"
    words = command.split(b"\0")
    if (
        b"spawn_main" in command
        or words[0].startswith((b"ray::_Worker", b"ray::IDLE"))
        or b"default_worker.py" in b"".join(words[1:3])
    ):
        return f"worker, {state}"
    return None


class Killer:
    """Kills one of several processes at random moments, so many times in all."""

    def __init__(self, n_kills: int, mean_seconds: float, generator: random.Random) -> None:
        self.n_left, self._mean, self._generator = n_kills, mean_seconds, generator
        self.killed: Counter[str] = Counter()
        self._draw()

    def _draw(self) -> None:
        self._next = time.monotonic() + self._generator.expovariate(1 / self._mean)
        self._what = "worker" if self._generator.random() < 0.9 else "shard"

    def perhaps(self, parents: set[int]) -> None:
        if not self.n_left or time.monotonic() < self._next:
            return
        everyone = [(p, k) for parent in parents for p in [parent, *descendants(parent)] if (k := kind(p, parents))]
        choice = [(process, what) for process, what in everyone if what.startswith(self._what)]
        if choice:
            victim, what = self._generator.choice(choice)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.n_left -= 1
                self.killed[what] += 1
            self._draw()


def run_through(commands: list[list[str]], killer: Killer, at_once: int) -> int:
    """Run commands to their end, those that die anew with --resume; the number of starts.

    So is a command whose ray did not come up, for which ray itself waits 30 seconds, whatever the machine has to do.
    """
    waiting, n_starts = list(commands), 0
    running: dict[subprocess.Popen[str], list[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                command = waiting.pop(0)
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                running[process] = command
                n_starts += 1
            time.sleep(0.1)
            killer.perhaps({process.pid for process in running})
            for process in [process for process in running if process.poll() is not None]:
                command, (_, errors) = running.pop(process), process.communicate()
                if process.returncode == -signal.SIGKILL or "timed out during startup" in errors:
                    waiting.append(command)
                elif process.returncode not in (0, 1):  # 1: some of its files, the poisoned ones, failed
                    raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{errors}")
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return n_starts


def check(out: Path, reference: Path, expected: list[dict[str, Any]], n_poisoned: int) -> str:
    """Whether all rows are there once, and all bytes are equal; how many rows were written twice."""
    status, rows = told_by(["gather", str(out)])
    good = [{**row, "output": Path(row["output"]).name} for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    assert status == 1
    assert good == expected, "rows differ"
    assert len(failed) == n_poisoned
    assert all(Path(row["file"]).name.startswith(POISON) and "was ended" in row["error"] for row in failed), failed
    made = {path.name: path.read_bytes() for path in out.glob("*.npz")}
    assert made == {path.name: path.read_bytes() for path in reference.glob("*.npz")}, "bytes differ"
    left = [name for name in os.listdir(out) if "partial" in name or name.endswith(".lock")]
    assert not left, left
    n_lines = sum(len(path.read_bytes().splitlines()) - 1 for path in out.glob("rows.*.jsonl"))
    return f"{n_lines - len(good)} rows done twice"


def kills(folder: Path, options: argparse.Namespace) -> list[list[str]]:
    write_files(folder / "in", options.files, 1.0, options.poisoned)
    reference = folder / "reference"
    good = [str(path) for path in sorted((folder / "in").iterdir()) if not path.name.startswith(POISON)]
    _, rows = told_by(["encode", *good, "-o", str(reference)])
    expected = [{**row, "output": Path(row["output"]).name} for row in rows]
    program = [sys.executable, __file__, "encode", str(folder / "in"), "--resume", "--break-lock", "--quiet"]
    ways = {
        "shards, 2 at a time": ([["--shard", f"{i}/{options.shards}"] for i in range(1, options.shards + 1)], 2),
        "ray, 2 workers": ([["--ray", "--jobs", "2"]], 1),
    }
    table = []
    for way in ways:
        if options.way and not way.startswith(options.way):
            continue
        killer = Killer(options.kills, options.seconds, random.Random(options.seed))
        n_rounds, n_starts, notes, began = 0, 0, [], time.monotonic()
        while killer.n_left or not n_rounds:
            out = folder / f"{way[0]}{n_rounds}"
            commands = [[*program, "-o", str(out), *more] for more in ways[way][0]]
            n_starts += run_through(commands, killer, ways[way][1])
            notes.append(check(out, reference, expected, options.poisoned))
            n_rounds += 1
        killed = "; ".join(f"{n} {what}" for what, n in sorted(killer.killed.items()))
        seconds = f"{time.monotonic() - began:.0f}"
        table.append([way, str(killer.killed.total()), killed, str(n_rounds), str(n_starts), seconds, "; ".join(notes)])
    return table


def overhead(folder: Path, options: argparse.Namespace) -> list[list[str]]:
    write_files(folder / "in", options.files, 10.0)
    ways = {"--jobs 1": [], "--shard 1/1": ["--shard", "1/1"], "--ray, one worker": ["--ray"]}
    starts: dict[str, list[float]] = {way: [] for way in ways}
    rests: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    for run in range(options.runs):
        for way, more in ways.items():
            start, whole = (
                timed([str(folder / "in" / name), "-o", str(folder / f"{run}{way}{i}"), *more])
                for i, name in enumerate(("0000.wav", ""))
            )
            starts[way].append(start[0])
            rests[way].append(whole - start)
    table = []
    for way, of_way in rests.items():
        seconds = [rest for rest, _ in of_way]
        clock, processor = 100 * np.median(np.divide(of_way, rests["--jobs 1"]) - 1, axis=0)
        ranges = f"{min(seconds):.2f} to {max(seconds):.2f}"
        more = [f"{clock:+.1f} %", "" if "ray" in way else f"{processor:+.1f} %"]
        table.append([way, f"{statistics.median(starts[way]):.1f}", f"{statistics.median(seconds):.2f}", ranges, *more])
    return table


def training(folder: Path) -> list[list[str]]:
    write_files(folder / "in", 12, 2.0)
    packed = folder / "packed"
    subprocess.run([sys.executable, "-m", "audiovae", "prepare", folder / "in", packed, "--quiet"], check=True)
    train_over_nodes(packed, folder / "whole", None)
    step = train_over_nodes(packed, folder / "killed", folder / "killed" / "training" / "checkpoint.pt")
    train_over_nodes(packed, folder / "killed", None)
    for name in ("model.safetensors", "training/trace.csv"):
        assert (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes(), f"{name} differs"
    return [["two nodes, the second killed", step, "weights and trace are the same"]]


def train_over_nodes(packed: Path, model: Path, kill_after: Path | None) -> str:
    """Train to the end, or kill the second node once a file is there; the last step of the trace."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    words = (
        "--vae.latent_dim 2 --vae.hidden [8] --stft.n_fft 256 --stft.hop_length 64 --training.steps 400 "
        "--training.batch_frames 64 --training.validate_every 100 --training.log_every 10 --nodes 2 --quiet"
    )
    program = ["-m", "audiovae", "train", str(packed), "-o", str(model), *words.split()]
    group = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    nodes = [
        subprocess.Popen(
            [*group, f"--node-rank={i}", "--master-addr=127.0.0.1", f"--master-port={port}", *program],
            stderr=subprocess.DEVNULL,
        )
        for i in (0, 1)
    ]
    try:
        while kill_after is not None and not kill_after.exists():
            assert all(node.poll() is None for node in nodes), "training ended before it could be killed"
            time.sleep(0.02)
        if kill_after is not None:
            for process in [nodes[1].pid, *descendants(nodes[1].pid)]:
                os.kill(process, signal.SIGKILL)
        statuses = [node.wait(300) for node in nodes]
        assert (statuses == [0, 0]) == (kill_after is None), statuses
    finally:
        for node in nodes:
            node.kill()
    return (model / "training" / "trace.csv").read_text().splitlines()[-1].split(",")[0]


def told_by(arguments: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and rows of a command line, in this process."""
    from audiovae.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(io.StringIO()):
        status = main([*arguments, "--json", "--quiet"])
    return status, json.loads(told.getvalue())


def timed(arguments: list[str]) -> np.ndarray:
    """Seconds of audiovae encode by the clock, and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "audiovae", "encode", *arguments, "--quiet"], check=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "overhead", "training"])
    parser.add_argument("--files", type=int, help="200 for kills, 500 for overhead")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--poisoned", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="between two kills, in the mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=["shards", "ray"], help="only this one")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="of overhead")
    options = parser.parse_args()
    options.files = options.files or {"kills": 200, "overhead": 500, "training": 12}[options.what]
    with tempfile.TemporaryDirectory() as place:
        if options.what == "kills":
            headings = ["way", "kills", "of what", "rounds", "starts", "seconds", "found"]
            print_table(headings, kills(Path(place), options), f"{options.poisoned} poisoned of {options.files} files")
        elif options.what == "training":
            print_table(["what", "at step", "found"], training(Path(place)))
        else:
            headings = ["way", "start (s)", "the rest (s)", "range", "over --jobs 1", "in processor time"]
            print_table(headings, overhead(Path(place), options), f"encode, {options.files} files of 10 s, one worker")


if __name__ == "__main__":
    if sys.argv[1:2] == ["encode"]:
        sys.exit(encode_poisoned(sys.argv[2:]))
    main()
