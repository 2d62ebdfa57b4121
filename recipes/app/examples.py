"""The three examples of `audiovae app`: sentences of our own, spoken by espeak-ng, in noise that is made by code.

python recipes/app/examples.py audiovae/app/examples
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, sosfilt

from audiovae import resample, speak_corpus

RATE, SECONDS = 16000, 3.8
LEVEL = 0.05  # RMS of what comes out
VORBIS_QUALITY = 0.45  # from 0, the best, to 1

SENTENCES = (
    "The early train to the coast leaves at nine.",
    "Please leave the window open, it is warm tonight.",
    "We will meet by the old bridge after lunch.",
    "Somebody has to water the plants on the balcony.",
    "My sister sings in a choir on Thursday evenings.",
    "The bakery on the corner opens before six.",
)

Wave = NDArray[np.float64]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as corpus:
        voices = speak_corpus(corpus, 2, SENTENCES)
        spoken = {voice: [heard(Path(corpus) / voice / f"0{i}.wav") for i in range(2)] for voice in voices}
    talkers = [spoken[voice][1] for voice in ("en-us-m1", "en-us-f3", "en-gb-scotland-f1", "en-gb-x-rp-m5")]
    talkers += [spoken[voice][1] for voice in ("en-us-m7", "en-gb-scotland-m2", "en-gb-x-rp-f4", "en-us-f5")]
    for name, voice, noise, snr_db in (
        ("rain", "en-us-m3", rain(random), 5.0),
        ("hum", "en-us-f4", hum(random), 0.0),
        ("babble", "en-gb-scotland-m6", babble(talkers, random), 6.0),
    ):
        noisy = at_snr(spoken[voice][0], noise, snr_db)
        path = folder / f"speech-in-{name}.ogg"
        soundfile.write(
            path, LEVEL * noisy / rms(noisy), RATE, format="OGG", subtype="VORBIS", compression_level=VORBIS_QUALITY
        )
        print(f"{path}: {voice}, {snr_db:g} dB, {path.stat().st_size / 1000:.0f} kB")


def heard(path: Path) -> Wave:
    """A sentence in the middle of as much silence as makes it `SECONDS` long."""
    wave, rate = soundfile.read(path, dtype="float32")
    wave = resample(wave, rate, RATE)[: round(SECONDS * RATE)].astype(float)
    rest = round(SECONDS * RATE) - len(wave)
    return np.pad(wave, (rest // 2, rest - rest // 2))


def rain(random: np.random.Generator) -> Wave:
    """A hiss without its lows, and drops: short tones that ring out."""
    n = round(SECONDS * RATE)
    hiss = sosfilt(butter(2, (400, 7000), "bandpass", fs=RATE, output="sos"), random.standard_normal(n))
    drops = np.zeros(n)
    seconds = np.arange(round(0.02 * RATE)) / RATE
    for start in random.integers(0, n - len(seconds), 400):
        pitch_hz, loudness = random.uniform(800, 5000), random.exponential()
        drops[start : start + len(seconds)] += (
            loudness * np.sin(2 * np.pi * pitch_hz * seconds) * np.exp(-300 * seconds)
        )
    return hiss / rms(hiss) + drops / rms(drops)


def hum(random: np.random.Generator) -> Wave:
    """A mains hum with its harmonics, a tone that beats, and a faint hiss."""
    seconds = np.arange(round(SECONDS * RATE)) / RATE
    mains = sum(np.sin(2 * np.pi * 50 * k * seconds + k * k) / k for k in range(1, 30))
    tone = 0.5 * np.sin(2 * np.pi * 1180 * seconds) * (1 + 0.3 * np.sin(2 * np.pi * 1.5 * seconds))
    return mains + tone + 0.1 * lfilter([1.0], [1.0, -0.7], random.standard_normal(len(seconds)))


def babble(talkers: list[Wave], random: np.random.Generator) -> Wave:
    """Many who speak at the same time, each from another moment on."""
    return sum(np.roll(wave, random.integers(len(wave))) / rms(wave) for wave in talkers)  # type: ignore[return-value]


def at_snr(speech: Wave, noise: Wave, snr_db: float) -> Wave:
    return speech + noise * 10 ** (-snr_db / 20) * rms(speech) / rms(noise)


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
