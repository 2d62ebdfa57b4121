"""Write the recordings of the Free Spoken Digit Dataset as words of one length, so that the end of a word is part of
what is heard.

    python recipes/spoken_digits/words.py RECORDINGS WORDS [--seconds 1.04] [--before 0] [--speeds 0.9 1.1]

Every word is at unit level over noise of the level of its own quietest frames; of a longer recording the loudest
stretch stays. `--before` puts up to so many seconds of that noise ahead (a segment of fixed length then begins anywhere
in it). Training words (all but index 0-7) are written at each of the other speeds too, into a folder of their own.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from audiovae import active_level, audio

_QUIET_PERCENTILE, _FRAME, _HOP = 5, 256, 64
_PEAK = 0.02  # a word at unit level peaks far above 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("words", type=Path)
    parser.add_argument("--seconds", type=float, default=1.04)
    parser.add_argument("--before", type=float, default=0.0)
    parser.add_argument("--speeds", type=float, nargs="*", default=[])
    options = parser.parse_args()
    random = np.random.default_rng(0)
    for path in sorted(options.recordings.glob("*.wav")):
        match = re.fullmatch(r"\d_[a-z]+_(\d+)", path.stem)
        if match is None:
            continue
        wave, info = audio.read(path)
        for speed in [1.0, *(options.speeds if int(match[1]) >= 8 else [])]:
            faster = audio.resample(wave[0], round(speed * info.sample_rate), info.sample_rate)
            word = place(
                faster, round(options.seconds * info.sample_rate), round(options.before * info.sample_rate), random
            )
            folder = options.words / f"speed{speed:g}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / path.name, _PEAK * word, info.sample_rate, subtype="FLOAT")


def place(wave: NDArray[np.float32], n_samples: int, n_before: int, random: np.random.Generator) -> NDArray[np.float32]:
    """The word at unit level, `n_before` samples into noise, `n_before + n_samples` in all."""
    wave = wave / np.float32(active_level(wave, 8000))
    if len(wave) > n_samples:
        energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
        start = int(np.argmax(energy[n_samples:] - energy[:-n_samples]))
        wave = wave[start : start + n_samples]
    frames = np.lib.stride_tricks.sliding_window_view(wave, _FRAME)[::_HOP]
    floor = max(float(np.percentile(np.sqrt(np.square(frames).mean(1)), _QUIET_PERCENTILE)), 1e-4)
    word = (floor * random.standard_normal(n_before + n_samples)).astype(np.float32)
    word[n_before : n_before + len(wave)] = wave
    return word


if __name__ == "__main__":
    main()
