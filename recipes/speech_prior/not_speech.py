"""What tells sound that is not speech: bound, KL and resynthesis of kinds of sound by models of clean speech.

    python recipes/speech_prior/not_speech.py MODEL... --speech FILE... --noisy FILE... --noise FILE... --music FILE...
        -o kinds.json

Eight seconds from the middle of each file, mono, trimmed, unit RMS; tones and chords are made here. Prints a table for
each model and writes them as JSON, for `ship.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from audiovae import AudioVAE, active_level, resample, si_sdr
from audiovae.evaluation import bound
from audiovae.metrics import normalise

SECONDS = 8.0
KINDS = {
    "speech": "clean speech",
    "noisy": "noisy speech",
    "noise": "noise",
    "music": "music",
    "tones": "tones",
    "chords": "chords",
}
HEADS = ("sound", "files", "NLL + KL", "KL", "SI-SDR (dB)", "NLL + KL higher", "KL higher", "SI-SDR lower")

Wave = NDArray[np.float32]


def excerpt(path: str, rate: int) -> Wave:
    """`[1, sample]` from the middle of a file."""
    info = soundfile.info(path)
    length = min(info.frames, round(SECONDS * info.samplerate))
    start = (info.frames - length) // 2
    wave, _ = soundfile.read(path, frames=length, start=start, dtype="float32", always_2d=True)
    return resample(np.ascontiguousarray(wave.mean(axis=1, keepdims=True).T), info.samplerate, rate)


def tones(rate: int) -> list[Wave]:
    """Of 220, 440 and 1000 Hz, with noise 50 dB below."""
    return [_over_noise(np.sin(2 * np.pi * hz * _time(rate)), seed) for seed, hz in enumerate((220, 440, 1000))]


def chords(rate: int) -> list[Wave]:
    """Three notes of eight harmonics each, struck twice a second, with noise 50 dB below."""
    time, found = _time(rate), []
    for seed, root_hz in enumerate((110, 165, 220)):
        notes = [root_hz * ratio for ratio in (1, 5 / 4, 3 / 2)]
        sustained = sum(np.sin(2 * np.pi * hz * k * time) / k for hz in notes for k in range(1, 9))
        found.append(_over_noise(sustained * np.exp(-4 * (time % 0.5)), 3 + seed))
    return found


def _time(rate: int) -> NDArray[np.float64]:
    return np.arange(round(SECONDS * rate)) / rate


def _over_noise(wave: NDArray[np.float64], seed: int) -> Wave:
    noise = np.random.default_rng(seed).standard_normal(len(wave))
    return (wave + 10 ** (-50 / 20) * wave.std() * noise)[None].astype(np.float32)


@torch.no_grad()
def measured(prior: AudioVAE, wave: Wave) -> tuple[float, float, float]:
    """NLL + KL and KL in nats per frame; SI-SDR of the resynthesis with the original phase in dB."""
    whole = normalise(wave, prior.sample_rate)
    terms = bound(prior, whole)
    again = prior.resynthesize(whole, level=active_level(whole, prior.sample_rate))
    return terms["bound"], terms["kl"], si_sdr(whole[0], again[0])


def higher(values: Sequence[float], of_speech: Sequence[float]) -> float:
    """Share of the pairs of a sound and a recording of speech in which the sound has the higher value."""
    return float((np.array(values)[:, None] > np.array(of_speech)).mean())


def rows(prior: AudioVAE, sounds: dict[str, list[Wave]]) -> list[list[str]]:
    torch.manual_seed(0)
    values = {
        kind: list(zip(*(measured(prior, wave) for wave in waves), strict=True)) for kind, waves in sounds.items()
    }
    speech = values["speech"]
    found = []
    for kind, (bounds, kls, sdrs) in values.items():
        spread = [
            f"{np.median(v):.{n}f} ({min(v):.{n}f} to {max(v):.{n}f})" for v, n in ((bounds, 0), (kls, 1), (sdrs, 1))
        ]
        shares = (higher(bounds, speech[0]), higher(kls, speech[1]), 1 - higher(sdrs, speech[2]))
        told = ["", "", ""] if kind == "speech" else [f"{share:.2f}" for share in shares]
        found.append([KINDS[kind], str(len(bounds)), *spread, *told])
    return found


def table(found: Sequence[Sequence[str]]) -> str:
    rules = ["---", *["---:"] * (len(HEADS) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEADS, rules, *found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    for kind in ("speech", "noisy", "noise", "music"):
        parser.add_argument(f"--{kind}", nargs="+", required=True, metavar="FILE", help=KINDS[kind])
    parser.add_argument("-o", "--output", type=Path, default=Path("kinds.json"))
    options = parser.parse_args()
    found = {}
    for name in options.models:
        prior = AudioVAE.from_pretrained(name)
        rate = prior.sample_rate
        given = ("speech", "noisy", "noise", "music")
        sounds = {kind: [excerpt(path, rate) for path in getattr(options, kind)] for kind in given}
        found[Path(name).name] = rows(prior, {**sounds, "tones": tones(rate), "chords": chords(rate)})
        print(f"\n{name}\n\n{table(found[Path(name).name])}", flush=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
