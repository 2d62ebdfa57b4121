"""What is no clean speech? Scores of frames by models that have heard clean speech alone: ROC-AUC by kind of noise, and
pictures.

    python recipes/anomaly/anomaly.py SPEECH SPEAKERS.txt NOISE MODEL... -o FOLDER [--folds 2 3 4 5]

SPEECH is a LibriSpeech tree of which the named speakers are scored, NOISE a folder of folders of sound, one a kind,
with ESC-10's file names (FOLD-...). Frames within 30 dB of the loudest of their recording count, each recording at unit
level.

Scores, higher meaning stranger: for a density of the STFT, how much less likely the frame is than under the best
spectrum for it, log N_C(x; 0, |x|^2) - bound = d_IS(|x|^2, PSD) + KL, which does not depend on the level ("excess"),
beside the plain -bound ("nll"); for other likelihoods minus what the model is trained on, KL included ("error"). The
mean log power of a frame, which knows nothing of speech, stands beside them as the reference that a model has to beat.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from audiovae import VARIANCE_FLOOR, AudioVAE, active_level, audio, elbo, power
from audiovae.cli.progress import bar, print_table

mpl.use("Agg")
import matplotlib.pyplot as plt

Scores = dict[str, NDArray[np.float64]]
REFERENCE = "mean log power"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("speakers", type=Path)
    parser.add_argument("noise", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", default=["2", "3", "4", "5"], help="folds of the noise that are scored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speakers = set(options.speakers.read_text().split())
    speech = sorted(file for file in options.speech.rglob("*.flac") if file.parts[-3] in speakers)
    kinds = sorted(folder for folder in options.noise.iterdir() if folder.is_dir())
    noise = {
        folder.name: sorted(f for f in folder.iterdir() if f.name.split("-")[0] in options.folds) for folder in kinds
    }
    curves, rows = {}, []
    with bar(len(options.models) * (len(speech) + sum(map(len, noise.values())))) as advance:
        for model in options.models:
            prior = AudioVAE.from_pretrained(model)
            usual = gather(prior, speech, advance)
            strange = {kind: gather(prior, files, advance) for kind, files in noise.items()}
            for name in usual if model is options.models[0] else [score for score in usual if score != REFERENCE]:
                every = np.concatenate([scores[name] for scores in strange.values()])
                of_kinds = [auc(usual[name], scores[name]) for scores in strange.values()]
                title = "no model" if name == REFERENCE else Path(model).name
                curves[f"{title}, {name}"] = (usual[name], every)
                rows.append([title, name, f"{auc(usual[name], every):.3f}", *(f"{value:.3f}" for value in of_kinds)])
    n_usual, n_strange = (len(scores) for scores in next(iter(curves.values())))
    n_noises = sum(map(len, noise.values()))
    title = f"ROC-AUC by frame: {n_usual} frames of {len(speech)} utterances, {n_strange} frames of {n_noises} noises"
    print_table(["model", "score", "all", *noise], rows, title)
    options.output.mkdir(parents=True, exist_ok=True)
    draw_curves(curves, options.output / "roc.png")
    draw_timeline(
        AudioVAE.from_pretrained(options.models[0]),
        speech[0],
        {kind: files[0] for kind, files in noise.items()},
        options.output,
    )


def gather(prior: AudioVAE, files: list[Path], advance: object) -> Scores:
    """Scores of all active frames of some files."""
    collected: dict[str, list[NDArray[np.float64]]] = {}
    for file in files:
        torch.manual_seed(0)
        wave = audio.read(file, prior.sample_rate)[0].mean(0)
        scores, active = score(prior, wave / (active_level(wave, prior.sample_rate) or 1.0))
        for name, values in scores.items():
            collected.setdefault(name, []).append(values[active])
        advance()  # type: ignore[operator]
    return {name: np.concatenate(parts) for name, parts in collected.items()}


@torch.no_grad()
def score(prior: AudioVAE, wave: NDArray[np.float32]) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores of every frame of a wave at unit level, and which frames are active."""
    spectrogram = prior.stft(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)))
    frame_power = power(spectrogram)
    energy = frame_power.sum(-1)
    active = (energy > 1e-3 * energy.max()).numpy()
    log_power = torch.log(frame_power + VARIANCE_FLOOR)
    reference = {REFERENCE: log_power.mean(-1).double().numpy()}
    nll = -elbo(prior.vae, frame_power).bound
    if not prior.vae.is_density:
        return {"error": nll.double().numpy(), **reference}, active
    best = (-math.log(math.pi) - 1 - log_power).sum(-1)
    return {"excess": (best + nll).double().numpy(), "nll": nll.double().numpy(), **reference}, active


def auc(usual: NDArray[np.float64], strange: NDArray[np.float64]) -> float:
    """Probability that a strange frame scores higher than a usual one (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([usual, strange]))[len(usual) :]
    return float((ranks.sum() - len(strange) * (len(strange) + 1) / 2) / (len(usual) * len(strange)))


def draw_curves(curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> None:
    """ROC curves, one a model and score."""
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    for name, (usual, strange) in curves.items():
        thresholds = np.quantile(np.concatenate([usual, strange]), np.linspace(1, 0, 400))
        false = [(usual > threshold).mean() for threshold in thresholds]
        true = [(strange > threshold).mean() for threshold in thresholds]
        axes.plot(false, true, label=f"{name}: {auc(usual, strange):.3f}", linewidth=1)
    axes.set(
        xlabel="speech frames called strange",
        ylabel="noise frames found",
        title="Noise found by models of clean speech",
    )
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_timeline(prior: AudioVAE, speech: Path, noises: dict[str, Path], folder: Path) -> None:
    """The score along three seconds of speech and one of each kind of noise."""
    rate = prior.sample_rate

    def second(file: Path, seconds: float) -> NDArray[np.float32]:
        wave = audio.read(file, rate)[0].mean(0)
        level = active_level(wave, rate) or 1.0
        start = int(np.argmax(np.convolve(wave**2, np.ones(rate // 10), "same")))
        start = min(max(0, start - rate // 4), max(0, len(wave) - int(seconds * rate)))
        return wave[start : start + int(seconds * rate)] / np.float32(level)

    parts = {"speech": second(speech, 3.0), **{kind: second(file, 1.0) for kind, file in noises.items()}}
    scores, _ = score(prior, np.concatenate(list(parts.values())))
    name, values = next(iter(scores.items()))
    figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
    axes.plot(np.arange(len(values)) * prior.stft.hop_length / rate, values, linewidth=0.8)
    at = 0.0
    for kind, wave in parts.items():
        axes.axvline(at, color="grey", linewidth=0.5)
        axes.text(at + 0.05, values.max(), kind, fontsize=8, va="top")
        at += len(wave) / rate
    axes.set(xlabel="s", ylabel=f"{name} (nats per frame)", title="Strangeness along speech and noises")
    figure.savefig(folder / "timeline.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
