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
from audiovae.separation import enhancer, first_block

SHOWN_DB = 60.0
PRIOR = "speech-16k-separation"


@torch.no_grad()
def main(noisy: Path, target: Path) -> None:
    prior = AudioVAE.from_pretrained(PRIOR)
    first = first_block(enhancer(prior), noisy)
    names = ("noisy: |x|²", "audiovae enhance: |s|²", "the decoder's PSD: g c v(z)")
    spectrograms = (first.spectrogram, first.separation.images[0])
    powers = [*(x.abs().square().mean(-1) for x in spectrograms), first.separation.psds[0]]
    loudest = max(float(values.max()) for values in powers)
    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    seconds = (len(powers[0]) - 1) * prior.stft.hop_length / prior.sample_rate
    for axis, name, values in zip(axes, names, powers, strict=True):
        extent = (0.0, seconds, 0.0, prior.sample_rate / 2000)
        values_db = 10 * torch.log10(values / loudest).clamp(min=-SHOWN_DB)
        image = axis.imshow(
            values_db.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-SHOWN_DB, vmax=0
        )
        axis.set(title=name, xlabel="time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=list(axes), label="dB re loudest bin", pad=0.01)
    figure.savefig(target, dpi=100)
    drawn = Image.open(target).convert("RGB")
    drawn.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
