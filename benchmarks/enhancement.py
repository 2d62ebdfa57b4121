"""Enhancement of pairs of clean and noisy speech by every method and shipped prior: quality against real-time factor,
beside references.

    OMP_NUM_THREADS=1 python benchmarks/enhancement.py CLEAN NOISY [--methods peem fast] [--priors
    speech-16k-separation] [--out DIR] OMP_NUM_THREADS=1 python benchmarks/enhancement.py CLEAN NOISY --curve [...]

CLEAN and NOISY are folders (or files) with the same names. Scores are means over pairs with 95 % intervals by Student's
t; seed 0 for every recording. Real-time factors are of one thread and exclude loading, scoring and one call before the
first that counts: of the inference alone, and of STFT, inference and resynthesis. Writes DIR/enhancement.json, .md and
.png; rows that are in the JSON are not run again.

With --curve, the noise of each pair is scaled to an input SI-SDR from -5 to 40 dB, and left out: DIR/curve.json, .md
and .png.

The references (the libraries of the last three: pip install 'audiovae[benchmark]'):

* noisy: the input.
* oracle Wiener filter: |s|^2 / (|s|^2 + |n|^2) of the true speech and noise, an upper bound.
* NMF without a prior: the methods' noise, and instead of a prior of speech NMF of rank 32, both fitted to the mixture.
    Nothing was
  trained, so only this tells them apart: the noise begins at the quiet spectrum and changes slowly, the speech at what
  is above it.
* log-MMSE (logmmse), which takes the first 0.12 s for noise; spectral gating (noisereduce, stationary); spectral
  subtraction (pyroomacoustics), its delay of 256 samples taken back. Each as its library sets it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiovae import STFT, AudioVAE, audio
from audiovae.atomic import atomic_path
from audiovae.cli.progress import bar
from audiovae.errors import AudiovaeError
from audiovae.metrics import METRICS, WAVE_METRICS, Score, compare, estimate, improvement, si_sdr, summarise
from audiovae.saved import shipped_names
from audiovae.separation import (
    METHODS,
    NMF,
    Beginning,
    EMSettings,
    Mixture,
    Separator,
    SlowBands,
    enhancer,
    quiet_start,
)
from audiovae.stft import Front, power

matplotlib.use("Agg")
from matplotlib import pyplot, ticker
from matplotlib.transforms import Bbox

RATE = 16000
NMF_RANK, NMF_ITERATIONS = 32, 100
SUBTRACTION_DELAY = 256  # samples: half a frame of pyroomacoustics' spectral subtraction, whose blocks are a stream's
LEVELS_DB = [*range(-5, 41, 5), math.inf]  # of the curve; the last is clean speech
NOISY, ORACLE = "noisy", "oracle Wiener filter"
PICTURED = ("si_sdr", "pesq", "estoi")

Wave = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Clean and noisy `[sample]`."""

    name: str
    clean: Wave
    noisy: Wave


@dataclass(frozen=True)
class Enhanced:
    """An estimate of the clean wave, and the seconds of inference where they can be told from those of the STFT."""

    wave: Wave
    inference: float | None = None


Algorithm = Callable[[Pair], Enhanced]  # a pair, because the oracle knows what is clean
Measure = Callable[[Algorithm, list[Pair]], list[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path)
    parser.add_argument("noisy", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--priors", nargs="+", default=shipped_names(), help="names or folders; default: all that are shipped"
    )
    parser.add_argument("--out", type=Path, default=Path("enhancement"))
    parser.add_argument("--refs-only", action="store_true", help="no method: the references alone")
    parser.add_argument("--curve", action="store_true", help="output against input SI-SDR instead")
    parser.add_argument("--first", type=int, help="only so many of the pairs")
    parser.add_argument("--overwrite", action="store_true", help="run rows again that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = read_pairs(options.clean, options.noisy)[: options.first]
    algorithms = references()
    if options.curve:
        del algorithms[NOISY]  # a diagonal
    if not options.refs_only:
        algorithms |= {
            f"{method}, {Path(prior).name}": partial(by_prior, prior, method)
            for prior in options.priors
            for method in options.methods
        }
    options.out.mkdir(parents=True, exist_ok=True)
    if options.curve:
        rows = run(options.out / "curve.json", algorithms, pairs, output_levels, options.overwrite)
        write(options.out / "curve.md", curve_table(rows))
        curve_picture(rows, options.out / "curve.png")
    else:
        rows = run(options.out / "enhancement.json", algorithms, pairs, scores, options.overwrite)
        write(options.out / "enhancement.md", quality_table(rows))
        quality_picture(rows, options.out / "enhancement.png")


def read_pairs(clean: Path, noisy: Path) -> list[Pair]:
    """Pairs of equal names, at 16 kHz."""
    files = (
        [clean]
        if clean.is_file()
        else sorted(path for path in clean.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    )
    pairs = []
    for file in files:
        partner = noisy if noisy.is_file() else noisy / file.relative_to(clean)
        waves = [audio.read(path, RATE)[0] for path in (file, partner)]
        if waves[0].shape != waves[1].shape or len(waves[0]) > 1:
            raise SystemExit(f"{partner} and its clean file must have one channel and the same length")
        pairs.append(Pair(file.name, waves[0][0], waves[1][0]))
    if not pairs:
        raise SystemExit(f"{clean}: no sound files")
    return pairs


# ---------------------------------------------------------------------------------------------------------------------
# What is compared: functions that make an algorithm, so that what is not asked for is not loaded


def references() -> dict[str, Callable[[], Algorithm]]:
    stft = STFT()
    return {
        NOISY: lambda: lambda pair: Enhanced(pair.noisy),
        ORACLE: lambda: lambda pair: oracle_wiener(stft, pair),
        "NMF without a prior": lambda: partial(by_spectrogram, stft, first_image(nmf_without_prior(stft))),
        "log-MMSE": log_mmse,
        "spectral gating": spectral_gating,
        "spectral subtraction": spectral_subtraction,
    }


def by_prior(name: str, method: Any) -> Algorithm:
    prior = load(name)
    if prior.sample_rate != RATE:
        raise AudiovaeError(f"{name} is of {prior.sample_rate} Hz, not of {RATE}")
    return partial(by_spectrogram, prior.stft, first_image(enhancer(prior, method)))


def first_image(separator: Separator) -> Callable[[Tensor], Tensor]:
    return lambda spectrogram: separator([spectrogram])[0].images[0]


@cache
def load(name: str) -> AudioVAE:
    return AudioVAE.from_pretrained(name)


@torch.no_grad()
def by_spectrogram(stft: STFT, separate: Callable[[Tensor], Tensor], pair: Pair) -> Enhanced:
    spectrogram = stft(torch.from_numpy(pair.noisy))
    begin = time.perf_counter()
    speech = separate(spectrogram)
    inference = time.perf_counter() - begin
    return Enhanced(stft.inverse(speech, len(pair.noisy)).numpy(), inference)


def oracle_wiener(stft: STFT, pair: Pair) -> Enhanced:
    clean, noise = (power(stft(torch.from_numpy(wave))) for wave in (pair.clean, pair.noisy - pair.clean))
    gain = torch.where(clean > 0, clean / (clean + noise), 0.0)
    return by_spectrogram(stft, lambda spectrogram: gain * spectrogram, pair)


def nmf_without_prior(stft: STFT) -> Separator:
    def start(mixture: Mixture) -> Beginning:
        quiet = quiet_start(mixture).psds[1]
        return Beginning([(mixture.power - quiet).clamp(min=0), quiet])

    sources = [partial(NMF, rank=NMF_RANK), SlowBands]
    return Separator(Front(stft, RATE), sources, [start], settings=EMSettings(NMF_ITERATIONS))


def log_mmse() -> Algorithm:
    with np.errstate():  # its import makes NumPy raise at every underflow
        from logmmse import logmmse

    def run(pair: Pair) -> Enhanced:
        with np.errstate(all="ignore"):
            wave = logmmse(pair.noisy, RATE)
        return Enhanced(np.pad(wave, (0, len(pair.noisy) - len(wave))))  # it drops what fills no frame

    return run


def spectral_gating() -> Algorithm:
    from noisereduce import reduce_noise

    return lambda pair: Enhanced(reduce_noise(pair.noisy, RATE, stationary=True).astype(np.float32))


def spectral_subtraction() -> Algorithm:
    from pyroomacoustics.denoise import apply_spectral_sub

    def run(pair: Pair) -> Enhanced:
        padded = np.pad(pair.noisy, (0, 2 * SUBTRACTION_DELAY))
        late = apply_spectral_sub(
            padded + 1e-8 * np.random.default_rng(0).standard_normal(len(padded))
        )  # it divides by the power
        return Enhanced(late[SUBTRACTION_DELAY:][: len(pair.noisy)].astype(np.float32))

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run(
    path: Path, algorithms: dict[str, Callable[[], Algorithm]], pairs: list[Pair], measure: Measure, overwrite: bool
) -> dict[str, Row]:
    """Rows by name: measured and stored one by one, or read. A row has the values of its files, or why it has none."""
    recordings = hashlib.sha256(
        b"".join(part.tobytes() for pair in pairs for part in (pair.clean, pair.noisy))
    ).hexdigest()
    stored = json.loads(path.read_text()) if path.exists() else {}
    if stored and stored["recordings"] != recordings:
        if not overwrite:
            raise SystemExit(f"{path} is of other recordings; choose another --out, or --overwrite")
        stored = {}
    rows: dict[str, Row] = stored.get("rows", {})
    with bar(len(algorithms)) as advance:
        for name, make in algorithms.items():
            if overwrite or "files" not in rows.get(name, {}):
                try:
                    rows[name] = {"files": measure(make(), pairs)}
                except (AudiovaeError, ImportError) as reason:
                    rows[name] = {"left_out": str(reason)}
                write(path, json.dumps({"recordings": recordings, "torch": torch.__version__, "rows": rows}, indent=1))
            advance()
    return rows


def scores(algorithm: Algorithm, pairs: list[Pair]) -> list[Row]:
    timed(algorithm, pairs[0])  # what a first call sets up does not count
    results = [timed(algorithm, pair) for pair in pairs]  # all of them before the scores, whose libraries have threads
    files = []
    for pair, (enhanced, seconds) in zip(pairs, results, strict=True):
        score = compare(pair.clean[None], enhanced.wave[None], RATE)
        timing = {"duration": len(pair.clean) / RATE, "seconds": seconds, "inference": enhanced.inference}
        files.append({"file": pair.name, **timing, "values": score.values, "reasons": score.reasons})
    return files


def timed(algorithm: Algorithm, pair: Pair) -> tuple[Enhanced, float]:
    begin = time.perf_counter()
    enhanced = algorithm(pair)
    return enhanced, time.perf_counter() - begin


def output_levels(algorithm: Algorithm, pairs: list[Pair]) -> list[Row]:
    return [
        {
            "file": pair.name,
            "output_db": [si_sdr(pair.clean, algorithm(at_level(pair, level)).wave) for level in LEVELS_DB],
        }
        for pair in pairs
    ]


def at_level(pair: Pair, si_sdr_db: float) -> Pair:
    """The pair with this SI-SDR of the noisy wave: what its noise has in common with the speech is taken from it."""
    clean, noise = pair.clean.astype(np.float64), (pair.noisy - pair.clean).astype(np.float64)
    noise -= (noise @ clean) / (clean @ clean) * clean
    gain = 10 ** (-si_sdr_db / 20) * math.sqrt((clean @ clean) / (noise @ noise))
    return Pair(pair.name, pair.clean, (clean + gain * noise).astype(np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Tables and pictures


def real_time_factors(files: list[Row]) -> tuple[float | None, float]:
    """Of the inference, and of the whole."""
    duration = math.fsum(file["duration"] for file in files)
    inference = [file["inference"] for file in files]
    return None if None in inference else math.fsum(inference) / duration, math.fsum(
        file["seconds"] for file in files
    ) / duration


def quality_table(rows: dict[str, Row]) -> str:
    noisy = {file["file"]: Score(file["values"]) for file in rows[NOISY]["files"]}
    measured = {name: row["files"] for name, row in rows.items() if "files" in row}
    cells = []
    for name, files in measured.items():
        values = summarise([improvement(Score(file["values"]), noisy[file["file"]]).values for file in files])
        rtf = (
            ["-", "-"]
            if name in (NOISY, ORACLE)
            else ["-" if factor is None else f"{factor:.3f}" for factor in real_time_factors(files)]
        )
        gains = ["-" if name == NOISY else str(values.get(f"{metric}_gain", "-")) for metric in WAVE_METRICS]
        cells.append([name, *(str(values.get(metric, "-")) for metric in WAVE_METRICS), *gains, *rtf])
    titles = [
        *(METRICS[metric].title for metric in WAVE_METRICS),
        *(METRICS[f"{metric}_gain"].heading for metric in WAVE_METRICS),
        "RTF, inference",
        "RTF, whole",
    ]
    return f"{len(noisy)} pairs, 1 thread\n\n" + markdown(["", *titles], cells) + left_out(rows)


def curve_table(rows: dict[str, Row]) -> str:
    cells = []
    for name, row in rows.items():
        if "files" in row:
            output = np.array([file["output_db"] for file in row["files"]])
            steps = [np.diff(values[..., :-1]) for values in (output.mean(0), output)]  # not the one to clean speech
            rises = [f"{step.min():.1f} to {step.max():.1f}" for step in steps]
            cells.append([name, *(f"{value:.1f}" for value in output.mean(0)), *rises])
    levels = ["clean" if math.isinf(level) else f"{level}" for level in LEVELS_DB]
    title = "Output SI-SDR in dB by input SI-SDR in dB, and its rise per step of 5 dB\n\n"
    return title + markdown(["", *levels, "rise of the mean", "rise of one recording"], cells) + left_out(rows)


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    return (
        "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, ["---", *["---:"] * (len(titles) - 1)], *rows])
        + "\n"
    )


def left_out(rows: dict[str, Row]) -> str:
    reasons = [f"* {name}: {row['left_out']}\n" for name, row in rows.items() if "left_out" in row]
    return "\nLeft out:\n\n" + "".join(reasons) if reasons else ""


def quality_picture(rows: dict[str, Row], path: Path) -> None:
    """Quality against RTF: a colour for each prior, the methods by name, the references as lines."""
    measured = {name: row["files"] for name, row in rows.items() if "files" in row}
    of_prior = {name: name.split(", ", 1) for name in measured if ", " in name}
    priors = list(dict.fromkeys(prior for _, prior in of_prior.values()))
    figure, panels = pyplot.subplots(1, len(PICTURED), figsize=(17, 8), layout="constrained")
    labels = []
    for panel, metric in zip(panels, PICTURED, strict=True):
        means = {name: summarise([file["values"] for file in files])[metric].mean for name, files in measured.items()}
        panel.set(
            xscale="log",
            xlabel="real-time factor, 1 thread (STFT, inference, resynthesis)",
            ylabel=METRICS[metric].title,
        )
        for number, prior in enumerate(priors):
            for name, (_, of) in of_prior.items():
                if of == prior:
                    label = prior if name == next(n for n in of_prior if of_prior[n][1] == prior) else None
                    panel.plot(
                        real_time_factors(measured[name])[1],
                        means[name],
                        "os^Dv"[number % 5],
                        color=f"C{number}",
                        label=label,
                    )
        panel.margins(x=0.3, y=0.08)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        for name in measured.keys() - of_prior.keys():
            panel.axhline(
                means[name], color="0.6", linewidth=0.8, linestyle="-" if name in (NOISY, ORACLE) else ":", zorder=0
            )
        named = [
            (
                real_time_factors(measured[name])[1],
                means[name],
                of_prior[name][0],
                f"C{priors.index(of_prior[name][1])}",
            )
            for name in of_prior
        ]
        left = panel.get_xlim()[0]
        labels.append(named + [(left, means[name], name, "0.35") for name in measured.keys() - of_prior.keys()])
    if priors:
        panels[0].legend(loc="best", fontsize=8)
    figure.canvas.draw()
    for panel, of_panel in zip(panels, labels, strict=True):
        label_apart(panel, of_panel)
    save(figure, path)


def label_apart(panel: Any, labels: list[tuple[float, float, str, str]]) -> None:
    """Text right above each (x, y) of a panel that is drawn, moved up until it covers no point and no other text."""
    points = panel.transData.transform([(x, y) for x, y, _, _ in labels])
    taken = [Bbox.from_extents(*(point - 4), *(point + 4)) for point in points]
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        for height in range(3, 200, 2):
            written = panel.annotate(
                text, (x, y), (5, height), textcoords="offset points", fontsize=7, color=colour, in_layout=False
            )
            box = written.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            written.remove()


def curve_picture(rows: dict[str, Row], path: Path) -> None:
    figure, panel = pyplot.subplots(figsize=(9, 7), layout="constrained")
    positions = [*LEVELS_DB[:-1], LEVELS_DB[-2] + 5]
    panel.plot(positions[:-1], positions[:-1], color="0.6", linewidth=0.8, label="noisy")
    seen: list[float] = []
    for number, (name, row) in enumerate((name, row) for name, row in rows.items() if "files" in row):
        output = [estimate(list(values)) for values in zip(*(file["output_db"] for file in row["files"]), strict=True)]
        means, widths = (np.array([getattr(value, part) for value in output]) for part in ("mean", "half_width"))
        (line,) = panel.plot(positions, means, ".-" if ", " in name else ".:", color=f"C{number % 10}", label=name)
        panel.fill_between(positions, means - widths, means + widths, color=line.get_color(), alpha=0.1, linewidth=0)
        seen.extend(means[:-1])
    panel.set(
        xlabel="input SI-SDR (dB)", ylabel="output SI-SDR (dB), 95 % interval", ylim=(min(seen) - 3, max(seen) + 5)
    )
    panel.set_xticks(positions, [*(f"{level}" for level in LEVELS_DB[:-1]), "clean"])
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    with atomic_path(path) as place:
        figure.savefig(place, dpi=120, format="png")
    pyplot.close(figure)


def write(path: Path, text: str) -> None:
    with atomic_path(path) as place:
        place.write_text(text)


if __name__ == "__main__":
    main()
