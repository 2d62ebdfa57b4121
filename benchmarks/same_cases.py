"""What benchmarks/same.py lets two trees compute; each runs this script in a process of its own, as --run or --serve.

It may use public names alone, wherever a tree keeps them: see `find`. Recordings are those of ../shared/data
(AUDIOVAE_DATA names another folder); without them something voiced and white noise stand in.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
import soxr
import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("AUDIOVAE_DATA") or ROOT / ".." / "shared" / "data")
RATE = 16000
METHODS, NOISES = ("peem", "vem", "mcem", "langevin", "mala", "fast"), ("slow", "nmf", "stationary")
CHAINS, ACCEPTING = ("mcem", "langevin", "mala"), ("mcem", "mala")
FAST, LABELLED = "speech-16k-fast", str(ROOT / "tests" / "data" / "models" / "dynamic-labels")
FRAMES, DYNAMIC = "speech-16k", "speech-16k-dynamic"
F64, F32 = torch.float64, torch.float32
GAIN64, FILE64, GAIN32, DECIBELS, EXACT = 1e-8, 1e-6, 1e-3, 0.05, 0.0
SPEED = ("fit FrameVAE", "fit DynamicVAE", "resynthesize", "encode", "enhance peem", "enhance fast")

Outputs = dict[str, Any]  # arrays by name
Separated = tuple[Any, Any, Any]  # spectrogram of a mixture, result, image of the speech `[frame, freq]`


@dataclass(frozen=True)
class Case:
    """What both trees compute: `run`, given an empty folder, in a default precision.

    Two outputs may differ by `tolerance`, which is of the SI-SDR in dB where they hold what is "clean".
    """

    name: str
    run: Callable[[Path], Outputs]
    tolerance: float
    dtype: torch.dtype = F32


def cases() -> list[Case]:
    pairs = [(method, noise) for method in METHODS for noise in NOISES]
    certain = [pair for pair in pairs if pair[0] not in ACCEPTING]
    chancy = [pair for pair in pairs if pair[0] in ACCEPTING]
    stops = {"peem": np.zeros(RATE), "langevin": 0.01 * np.random.default_rng(0).standard_normal(RATE)}
    models = {"SRNN": {"width": 16, "features": 32, "own_past": True}, "FrameVAE": {"hidden": (32,)}}
    models["SequenceVAE"] = {"n_frames": 16, "width": 16, "hidden": 32, "labels": {"digit": ("0", "1")}}
    files = {
        "44.1 kHz, stereo": (FAST, 44100, 2, 6),
        "frame-wise": (FRAMES, RATE, 1, 6),
        "stretches": (DYNAMIC, RATE, 1, 75),
    }
    return [
        *(Case(f"float64 {m} {n}", partial(gains, m, n), GAIN64, F64) for m, n in pairs),
        *(Case(f"float64 {m}, one of two stops early", partial(early, m, x), GAIN64, F64) for m, x in stops.items()),
        *(Case(f"float64 {m}, labels tried", partial(labels_tried, m), GAIN64, F64) for m in ("peem", "mcem")),
        *(Case(f"float64 silence {n}", partial(silence, n), GAIN64, F64) for n in NOISES),
        Case("float64 file of three blocks", enhanced, FILE64, F64),
        *(Case(f"float32 {m} {n}", partial(gains, m, n), GAIN32) for m, n in certain),
        Case("float32 file of three blocks", enhanced, GAIN32),
        *(Case(f"float32 {m} {n}", partial(speech, m, n, False), DECIBELS) for m, n in chancy),
        *(Case(f"bfloat16 {m}", partial(speech, m, "slow", True), DECIBELS) for m in METHODS),
        *(Case(f"fit {kind}", partial(fitted, kind, sizes), EXACT) for kind, sizes in models.items()),
        *(Case(f"bytes, {name}", partial(verbs, *file), EXACT) for name, file in files.items()),
    ]


@cache
def find(name: str) -> Any:
    """A public name of the tree that runs, wherever it lives there."""
    package = importlib.import_module("audiovae")
    inner = [module.name for module in pkgutil.walk_packages(package.__path__, "audiovae.")]
    first = [room for room in ("audiovae.separation", "audiovae.files", "audiovae.recordings") if room in inner]
    for room in ("audiovae", *first, *inner):
        if not room.endswith("__main__") and hasattr(importlib.import_module(room), name):
            return getattr(importlib.import_module(room), name)
    raise LookupError(f"{package.__path__[0]} has no {name}")


@cache
def sound(seconds: float, rate: int = RATE) -> tuple[Any, Any]:
    """Clean speech, and the same with noise 5 dB below it, `[sample]` each."""
    n = round(seconds * rate)
    parts = [recorded(pattern, n, rate) for pattern in ("librispeech-mini/**/*.flac", "esc10-noise/rain/*")]
    clean, noise = (0.05 * part / np.sqrt(np.mean(part**2)) for part in parts)
    return clean, clean + 10 ** (-5 / 20) * noise


def recorded(pattern: str, n: int, rate: int) -> Any:
    """So many samples of recordings one after another; where there are none, of something voiced or of white noise."""
    parts: list[Any] = []
    for path in sorted(DATA.glob(pattern)):
        wave, own_rate = soundfile.read(path, dtype="float64", always_2d=True)
        parts.append(soxr.resample(wave.mean(1), own_rate, rate))
        if sum(map(len, parts)) >= n:
            return np.concatenate(parts)[:n]
    time, noise = np.arange(n) / rate, np.random.default_rng(0).standard_normal(n)
    if "noise" in pattern:
        return noise
    pitch = 2 * np.pi * np.cumsum(130 + 20 * np.sin(3 * time)) / rate
    tone = sum(np.sin(k * pitch) / (1 + (k - 5) ** 2) for k in range(1, 25))
    return tone * np.clip(np.sin(16 * time), 0, 1) + 1e-3 * noise


def write_sound(path: Path, seconds: float, rate: int = RATE, n_channels: int = 1, subtype: str = "PCM_16") -> None:
    noisy = sound(seconds, rate)[1]
    soundfile.write(path, np.stack([noisy, 0.5 * np.roll(noisy, 300)][:n_channels], axis=-1), rate, subtype)


def load(name: str) -> Any:
    return find("AudioVAE").from_pretrained(name).to(torch.get_default_dtype())


def separate(prior: Any, method: str, noise: str, mixtures: list[Any], mixed: bool = False) -> list[Separated]:
    spectrograms = [prior.stft(torch.from_numpy(mixture).to(torch.get_default_dtype())) for mixture in mixtures]
    run = find("enhancer")(prior, method, noise, mixed_precision=mixed)
    results = run(spectrograms, list(range(1, 1 + len(mixtures))))
    return [(x, result, result.images[0].reshape(x.shape)) for x, result in zip(spectrograms, results, strict=True)]


def gains_of(separated: list[Separated]) -> Outputs:
    """Wiener gains, not a number where the mixture is 0; and images over the mixture's maximum."""
    outputs = {}
    for i, (mixture, _, image) in enumerate(separated):
        outputs[f"gain {i}"] = (image / mixture).numpy()
        outputs[f"image {i}"] = (image / (mixture.abs().max() or 1.0)).numpy()
    return outputs


def gains(method: str, noise: str, folder: Path) -> Outputs:
    return gains_of(separate(load(FAST), method, noise, [sound(0.6 if method in CHAINS else 1.5)[1]]))


def early(method: str, other: Any, folder: Path) -> Outputs:
    separated = separate(load(FAST), method, "slow", [sound(1.5)[1], other])
    first, second = (len(result.objective) for _, result, _ in separated)
    assert first > second, f"the first stops after {first} iterations and the second after {second}: take other sounds"
    return gains_of(separated)


def labels_tried(method: str, folder: Path) -> Outputs:
    noisy = sound(0.5, 8000)[1]
    return gains_of(separate(load(LABELLED), method, "slow", [noisy[:3000], noisy[1500:]]))


def silence(noise: str, folder: Path) -> Outputs:
    return gains_of(separate(load(FAST), "fast", noise, [np.zeros(RATE), sound(0.5)[1]]))


def speech(method: str, noise: str, mixed: bool, folder: Path) -> Outputs:
    clean, noisy = sound(1.5)
    prior = load(FAST)
    ((_, _, image),) = separate(prior, method, noise, [noisy], mixed)
    return {"speech": prior.stft.inverse(image, len(noisy)).numpy(), "clean": clean}


def enhanced(folder: Path) -> Outputs:
    """A file is read in single precision: from there on it is in that of the case."""
    write_sound(folder / "noisy.wav", 88, n_channels=2, subtype="FLOAT")
    file = find("NoisyFile")(folder / "noisy.wav", folder / "speech.wav", folder / "rest.wav", 1)
    read = torch.from_numpy
    with patch.object(torch, "from_numpy", lambda array: read(array).to(torch.get_default_dtype())):
        (done,) = find("enhance_files")(find("enhancer")(load(FAST), "fast", mixed_precision=False), [file])
    if isinstance(done, Exception):
        raise done
    return {name: soundfile.read(folder / f"{name}.wav")[0] for name in ("speech", "rest")}


def new_prior(kind: str, n_fft: int, rate: int, **sizes: Any) -> Any:
    torch.manual_seed(0)
    stft = find("STFT")(n_fft, n_fft // 4)
    return find("AudioVAE")(stft, find(kind)(stft.n_freqs, find(f"{kind}Settings")(**sizes)), rate)


def packed(folder: Path, rate: int, seconds: float) -> Any:
    """Two digits by two voices, in the layout of the free spoken digits."""
    (folder / "recordings").mkdir()
    time = np.arange(round(seconds * rate)) / rate
    names = [f"{digit}_{voice}_{index}" for digit in "01" for voice in ("ann", "bob") for index in (0, 5, 8, 9)]
    for i, name in enumerate(names):
        tone = sum(np.sin(2 * np.pi * k * (100 + 10 * i) * time) / k for k in range(1, 10))
        noise = np.random.default_rng(i).standard_normal(len(time))
        soundfile.write(folder / "recordings" / f"{name}.wav", 0.1 * tone + 0.01 * noise, rate)
    find("prepare")(folder / "recordings", folder / "packed", find("PrepareSettings")(sample_rate=rate))
    return find("PackedCorpus")(folder / "packed")


def fitted(kind: str, sizes: dict[str, Any], folder: Path) -> Outputs:
    corpus, prior = packed(folder, 8000, 1.0), new_prior(kind, 256, 8000, **sizes)
    schedule = {"scheduled_sampling": (0.2, 0.8)} if "own_past" in sizes else {}
    settings = find("TrainingSettings")(
        steps=200, batch_frames=256, validate_every=100, log_every=10, equaliser_db=2.0, free_bits=0.01, **schedule
    )
    find("fit")(prior, corpus, corpus, folder / "run", settings)
    trace = np.loadtxt(folder / "run" / "training" / "trace.csv", delimiter=",", skiprows=1)
    return {"trace": trace, **{name: weights.numpy() for name, weights in prior.state_dict().items()}}


def verbs(model: str, rate: int, n_channels: int, seconds: float, folder: Path) -> Outputs:
    write_sound(folder / "in.wav", seconds, rate, n_channels)
    runs = [("encode", "in.wav", "z.npz"), ("resynthesize", "in.wav", "again.wav")]
    if seconds < 10:
        runs += [("decode", "z.npz", "decoded.wav", "--latents", "sample")]
        runs += [("resynthesize", "in.wav", "drawn.wav", "--latents", "sample", "--phase", "griffin-lim")]
    for verb, source, target, *more in runs:
        arguments = [verb, str(folder / source), "-o", str(folder / target), "--model", model, "--quiet", *more]
        assert importlib.import_module("audiovae.cli.main").main(arguments) == 0, f"{verb} has failed"
    return {target: np.frombuffer((folder / target).read_bytes(), np.uint8) for _, _, target, *_ in runs}


def chosen(only: str) -> list[Case]:
    return [case for case in cases() if re.search(only, case.name)]


def run_cases(target: Path, only: str) -> None:
    for i, case in enumerate(chosen(only)):
        torch.set_default_dtype(case.dtype)  # random numbers too are drawn in it
        with tempfile.TemporaryDirectory() as folder:
            try:
                np.savez(target / f"{i}.npz", **case.run(Path(folder)))
            except Exception:  # of any kind: it is this case that failed, and the others go on
                (target / f"{i}.txt").write_text(traceback.format_exc())


def serve(folder: Path) -> None:
    """Run what is named on the standard input, and say how many seconds each took."""
    write_sound(folder / "in.wav", 10)
    corpus, files = packed(folder, RATE, 2.0), (folder / "in.wav", folder / "out.wav")
    enhancers = {
        "peem": find("enhancer")(load("speech-16k-separation"), "peem"),
        "fast": find("enhancer")(load(FAST), "fast"),
    }
    prior = load(FRAMES)
    for job in map(str.strip, sys.stdin):
        begin = time.perf_counter()
        verb, _, what = job.partition(" ")
        if verb == "fit":
            steps, sizes = {"FrameVAE": (200, {}), "DynamicVAE": (60, {"width": 128, "prior_width": 64})}[what]
            settings = find("TrainingSettings")(steps=steps, batch_frames=512)
            find("fit")(new_prior(what, 1024, RATE, **sizes), corpus, corpus, folder / "run", settings, overwrite=True)
        elif verb == "enhance":
            find("enhance_files")(enhancers[what], [find("NoisyFile")(*files)])
        else:
            for _ in range(10):  # of less than a tenth of a second
                find(f"{verb}_file")(prior, *files[: 2 if verb == "resynthesize" else 1])
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--run":
        run_cases(Path(sys.argv[2]), sys.argv[3])
    else:
        serve(Path(sys.argv[2]))
