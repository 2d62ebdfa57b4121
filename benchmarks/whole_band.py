"""What `enhance` does above the prior's highest frequency: recordings of 44.1 or 48 kHz in pink, rain's and the sea's
noise.

    OMP_NUM_THREADS=1 python benchmarks/whole_band.py SPEECH NOISE [--seconds 8] [--pattern '3*'] [--out DIR]

SPEECH is a folder of sound files, NOISE one with the folders `rain` and `sea-waves`, such as those of ESC-10. The noise
is scaled to SNRs of 0, 5 and 10 dB inside the band above 8 kHz, and is added to the whole. Tells, for every noise and
SNR, SI-SDR inside this band of the input and of the speech, the least improvement of any recording, the energy there
beside that of the clean speech, how far below the output its change below 7 kHz is, and how much longer it takes, both
against an enhancement that leaves the band out. Writes DIR/whole_band.md.

The constants of `audiovae.separation.upper_band` were chosen with `klettres-data` (he, ar, de, hu, ru, cs), voices of
espeak-ng, which have no noise of their own, and folds 1 and 2 of ESC-10, so that `alsa-utils` (without its Noise.wav)
and fold 3 are free for results.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import AudioVAE, audio
from audiovae.metrics import si_sdr
from audiovae.separation import METHODS, Separator, enhance_file, enhancer, files

SNRS_DB = (0, 5, 10)
NOISES = ("pink", "rain", "sea-waves")
BELOW_HZ, ABOVE_HZ = 7000, 8000

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One recording. Levels in dB, seconds of one enhancement with the band and one without it."""

    before: float
    after: float
    energy: float
    change_below: float
    seconds: float
    seconds_without: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("noise", type=Path)
    parser.add_argument("--seconds", type=float, help="join each folder's files, in an order of chance, to so much")
    parser.add_argument("--pattern", default="*", help="of the names of noises")
    parser.add_argument("--method", choices=METHODS, default="peem")
    parser.add_argument("--out", type=Path, default=Path("whole_band"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = enhancer(AudioVAE.from_pretrained(METHODS[options.method].prior), options.method)
    recordings = speech(options.speech, options.seconds)
    lines = [
        "| noise | SNR | in | out | least gain | energy | change below | time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measured(run, recordings[0][0], recordings[0][0], recordings[0][1], Path(folder))  # the first call is slower
        for kind in NOISES:
            for snr in SNRS_DB:
                rows = []
                for i, (clean, rate) in enumerate(recordings):
                    noise = noise_of(kind, clean.size, rate, options.noise, options.pattern, i)
                    scale = np.sqrt(energy_above(clean, rate) / energy_above(noise, rate) / 10 ** (snr / 10))
                    rows.append(measured(run, clean, clean + np.float32(scale) * noise, rate, Path(folder)))
                lines.append(line(kind, snr, rows))
                print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "whole_band.md").write_text("\n".join(lines) + "\n")


def line(kind: str, snr: int, rows: list[Row]) -> str:
    mean = {name: np.mean([getattr(row, name) for row in rows]) for name in ("before", "after", "energy")}
    least = min(row.after - row.before for row in rows)
    longer = sum(row.seconds for row in rows) / sum(row.seconds_without for row in rows) - 1
    change = max(row.change_below for row in rows)
    return (
        f"| {kind} | {snr} | {mean['before']:.1f} | {mean['after']:.1f} | {least:+.1f} | {mean['energy']:+.1f} | "
        f"{change:.0f} | {100 * longer:+.0f} % |"
    )


def speech(folder: Path, seconds: float | None) -> list[tuple[Wave, int]]:
    """Of one channel each, in an order of chance that is always the same."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    waves = [(path, *audio.read(path)) for path in paths]
    whole = [(path.relative_to(folder).parts[0], wave.mean(0), info.sample_rate) for path, wave, info in waves]
    whole = [(name, wave, rate) for name, wave, rate in whole if rate > 2 * ABOVE_HZ]
    if seconds is None:
        return [(wave, rate) for _, wave, rate in whole]
    found: dict[str, list[tuple[Wave, int]]] = {}
    for i in np.random.default_rng(1).permutation(len(whole)):
        name, wave, rate = whole[i]
        found.setdefault(name if (folder / name).is_dir() else "", []).append((wave, rate))
    joined = [
        (np.concatenate([faded(wave, rate, 0.01) for wave, rate in parts]), parts[0][1]) for parts in found.values()
    ]
    return [(faded(wave[: round(seconds * rate)], rate, 0.01), rate) for wave, rate in joined]


def faded(wave: Wave, rate: int, seconds: float) -> Wave:
    """In at its beginning and out at its end: no click where it is cut."""
    from_end = np.minimum(np.arange(len(wave)), np.arange(len(wave))[::-1])
    return wave * np.minimum(1, from_end / (seconds * rate)).astype(np.float32)


def noise_of(kind: str, n_samples: int, rate: int, folder: Path, pattern: str, i: int) -> Wave:
    rng = np.random.default_rng(i)
    if kind == "pink":
        spectrum = np.fft.rfft(rng.standard_normal(n_samples))
        return np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), n_samples).astype(np.float32)
    paths = sorted((folder / kind).glob(pattern))
    wave, info = audio.read(paths[rng.integers(len(paths))])
    there = audio.resample(wave.mean(0), info.sample_rate, rate)
    start = rng.integers(max(1, len(there) - n_samples + 1))
    return np.resize(np.concatenate([there[start:], there[::-1]]), n_samples)  # back where it ends


def measured(run: Separator, clean: Wave, noisy: Wave, rate: int, folder: Path) -> Row:
    with audio.Writer(folder / "noisy.wav", rate, 1, noisy.size) as writer:
        writer.write(noisy[None] / 4)
    seconds, outputs = [], []
    reaches_above = files.reaches_above
    for reaches in (reaches_above, lambda recording: False):
        files.reaches_above = reaches
        start = time.process_time()
        enhance_file(run, folder / "noisy.wav", folder / "speech.wav")
        seconds.append(time.process_time() - start)
        outputs.append(4 * audio.read(folder / "speech.wav")[0][0])
    files.reaches_above = reaches_above
    whole, without = outputs
    truth = cut(clean, rate, ABOVE_HZ)
    before, after = (float(si_sdr(truth, cut(wave, rate, ABOVE_HZ))) for wave in (noisy, whole))
    inside = (faded(wave, rate, 0.05) for wave in (without, whole - without))
    below, below_change = (cut(wave, rate, 50, BELOW_HZ) for wave in inside)
    return Row(before, after, level(cut(whole, rate, ABOVE_HZ), truth), level(below_change, below), *seconds)


def cut(wave: Wave, rate: int, lowest: float, highest: float = np.inf) -> Wave:
    """What lies between two frequencies."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    hz = np.fft.rfftfreq(len(wave), 1 / rate)
    return np.fft.irfft(np.where((hz >= lowest) & (hz < highest), spectrum, 0), len(wave))


def energy_above(wave: Wave, rate: int) -> float:
    return float(np.square(cut(wave, rate, ABOVE_HZ)).sum())


def level(wave: Wave, other: Wave) -> float:
    """Of a wave beside another, in dB."""
    return float(10 * np.log10(np.square(wave).sum() / np.square(other).sum()))


if __name__ == "__main__":
    main()
