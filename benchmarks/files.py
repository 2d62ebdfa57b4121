"""Speed and memory of the verbs on files, each against its parts timed alone, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/files.py [MODEL]

* prepare: times real time, on one core, of 250 FLAC files of 12 s at 16 kHz.
* encode: those files, against their decoding, their STFT and the encoder on all frames in one batch.
* resynthesize: a file of two hours, against reading, STFT, encoder, decoder, inverse and writing, each alone; and its
  peak memory against that of a file of ten seconds, each in a process of its own.
* --help: of the program and of every verb, as a process.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiovae import AudioVAE, PrepareSettings, encode_file, power, prepare, resynthesize_file
from audiovae.cli.main import VERBS
from audiovae.cli.progress import print_table

RATE, N_FILES, FILE_SECONDS, LONG_SECONDS = 16000, 250, 12.0, 7200
BLOCK_FRAMES = (
    1250  # 20 s: the parts of the long file are timed in blocks of it, so that no part is slowed by its memory
)


def main(model: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_speech_like(folder)
        prior = AudioVAE.from_pretrained(model)
        rows = [
            *bench_prepare(folder),
            *bench_encode(prior, folder),
            *bench_resynthesize(prior, folder),
            *bench_memory(model, folder),
        ]
    rows += bench_help()
    print_table(["what", "measured", "asked"], rows, f"{model}, 1 thread")


def write_speech_like(folder: Path) -> None:
    """Noise with the bandwidth and the pauses of speech, so that FLAC compresses it about as well."""
    generator = np.random.default_rng(0)
    n = int(FILE_SECONDS * RATE)
    for i in range(N_FILES):
        noise = np.convolve(generator.standard_normal(n), np.hanning(24) / 12, mode="same")
        syllables = np.clip(np.sin(2 * np.pi * (3 + i % 3) * np.arange(n) / RATE + i), 0, 1)
        soundfile.write(folder / f"{i:03d}.flac", 0.05 * noise * syllables, RATE)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def accumulate(seconds: float, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    begin = time.perf_counter()
    result = work()
    return result, seconds + time.perf_counter() - begin


def bench_prepare(folder: Path) -> list[list[str]]:
    seconds = [timed(lambda i=i: prepare(folder, folder / f"packed{i}", PrepareSettings())) for i in range(3)]
    speed = N_FILES * FILE_SECONDS / statistics.median(seconds)
    return [["prepare, times real time on one core", f"{speed:.0f}", "at least 1000"]]


def bench_encode(prior: AudioVAE, folder: Path) -> list[list[str]]:
    files = sorted(folder.glob("*.flac"))
    (folder / "z").mkdir()

    def encode_all() -> None:
        for file in files:
            encode_file(prior, file).save(folder / "z" / f"{file.stem}.npz")

    def parts() -> float:
        waves: list[torch.Tensor] = []
        decoding = timed(
            lambda: waves.extend(torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files)
        )
        spectra: list[torch.Tensor] = []
        with torch.no_grad():
            stft = timed(lambda: spectra.extend(power(prior.stft(wave)) for wave in waves))
            batch = torch.cat(spectra)
            return decoding + stft + timed(lambda: prior.vae.infer(batch))

    encode_all()
    ratios = [timed(encode_all) / parts() for _ in range(3)]
    return [
        [
            f"encode {N_FILES} files, times its parts",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            "at most 1.3",
        ]
    ]


def bench_resynthesize(prior: AudioVAE, folder: Path) -> list[list[str]]:
    write_long(folder / "long.wav", LONG_SECONDS)
    wave, _ = soundfile.read(folder / "long.wav", dtype="float32")
    seconds = {"reading": timed(lambda: soundfile.read(folder / "long.wav", dtype="float32"))}
    blocks = torch.from_numpy(wave).split(BLOCK_FRAMES * prior.stft.hop_length)
    stft = prior.stft
    times = dict.fromkeys(("STFT", "encoder", "decoder", "inverse"), 0.0)
    with torch.no_grad():
        for block in blocks:
            spectrogram, times["STFT"] = accumulate(times["STFT"], lambda block=block: stft(block))
            frame_power = power(spectrogram)
            latents, times["encoder"] = accumulate(
                times["encoder"], lambda p=frame_power: prior.vae.infer(p).factors[0].posterior.mean
            )
            _, times["decoder"] = accumulate(times["decoder"], lambda z=latents: prior.vae.likelihood(z).variance)
            _, times["inverse"] = accumulate(times["inverse"], lambda x=spectrogram, n=len(block): stft.inverse(x, n))
    seconds |= times
    seconds["writing"] = timed(lambda: soundfile.write(folder / "copy.wav", wave, RATE))
    whole = timed(lambda: resynthesize_file(prior, folder / "long.wav", folder / "out.wav"))
    total = sum(seconds.values())
    rows = [[f"  {name} of two hours alone, s", f"{value:.1f}", ""] for name, value in seconds.items()]
    rows.append(["resynthesize two hours, s", f"{whole:.1f} ({LONG_SECONDS / whole:.0f} times real time)", ""])
    return [*rows, ["resynthesize, times its parts", f"{whole / total:.2f}", "at most 1.3"]]


def write_long(path: Path, seconds: int) -> None:
    generator = np.random.default_rng(1)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(seconds // 10):
            file.write(0.05 * generator.standard_normal(10 * RATE))


def bench_memory(model: str, folder: Path) -> list[list[str]]:
    write_long(folder / "short.wav", 10)
    peaks = []
    for name in ("short", "long"):
        target = folder / f"{name}-out.wav"
        command = [sys.executable, __file__, "--child", model, str(folder / f"{name}.wav"), str(target)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return [["peak memory, two hours less ten seconds, MB", f"{(peaks[1] - peaks[0]) / 1024:.0f}", "at most 300"]]


def bench_help() -> list[list[str]]:
    program = str(Path(sys.executable).parent / "audiovae")
    slowest = {}
    for arguments in [["--help"], *([verb, "--help"] for verb in VERBS)]:
        command = [program, *arguments]
        subprocess.run(command, capture_output=True, check=True)
        slowest[" ".join(arguments)] = max(
            timed(lambda command=command: subprocess.run(command, capture_output=True, check=True)) for _ in range(3)
        )
    name, seconds = max(slowest.items(), key=lambda item: item[1])
    return [["slowest help, s", f"{seconds:.2f} ({name})", "at most 0.5"]]


def child(model: str, source: str, target: str) -> None:
    torch.set_num_threads(1)
    resynthesize_file(AudioVAE.from_pretrained(model), source, target)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "speech-16k")
