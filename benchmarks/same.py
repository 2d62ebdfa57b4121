"""Do two trees of this project compute the same? By hand, between changes of shape; the trees are git worktrees.

    python benchmarks/same.py OLD NEW [--only REGEX]     # one table; exit status 1 where a case is off
    python benchmarks/same.py OLD NEW --speed            # seconds of new over old, medians of 10 alternating pairs

Each tree runs in a process of its own on one thread, by same_cases.py beside this script: call that of the newer
one. Nothing is stored, for bytes depend on the processor. Cases:

* float64: Wiener gains to 1e-8, all methods by all noises; batches of two of which one stops early, labels tried,
  silence; a stereo file of three blocks (written in float32: 1e-6).
* float32 to 1e-3, but mcem and mala (another order of a sum moves an acceptance) and bfloat16 by SI-SDR to 0.05 dB.
* Bit for bit: weights and trace of 200 steps of fit; the files of resynthesize, encode and decode.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from same_cases import SPEED, Outputs, chosen

CASES = str(Path(__file__).with_name("same_cases.py"))
PAIRS = 10


def start(tree: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A process of same_cases.py that imports the package from `tree`."""
    if not (tree / "audiovae" / "__init__.py").exists():
        sys.exit(f"{tree} holds no audiovae; give the folder of a worktree")
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, CASES, *arguments], env=environment, text=True, **options)


def read_outputs(path: Path) -> Outputs:
    """What a case gave; where it failed, the reason alone."""
    if path.exists():
        with np.load(path) as arrays:
            return dict(arrays)
    reason = path.with_suffix(".txt")
    return {"failed": reason.read_text().strip().splitlines()[-1] if reason.exists() else "its process died"}


def difference(old: Outputs, new: Outputs) -> float:
    """The largest one; infinite where shapes, types, or places without a number differ."""
    if old.keys() != new.keys() or "failed" in old:
        return math.inf
    if "clean" in old:
        return abs(si_sdr(old["speech"], old["clean"]) - si_sdr(new["speech"], old["clean"]))
    largest = 0.0
    for a, b in ((old[name], new[name]) for name in old):
        if (a.shape, a.dtype) != (b.shape, b.dtype) or (np.isnan(a) != np.isnan(b)).any():
            return math.inf
        wide = np.result_type(a, np.float64)
        largest = max(largest, float(np.nan_to_num(np.abs(b.astype(wide) - a.astype(wide))).max(initial=0.0)))
    return largest


def si_sdr(estimate: Any, clean: Any) -> float:
    target = clean * (estimate @ clean) / (clean @ clean)
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


def compare(trees: dict[str, Path], only: str) -> bool:
    """Run both trees, print the table; did all cases hold?"""
    with tempfile.TemporaryDirectory() as place:
        for side, tree in trees.items():
            (Path(place) / side).mkdir()
            begin = time.perf_counter()
            start(tree, "--run", str(Path(place) / side), only).wait()
            print(f"{side}: {tree}, {time.perf_counter() - begin:.0f} s", flush=True)
        results = []
        for i, case in enumerate(chosen(only)):
            outputs = {side: read_outputs(Path(place) / side / f"{i}.npz") for side in trees}
            largest = difference(*outputs.values())
            results.append(largest <= case.tolerance)
            verdict = "ok" if results[-1] else "OFF"
            reasons = [f"{side}: {found['failed']}" for side, found in outputs.items() if "failed" in found]
            print(f"{case.name:40} {largest:8.2g} of {case.tolerance:6.0e} {verdict:3} {'; '.join(reasons)}")
    print(f"{sum(results)} of {len(results)} cases are the same")
    return bool(results) and all(results)


def speed(trees: dict[str, Path], only: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        children = []
        for side, tree in trees.items():
            (Path(place) / side).mkdir()
            child = start(tree, "--serve", str(Path(place) / side), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            children.append(child)

        def seconds(child: Any, job: str) -> float:
            print(job, file=child.stdin, flush=True)
            return float(child.stdout.readline())

        for job in (job for job in SPEED if re.search(only, job)):
            times = []
            for i in range(1 + PAIRS):  # the first is the warm-up; which tree begins alternates
                pair = {child.pid: seconds(child, job) for child in (children if i % 2 else children[::-1])}
                times.append([pair[child.pid] for child in children])
            ratios = sorted(new / old for old, new in times[1:])
            spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(f"{job:20} {statistics.median(old for old, _ in times[1:]):7.3f} s, new / old {spread}", flush=True)
        for child in children:
            child.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this regular expression")
    parser.add_argument("--speed", action="store_true", help="compare seconds instead")
    options = parser.parse_args()
    trees = {"old": options.old, "new": options.new}
    if options.speed:
        speed(trees, options.only)
    elif not compare(trees, options.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
