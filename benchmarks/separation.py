"""Separation of mixtures in rooms by every method, beside other libraries: quality against real-time factor.

    OMP_NUM_THREADS=1 python benchmarks/separation.py MIXTURES [--methods deep iva] [--bare] [--out DIR]

MIXTURES is a folder as recipes/rooms writes it: mix_NN.flac, the image of source K at all microphones in
image_NN_K.flac, and, where it is there, the dry source in dry_NN_K.flac. Scores are of microphone 0, sources assigned
to estimates by the best mean SI-SDR against the images:

* SI-SDR and SDR (512 taps) against the image, and SI-SDR above 250 Hz, below which a small array is nearly blind;
* SDR against the dry source (512 taps);
* PESQ (wide-band, at 16 kHz) and ESTOI against the image.

Mean, median and worst of a set are of the means over a mixture's sources; so is the share below 5 dB. Real-time factors
are CPU time over duration of one thread, one mixture at a time, after one that does not count. Writes
DIR/separation.json, .md and .png; rows that are in the JSON are not run again.

Other libraries (pip install 'audiovae[benchmark]' ssspy) see our own centred and zero-padded STFT at unit power with a
Hann window and a hop of a quarter, at each of the windows 1024 to 8192 (at 16 kHz), and the table shows the best of
them; those that need as many channels as sources see the principal components. The honest classical row is
`iva + filters`: no prior, the filters of the deep methods. Where a mixture has one source, `one microphone` is what
enhancement makes of microphone 0. The first line says in how many mixtures the sources are counted right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from audiovae import STFT, AudioVAE, audio
from audiovae.atomic import atomic_path
from audiovae.errors import AudiovaeError
from audiovae.metrics import NotScored, estoi, pesq, resample, si_sdr
from audiovae.separation import (
    METHODS,
    ROOM_METHODS,
    Mixture,
    count_sources,
    enhancer,
    iva,
    least_squares,
    separator,
    shipped_model,
    wiener,
)
from audiovae.stft import Front

matplotlib.use("Agg")
from matplotlib import pyplot

WINDOWS_S = (0.064, 0.128, 0.256, 0.512)
BLIND_HZ, TAPS, COLLAPSED_DB = 250.0, 512, 5.0
PERCEPTUAL_RATE = 16000

Wave = NDArray[np.float32]
Row = dict[str, Any]
Algorithm = Callable[["Case", int], Wave]
"""A mixture and a seed to the sources at microphone 0, `[source, sample]`."""


@dataclass(frozen=True)
class Case:
    """A mixture `[channel, sample]`, images `[source, channel, sample]` and dry sources `[source, sample]`."""

    name: str
    mixture: Wave
    images: Wave
    dry: Wave | None
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.mixture.shape[1] / self.sample_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixtures", type=Path)
    parser.add_argument("--methods", nargs="*", choices=ROOM_METHODS, default=list(ROOM_METHODS))
    parser.add_argument("--model", help="instead of the methods' own priors")
    parser.add_argument("--refine", nargs="*", type=int, default=[0, 4], help="iterations after the method neural")
    parser.add_argument("--bare", action="store_true", help="each method without its filters, too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--no-references", action="store_true", help="our methods alone")
    parser.add_argument("--first", type=int, help="only so many of the mixtures")
    parser.add_argument("--out", type=Path, default=Path("separation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = read(options.mixtures)[: options.first]
    n_sources, rate = len(cases[0].images), cases[0].sample_rate
    algorithms: dict[str, Callable[[], Algorithm]] = {"mixture": lambda: mixture_itself}
    if n_sources == 1:
        algorithms["one microphone"] = one_microphone
    for name in options.methods:
        for refine in options.refine if name == "neural" else [0]:
            for bare in (False, True)[: 1 + options.bare]:
                row = name + (f" + {refine}" if refine else "") + (" without filters" if bare else "")
                algorithms[row] = partial(by_method, name, options.model, n_sources, rate, refine, bare)
    if not options.no_references:
        algorithms |= references(rate)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "separation.json"
    rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    for name, make in algorithms.items():
        if "files" not in rows.get(name, {}):
            try:
                rows[name] = {"files": measure(make(), cases, options.seeds)}
            except (AudiovaeError, ImportError, NotScored) as reason:  # the last: a library that ends in NaN
                rows[name] = {"left_out": str(reason)}
            write(path, json.dumps(rows, indent=1))
            print(name, flush=True)
    n_right = sum(count_sources(torch.from_numpy(case.mixture), rate) == n_sources for case in cases)
    counted = f"Sources counted right in {n_right} of {len(cases)} mixtures.\n\n"
    write(options.out / "separation.md", counted + table(rows))
    picture(rows, options.out / "separation.png")


def read(folder: Path) -> list[Case]:
    cases = []
    for path in sorted(folder.glob("mix_*.flac")):
        mixture, info = audio.read(path)
        number = path.stem.removeprefix("mix_")
        images = np.stack([audio.read(p)[0] for p in sorted(folder.glob(f"image_{number}_*.flac"))])
        dry = [audio.read(p)[0][0] for p in sorted(folder.glob(f"dry_{number}_*.flac"))]
        cases.append(Case(path.name, mixture, images, np.stack(dry) if dry else None, info.sample_rate))
    if not cases:
        raise SystemExit(f"{folder}: no mix_*.flac")
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# What is compared: functions that make an algorithm, so that what is not asked for is not loaded


def mixture_itself(case: Case, seed: int) -> Wave:
    return np.repeat(case.mixture[:1], len(case.images), 0)


def one_microphone() -> Algorithm:
    method = METHODS["peem"]
    prior = AudioVAE.from_pretrained(method.prior)
    enhances = enhancer(prior, "peem")

    def run(case: Case, seed: int) -> Wave:
        wave = torch.from_numpy(case.mixture[0])
        (found,) = enhances([prior.stft(wave)], [seed])
        return prior.stft.inverse(found.images[:1], len(wave)).numpy()

    return run


def by_method(
    name: Any, model: str | None, n_sources: int, rate: int, refine: int = 0, bare: bool = False
) -> Algorithm:
    prior = shipped_model(name, "cpu", model)
    if prior is not None and prior.sample_rate != rate:
        raise AudiovaeError(f"the prior hears {prior.sample_rate} Hz, and the mixtures have {rate} Hz")
    separates = separator(n_sources, name, prior, rate, refine=refine)
    if bare:
        separates.finish = None
    stft = separates.front.stft

    def run(case: Case, seed: int) -> Wave:
        wave = torch.from_numpy(case.mixture)
        (found,) = separates([stft(wave).movedim(0, -1)], [seed], waves=[wave])
        return stft.inverse(found.images[:n_sources, ..., 0], wave.shape[1]).numpy()

    return run


def references(rate: int) -> dict[str, Callable[[], Algorithm]]:
    windows = [4 * round(seconds * rate / 4) for seconds in WINDOWS_S]
    out: dict[str, Callable[[], Algorithm]] = {"iva + filters": lambda: partial(iva_and_filters, windows)}
    of_libraries = {
        "pyroomacoustics AuxIVA Gauss": (pyroomacoustics_auxiva, True),
        "pyroomacoustics ILRMA": (pyroomacoustics_ilrma, True),
        "pyroomacoustics FastMNMF2": (pyroomacoustics_fastmnmf2, False),
        "ssspy AuxIVA Gauss": (ssspy_auxiva, True),
        "ssspy ILRMA": (ssspy_ilrma, True),
        "ssspy FastMNMF": (ssspy_fastmnmf, False),
    }
    for (name, (run, reduced)), window in itertools.product(of_libraries.items(), windows):
        out[f"{name}, {window}"] = partial(partial, by_library, window, run, reduced)
    return out


@torch.no_grad()
def iva_and_filters(windows: Sequence[int], case: Case, seed: int) -> Wave:
    """Independent vector analysis at the longest window, then the filters of the prototype without a prior."""
    wave = torch.from_numpy(case.mixture)
    level = wave.square().mean().sqrt()
    stft = hann(windows[-1]).float()
    mixture = Mixture.of([stft(wave).movedim(0, -1)], level[None], [seed], waves=[wave])
    images = iva(Front(stft, case.sample_rate), len(case.images))(mixture)
    for better in (least_squares(windows[1], 3), wiener(windows[-1]), least_squares(windows[-2], 2)):
        images = better(mixture, images)
    return (images[:, 0, 0] * level).numpy()


@cache
def hann(window: int) -> STFT:
    return STFT(window, window // 4, "hann")


def by_library(
    window: int, run: Callable[[NDArray[np.complex128], int, int], Any], reduced: bool, case: Case, seed: int
) -> Wave:
    """A library on our STFT, `[frame, freq, channel]` at unit power; its rows take the scale of microphone 0's least
    squares.
    """
    stft, n_sources = hann(window).double(), len(case.images)
    x = stft(torch.from_numpy(case.mixture).double()).permute(1, 2, 0).numpy()
    scale = math.sqrt(np.mean(np.abs(x) ** 2))
    seen = x / scale
    if reduced and seen.shape[2] > n_sources:
        seen = principal(seen, n_sources)
    y = np.asarray(run(seen, n_sources, seed))  # [frame, freq, source]
    if reduced:
        own = np.einsum("tfi,tfj->fij", y.conj(), y) + 1e-12 * np.eye(n_sources)
        y = y * np.linalg.solve(own, np.einsum("tfi,tf->fi", y.conj(), x[:, :, 0])[..., None])[..., 0]
    else:
        y = y * scale
    images = torch.from_numpy(np.ascontiguousarray(y.transpose(2, 0, 1)))
    return stft.inverse(images, case.mixture.shape[1]).float().numpy()


def principal(x: NDArray[np.complex128], n: int) -> NDArray[np.complex128]:
    covariance = np.einsum("tfi,tfj->fij", x, x.conj()) / len(x)
    power, directions = np.linalg.eigh(covariance + 1e-12 * np.eye(x.shape[2]))
    whitener = directions[..., -n:] / np.sqrt(power[:, None, -n:])
    return np.einsum("fin,tfi->tfn", whitener.conj(), x)


def pyroomacoustics_auxiva(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from pyroomacoustics import bss

    return bss.auxiva(x, n_sources, n_iter=50, proj_back=False, model="gauss")


def pyroomacoustics_ilrma(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from pyroomacoustics import bss

    np.random.seed(seed)
    return bss.ilrma(x, n_sources, n_iter=50, proj_back=False, n_components=2)


def pyroomacoustics_fastmnmf2(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from pyroomacoustics import bss

    np.random.seed(seed)
    return bss.fastmnmf2(x, n_sources, n_iter=100, n_components=8, mic_index=0)


def ssspy_auxiva(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from ssspy.bss.iva import AuxGaussIVA

    return AuxGaussIVA(record_loss=False, scale_restoration=False)(x.transpose(2, 1, 0), n_iter=50).transpose(2, 1, 0)


def ssspy_ilrma(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from ssspy.bss.ilrma import GaussILRMA

    method = GaussILRMA(n_basis=2, record_loss=False, scale_restoration=False, rng=np.random.default_rng(seed))
    return method(x.transpose(2, 1, 0), n_iter=50).transpose(2, 1, 0)


def ssspy_fastmnmf(x: NDArray[np.complex128], n_sources: int, seed: int) -> Any:
    from ssspy.bss.mnmf import FastGaussMNMF

    method = FastGaussMNMF(
        n_basis=8, n_sources=n_sources, record_loss=False, reference_id=0, rng=np.random.default_rng(seed)
    )
    return method(x.transpose(2, 1, 0), n_iter=100).transpose(2, 1, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Running and scoring


def measure(algorithm: Algorithm, cases: list[Case], seeds: Sequence[int]) -> list[Row]:
    algorithm(cases[0], seeds[0])  # what a first call sets up does not count
    found = []
    for case, seed in itertools.product(cases, seeds):
        begin = time.process_time()
        estimates = algorithm(case, seed)
        found.append((case, seed, estimates, time.process_time() - begin))
    return [
        {
            "file": case.name,
            "seed": seed,
            "duration": case.seconds,
            "seconds": seconds,
            "values": scores(case, estimates),
        }
        for case, seed, estimates, seconds in found
    ]


def scores(case: Case, estimates: Wave) -> dict[str, float]:
    """Means over the sources of a mixture; what cannot be scored is left out."""
    references = case.images[:, 0]
    sdrs = np.array([[si_sdr(reference, estimate) for reference in references] for estimate in estimates])
    orders = itertools.permutations(range(len(estimates)), len(references))
    order = max(orders, key=lambda places: sum(sdrs[place, n] for n, place in enumerate(places)))
    chosen = estimates[list(order)]
    values: dict[str, list[float]] = {
        "si_sdr": [si_sdr(r, e) for r, e in zip(references, chosen, strict=True)],
        "sdr": list(sdr(references, chosen)),
        "si_sdr_250": [
            si_sdr(above(r, case.sample_rate), above(e, case.sample_rate))
            for r, e in zip(references, chosen, strict=True)
        ],
    }
    if case.dry is not None:
        values["sdr_dry"] = list(sdr(case.dry, chosen))
    for name, metric in (("pesq", pesq), ("estoi", estoi)):
        heard = [resample(wave, case.sample_rate, PERCEPTUAL_RATE) for wave in (references, chosen)]
        try:
            values[name] = [metric(r, e) for r, e in zip(*heard, strict=True)]
        except NotScored:
            continue
    return {name: float(np.mean(of_sources)) for name, of_sources in values.items()}


def sdr(references: Wave, estimates: Wave) -> NDArray[np.float64]:
    """BSS-Eval's, 512 taps, in the order given. Reference: E. Vincent, R. Gribonval, C. Fevotte, 2006."""
    import fast_bss_eval

    pairs = [torch.from_numpy(np.ascontiguousarray(part)).double()[:, None] for part in (references, estimates)]
    return fast_bss_eval.sdr(*pairs, filter_length=TAPS)[:, 0].numpy()


def above(wave: Wave, sample_rate: int) -> Wave:
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / sample_rate) < BLIND_HZ] = 0
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Table and picture

COLUMNS = {
    "si_sdr": "SI-SDR (image)",
    "sdr": "SDR (image)",
    "si_sdr_250": "above 250 Hz",
    "sdr_dry": "SDR (dry)",
    "pesq": "PESQ (wide-band)",
    "estoi": "ESTOI",
}


def best_windows(rows: dict[str, Row]) -> dict[str, list[Row]]:
    """Measured rows; of those that differ in the window alone, the best."""
    best: dict[str, tuple[str, list[Row]]] = {}
    for name, row in rows.items():
        if "files" in row:
            algorithm = name.rpartition(", ")[0] or name
            if algorithm not in best or mean(row["files"], "si_sdr") > mean(best[algorithm][1], "si_sdr"):
                best[algorithm] = name, row["files"]
    return dict(best.values())


def mean(files: list[Row], metric: str) -> float:
    values = [file["values"][metric] for file in files if metric in file["values"]]
    return float(np.mean(values)) if values else math.nan


def real_time_factor(files: list[Row]) -> float:
    return math.fsum(file["seconds"] for file in files) / math.fsum(file["duration"] for file in files)


def table(rows: dict[str, Row]) -> str:
    heads = ["method", *COLUMNS.values(), "median", "worst", "5th percentile", "below 5 dB", "between seeds", "RTF"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, files in best_windows(rows).items():
        values = np.array([file["values"]["si_sdr"] for file in files])
        of_seeds = [mean([f for f in files if f["seed"] == seed], "si_sdr") for seed in {f["seed"] for f in files}]
        cells = [f"{mean(files, metric):.{3 if metric == 'estoi' else 2}f}" for metric in COLUMNS]
        cells += [f"{np.median(values):.1f}", f"{values.min():.1f}", f"{np.percentile(values, 5):.1f}"]
        cells += [f"{np.mean(values < COLLAPSED_DB):.0%}", f"{max(of_seeds) - min(of_seeds):.2f}"]
        cells += ["-" if name == "mixture" else f"{real_time_factor(files):.2f}"]
        lines.append("| " + " | ".join([f"`{name}`", *cells]).replace("nan", "-") + " |")
    left_out = [f"* {name}: {row['left_out']}" for name, row in rows.items() if "left_out" in row]
    return "\n".join([*lines, "", *left_out, ""])


def picture(rows: dict[str, Row], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, files in best_windows(rows).items():
        if name != "mixture":
            ours = name.split(",")[0].split(" ")[0] in ROOM_METHODS
            place = real_time_factor(files), mean(files, "si_sdr")
            axes.plot(*place, "o" if ours else "s", color="C0" if ours else "C7")
            axes.annotate(name, place, xytext=(6, 3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set(xlabel="real-time factor, one thread", ylabel="SI-SDR against the image, dB")
    axes.grid(alpha=0.3)
    with atomic_path(path) as partial_path:
        figure.savefig(partial_path, format="png", dpi=150)
    pyplot.close(figure)


def write(path: Path, text: str) -> None:
    with atomic_path(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
