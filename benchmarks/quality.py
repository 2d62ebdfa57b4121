"""Resynthesis and bound of priors on the recordings of named speakers, with the wave from the posterior mean and from a sample.

    OMP_NUM_THREADS=1 python benchmarks/quality.py LIBRISPEECH_FOLDER SPEAKERS_FILE MODEL... [--json FILE]

The table that the README and the recipes quote; 95 % intervals over files by Student's t, seed 0 for every file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from audiovae import AudioVAE
from audiovae.cli.progress import bar, print_table
from audiovae.metrics import UNITS, evaluate_file, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("speakers", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speakers = set(options.speakers.read_text().split())
    files = sorted(file for file in options.folder.rglob("*.flac") if file.parts[-3] in speakers)
    results = {}
    with bar(2 * len(files) * len(options.models)) as advance:
        for model in options.models:
            prior = AudioVAE.from_pretrained(model)
            for choice in ("mean", "sample"):
                scores = []
                for file in files:
                    torch.manual_seed(0)
                    scores.append(evaluate_file(prior, file, latents=choice))
                    advance()
                results[f"{Path(model).name}, {choice} z"] = scores
    summaries = {name: summarise([score.values for score in scores]) for name, scores in results.items()}
    metrics = [metric for metric in UNITS if any(metric in summary for summary in summaries.values())]
    rows = [[name, *(str(summary.get(metric, "-")) for metric in metrics)] for name, summary in summaries.items()]
    print_table(["model", *metrics], rows, f"{len(files)} recordings of {len(speakers)} speakers, original phase, bound with sampled z")
    if options.json:
        rows_by_model = {
            name: [{"file": file.name, **s.values} for file, s in zip(files, scores, strict=True)] for name, scores in results.items()
        }
        options.json.write_text(json.dumps(rows_by_model, indent=1))


if __name__ == "__main__":
    main()
