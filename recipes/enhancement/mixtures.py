"""Noisy speech to choose options on: tuning speakers of the speech prior, with ESC-10 noise and the babble of training
speakers.

    python recipes/enhancement/mixtures.py LIBRISPEECH ESC10 OUT

Writes OUT/clean and OUT/noisy, 24 pairs of 4.5 s at 16 kHz, at 2.5 to 17.5 dB of the speech's active frames; every
noise is tilted by 3 to 9 dB per octave, as most of what surrounds speakers is louder at low frequencies. What is below
60 Hz in the clean recordings is
left out: some rumble there, louder than they speak.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import librosa
import numpy as np
import soundfile
from numpy.typing import NDArray

from audiovae import active_level

RATE, N_SAMPLES = 16000, 72000
SNRS_DB = (2.5, 7.5, 12.5, 17.5)
NOISES = (
    "rain", "sea-waves", "clock-tick", "helicopter", "chainsaw", "fire-crackling", "babble 4", "babble 8", "babble 16",
    "babble 8 + rain", "babble 8 + helicopter", "babble 8 + sea-waves",
)  # fmt: skip
LEVEL = 0.05
HUMS = {"445"}  # a speaker whose recording hums as loudly as some of the noise here
PRIOR = Path(__file__).parents[1] / "speech_prior"

Wave = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("librispeech", type=Path)
    parser.add_argument("esc10", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(5)
    files = {path.parent.parent.name: path for path in sorted(options.librispeech.rglob("*.flac"))}
    tuning, validation = ((PRIOR / f"{name}_speakers.txt").read_text().split() for name in ("tuning", "validation"))
    training = [speaker for speaker in files if speaker not in {*tuning, *validation}]
    speakers = [speaker for speaker in tuning if speaker not in HUMS]
    for folder in ("clean", "noisy"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for i in range(2 * len(NOISES)):
        speaker, kind, snr_db = (
            speakers[i % len(speakers)],
            NOISES[i % len(NOISES)],
            SNRS_DB[(i + i // len(NOISES)) % len(SNRS_DB)],
        )
        whole = read(files[speaker])
        start = 0 if i < len(speakers) else len(whole) - N_SAMPLES
        clean = whole[max(0, start) :][:N_SAMPLES]
        clean = without_rumble(np.pad(clean, (0, N_SAMPLES - len(clean))))
        clean *= LEVEL / active_level(clean, RATE)
        noisy = clean + LEVEL * 10 ** (-snr_db / 20) * noise(kind, files, training, options.esc10, rng)
        name = f"{i:02d}_{speaker}_{kind.replace(' ', '')}_{snr_db}.wav"
        soundfile.write(options.out / "clean" / name, clean, RATE, "FLOAT")
        soundfile.write(options.out / "noisy" / name, noisy, RATE, "FLOAT")


def without_rumble(wave: Wave) -> Wave:
    """The wave above 60 Hz."""
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / RATE) < 60] = 0
    return np.fft.irfft(spectrum, len(wave))


def noise(kind: str, files: dict[str, Path], speakers: list[str], esc10: Path, rng: np.random.Generator) -> Wave:
    """A tilted noise of unit RMS."""
    total = np.zeros(N_SAMPLES)
    for part in kind.split(" + "):
        total += (
            babble(files, speakers, int(part.split()[1]), rng)
            if part.startswith("babble")
            else environment(esc10 / part, rng)
        )
    spectrum = np.fft.rfft(total)
    frequency = np.fft.rfftfreq(N_SAMPLES, 1 / RATE)
    slope = rng.uniform(3, 9) / (20 * np.log10(2))
    return unit(np.fft.irfft(spectrum * (np.maximum(frequency, 60) / 60) ** -slope, N_SAMPLES))


def babble(files: dict[str, Path], speakers: list[str], n_speakers: int, rng: np.random.Generator) -> Wave:
    """Speakers at one level, each in a room that dies away in a third of a second."""
    total = np.zeros(N_SAMPLES)
    for speaker in rng.choice(speakers, n_speakers, replace=False):
        wave = read(files[speaker])
        wave = np.tile(wave, 1 + N_SAMPLES // len(wave))
        start = rng.integers(len(wave) - N_SAMPLES + 1)
        room = np.exp(-np.arange(4800) / (0.05 * RATE)) * rng.standard_normal(4800)
        room[0] += 3
        total += unit(np.convolve(wave[start : start + N_SAMPLES], room)[:N_SAMPLES])
    return unit(total)


def environment(folder: Path, rng: np.random.Generator) -> Wave:
    """A recording of a class, begun again where it is too short; silent ones are passed over."""
    found = sorted(folder.glob("*.ogg"))
    while True:
        wave, _ = librosa.load(found[rng.integers(len(found))], sr=RATE, mono=True, dtype=np.float64)
        wave = np.tile(wave, 2)[:N_SAMPLES]
        if np.square(wave).mean() > 1e-7:
            return unit(wave)


def read(path: Path) -> Wave:
    return soundfile.read(path)[0]


def unit(wave: Wave) -> Wave:
    return wave / np.sqrt(np.square(wave).mean())


if __name__ == "__main__":
    main()
