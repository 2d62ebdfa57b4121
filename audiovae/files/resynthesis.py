"""Sound files through encoder and decoder of a prior."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from audiovae.audio import Writer
from audiovae.files.recording import Recording
from audiovae.files.stretch import stretches
from audiovae.phase import StreamingGriffinLim
from audiovae.prior import AudioVAE, LatentChoice, Phase, check_choice
from audiovae.stft import StreamingSynthesis


@torch.no_grad()
def resynthesize_file(
    prior: AudioVAE,
    source: str | Path,
    target: str | Path,
    phase: Phase = "original",
    latents: LatentChoice = "mean",
    condition: Tensor | None = None,
) -> Writer:
    """Write the resynthesis of a sound file, with its rate, length and channels; see `AudioVAE.resynthesize`.

    It lacks what lies above the prior's highest frequency.

    Returns:
        the closed writer, which knows the peak.

    Raises:
        AudioError: the source cannot be read, or the target not be written.
    """
    check_choice(latents)
    recording = Recording.open(prior.front, source)

    def frames() -> Iterator[Tensor]:
        for stretch in stretches((block.spectrogram for block in recording.blocks()), prior.vae.context):
            z = prior.vae.infer(prior.vae.observed(stretch.frames), condition, mean=latents == "mean").latents
            magnitude = prior.psd(z, condition).sqrt()[:, stretch.kept]
            yield magnitude * torch.sgn(stretch.frames[:, stretch.kept]) if phase == "original" else magnitude

    synthesis = StreamingSynthesis(prior.stft) if phase == "original" else StreamingGriffinLim(prior.stft)
    return recording.write(target, frames(), synthesis)
