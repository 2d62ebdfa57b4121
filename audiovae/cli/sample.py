"""audiovae sample -o OUT --seconds 5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonargparse

from audiovae.cli import arguments
from audiovae.cli.streams import standard_streams
from audiovae.errors import AudiovaeError
from audiovae.locks import break_lock, locked_file

LONGEST_SECONDS = 1800  # which is made in memory
SAMPLE_LEVEL = 0.05  # RMS of active speech in a well-recorded file


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    arguments.add_output(parser)
    parser.add_argument(
        "--seconds",
        type=jsonargparse.typing.PositiveFloat,
        default=5.0,
        help=f"length of the sound, at most {LONGEST_SECONDS}",
    )
    arguments.add_labels(parser)
    arguments.add_common(parser, "model", "device", "seed")


@standard_streams(".wav")
def run(options: Any) -> int:
    import torch

    from audiovae.audio import Writer
    from audiovae.cli.batch import print_json
    from audiovae.distributions import ComplexNormal
    from audiovae.prior import AudioVAE

    if options.seconds > LONGEST_SECONDS:
        raise AudiovaeError(f"sample: --seconds must be at most {LONGEST_SECONDS}, got {options.seconds:g}")
    target = Path(options.output)
    target = target / "sample.wav" if os.path.isdir(target) or not target.suffix else target
    arguments.refuse_existing(target, options)
    prior = AudioVAE.from_pretrained(options.model, arguments.resolve_device(options.device))
    torch.manual_seed(options.seed)
    n_samples = max(1, round(options.seconds * prior.sample_rate))
    with torch.no_grad():  # x ~ p(x | z), z ~ p(z): a draw of the spectrogram itself, so no phase is to be estimated
        psd = prior.sample(prior.stft.n_frames(n_samples), arguments.condition(prior, options))
        wave = SAMPLE_LEVEL * prior.stft.inverse(ComplexNormal(psd).sample(), n_samples)
    if options.break_lock:
        break_lock(target)
    with locked_file(target), Writer(target, prior.sample_rate, 1, n_samples) as writer:
        writer.write(wave[None].numpy(force=True))
    result = {
        "output": str(target),
        **arguments.report_peak(writer, options.quiet),
    }
    options.rows = [result]
    if options.json:
        print_json(result)
    return 0
