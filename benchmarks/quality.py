"""Resynthesis and bound of priors on the recordings of named speakers, with the wave from the posterior mean and from a
sample.

    OMP_NUM_THREADS=1 python benchmarks/quality.py LIBRISPEECH_FOLDER SPEAKERS_FILE MODEL... [--samples 100] [--json
    FILE]

The table that the README and the recipes quote; 95 % intervals over files by Student's t, seed 0 for every file. A
model that
needs past x has two pairs of rows: resynthesised from its latents, on its own past, and teacher-forced, which is
prediction.
Their bounds are the same: that of the density, which is given the true past.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from audiovae import METRICS, AudioVAE, evaluate_file, summarise
from audiovae.cli.progress import bar, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("speakers", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument(
        "--samples", type=int, default=1, help="above 1: also the importance-weighted bound of so many samples"
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        choices=["mean", "sample"],
        default=["mean", "sample"],
        help="latents that waves are decoded from",
    )
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speakers = set(options.speakers.read_text().split())
    files = sorted(file for file in options.folder.rglob("*.flac") if file.parts[-3] in speakers)
    results = {}
    priors = {Path(model).name: AudioVAE.from_pretrained(model) for model in options.models}
    ways = [
        (name, prior, choice, forced)
        for name, prior in priors.items()
        for forced in ([False, True] if prior.vae.needs_past else [False])
        for choice in options.choices
    ]
    with bar(len(ways) * len(files)) as advance:
        for name, prior, choice, forced in ways:
            scores = []
            n_samples = options.samples if choice == options.choices[0] and not forced else 1  # once for each model
            for file in files:
                torch.manual_seed(0)
                scores.append(evaluate_file(prior, file, latents=choice, n_samples=n_samples, teacher_forcing=forced))
                advance()
            results[f"{name}, {choice} z" + (", teacher-forced" if forced else "")] = scores
    summaries = {name: summarise([score.values for score in scores]) for name, scores in results.items()}
    metrics = [metric for metric in METRICS if any(metric in summary for summary in summaries.values())]
    rows = [[name, *(str(summary.get(metric, "-")) for metric in metrics)] for name, summary in summaries.items()]
    title = f"{len(files)} recordings of {len(speakers)} speakers, original phase, bound with sampled z"
    print_table(["model", *(METRICS[metric].heading for metric in metrics)], rows, title)
    if options.json:
        rows_by_model = {
            name: [{"file": file.name, **s.values} for file, s in zip(files, scores, strict=True)]
            for name, scores in results.items()
        }
        options.json.write_text(json.dumps(rows_by_model, indent=1))


if __name__ == "__main__":
    main()
