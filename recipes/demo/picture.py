"""The picture of the README: a noisy recording, its speech, and what the decoder says of that speech.

python recipes/demo/picture.py NOISY.wav recipes/demo/picture.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from audiovae import AudioVAE
from audiovae.report.plots import RANGE_DB, decibels
from audiovae.separation import enhancer, first_block
from audiovae.stft import power

SHOWN_DB = 60.0
PRIOR = "speech-16k-separation"


def main(noisy: Path, target: Path) -> None:
    prior = AudioVAE.from_pretrained(PRIOR)
    first = first_block(enhancer(prior), noisy)
    names = ("noisy: |x|²", "audiovae enhance: |s|²", "the decoder's PSD: g c v(z)")
    powers = [power(first.spectrogram), power(first.separation.images[0]), first.separation.psds[0].unsqueeze(-1)]
    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    seconds = (len(powers[0]) - 1) * prior.stft.hop_length / prior.sample_rate
    for axis, name, values in zip(axes, names, decibels([values.mean(-1) for values in powers]), strict=True):
        extent = (0.0, seconds, 0.0, prior.sample_rate / 2000)
        image = axis.imshow(
            values.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-min(SHOWN_DB, RANGE_DB), vmax=0
        )
        axis.set(title=name, xlabel="time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=list(axes), label="dB re loudest bin", pad=0.01)
    figure.savefig(target, dpi=100)
    drawn = Image.open(target).convert("RGB")
    drawn.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
