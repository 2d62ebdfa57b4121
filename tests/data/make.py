"""How the frozen artefacts beside this file were made: by the code of version 0.1.0, out of synthetic sound alone.

    PYTHONPATH=TREE_OF_VERSION_0.1.0 OMP_NUM_THREADS=1 python tests/data/make.py tests/data

They stand for what users have on their disks, so they are never made anew: a newer version has to read these very
files. The script says how they came about; only what measures is still called, by tests/test_frozen.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import audiovae
from audiovae import settings

RATE, N_FFT, HOP = 8000, 64, 16
DIGITS, SPEAKERS, INDICES = (
    ("0", "1"),
    ("ann", "bob"),
    (0, 5, 8, 9),
)  # one recording for testing, one for validation, two for training
SECONDS = 0.25
MEASURED_SAMPLES = 1000  # of the corpus: 63 frames
LABELS = {"digit": DIGITS, "speaker": SPEAKERS}
CLASSIC: dict[str, Any] = {"residual": False, "activation": "tanh"}
MODELS: dict[str, settings.ModelSettings] = {
    "frame": settings.FrameVAESettings(latent_dim=4, hidden=(8,), **CLASSIC),
    "frame-vmf": settings.FrameVAESettings(latent_dim=4, hidden=(8,), **CLASSIC, latent="von-mises-fisher"),
    "frame-dirichlet": settings.FrameVAESettings(latent_dim=4, hidden=(8,), **CLASSIC, latent="dirichlet"),
    "autoencoder": settings.AutoencoderSettings(latent_dim=4, hidden=(8,), **CLASSIC),
    "context": settings.ContextVAESettings(latent_dim=4, width=8, decoder_layers=1),
    "dynamic-labels": settings.DynamicVAESettings(latent_dim=4, width=8, prior_width=8, labels=LABELS),
    "sequence-labels": settings.SequenceVAESettings(latent_dim=4, width=8, hidden=8, blocks=1, labels=LABELS),
    "label": settings.LabelVAESettings(latent_dim=4, width=8, blocks=1, labels={"digit": DIGITS}),
    "rvae": settings.RVAESettings(latent_dim=4, width=8),
    "dkf": settings.DKFSettings(latent_dim=4, width=8, features=8, emission=(8,)),
    "dsae": settings.DSAESettings(latent_dim=4, sequence_dim=3, width=8, emission=(8,)),
    "storn": settings.STORNSettings(latent_dim=4, width=8, features=8),
    "vrnn": settings.VRNNSettings(latent_dim=4, width=8, features=8),
    "srnn-own-past": settings.SRNNSettings(latent_dim=4, width=8, features=8, own_past=True),
}
RUN = settings.TrainingSettings(
    steps=8, batch_frames=64, segment_frames=16, validate_every=4, log_every=2, averaging=0.5, learning_rate=0.01
)


def measure(prior: audiovae.AudioVAE, wave: Tensor) -> dict[str, float]:
    """Numbers that stand for all that a model computes: encoder, decoder along the mean path, bound, labels.

    Args:
        wave: `[sample]`; a conditional prior takes it for "0" by "ann".
    """
    labels = prior.vae.conditions.labels
    condition = prior.condition(**{name: classes[0] for name, classes in labels.items()}) if labels else None
    spectrogram, _ = prior.analyse(wave)
    torch.manual_seed(0)
    power = spectrogram.abs().square()  # version 0.1.0 took the spectrogram itself
    numbers = {"bound": audiovae.elbo(prior.vae, power, condition).bound.mean()}
    encoded = prior.encode(wave, condition=condition)
    numbers["latents"] = encoded.inference.latents.abs().mean()
    if isinstance(prior.vae, audiovae.LabelVAE):
        numbers["probability"] = prior.vae.predict(power)[0, 0]
    else:
        log_psd = prior.decode(encoded, condition=condition).log()
        numbers |= {"log_psd": log_psd.mean(), "log_psd_deviation": log_psd.std(), "last_log_psd": log_psd[-1, -1]}
    return {name: float(number) for name, number in numbers.items()}


@torch.no_grad()
def measure_latents(prior: audiovae.AudioVAE, latents: Tensor) -> dict[str, float]:
    """Numbers that stand for latents, `[channel, frame, latent]`, and for what the decoder makes of them."""
    return {"latents": float(latents.abs().mean()), "log_psd": float(prior.psd(latents).log().mean())}


def main(target: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        make_corpus(Path(place) / "recordings", target / "corpus")
    corpus = audiovae.PackedCorpus(target / "corpus")
    wave = torch.from_numpy(corpus.wave(corpus.utterances[0])[:MEASURED_SAMPLES])
    numbers: dict[str, Any] = {
        "corpus": {"fingerprint": corpus.fingerprint(), "samples": checksum(corpus)},
        "models": {},
    }
    priors = {name: untrained(sizes, wave) for name, sizes in MODELS.items()}
    from audiovae.saved import model_hash

    for name, prior in priors.items():
        card = f"# {name}\n\nA frozen artefact of audiovae's tests, with random weights.\n"
        prior.save_pretrained(target / "models" / name, card)
        with torch.no_grad():
            numbers["models"][name] = {"hash": model_hash(prior), **measure(prior, wave)}
    numbers["latents"] = make_latents({name: priors[name] for name in ("frame", "dsae")}, wave, target / "latents")
    make_runs(corpus, target / "runs")
    (target / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")


def checksum(corpus: audiovae.PackedCorpus) -> str:
    """SHA-256 of all waves, one after another."""
    return hashlib.sha256(b"".join(corpus.wave(utterance).tobytes() for utterance in corpus.utterances)).hexdigest()


def untrained(sizes: settings.ModelSettings, wave: Tensor) -> audiovae.AudioVAE:
    """A model whose weights are all random, so that none goes unnoticed."""
    stft = audiovae.STFT(N_FFT, HOP)
    kind = getattr(audiovae, type(sizes).__name__.removesuffix("Settings"))
    prior = audiovae.AudioVAE(stft, kind(stft.n_freqs, sizes), RATE).eval()
    prior.vae.calibrate(prior.analyse(wave)[0].abs().square())
    with torch.no_grad():
        for weights in prior.vae.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return prior


def make_corpus(folder: Path, target: Path) -> None:
    """A harmonic tone in noise for each voice and digit, in the layout of the free spoken digits."""
    import soundfile

    from audiovae.corpora.packed import read_index, write_index

    folder.mkdir()
    generator = np.random.default_rng(0)
    time = np.arange(round(SECONDS * RATE)) / RATE
    for digit in DIGITS:
        for voice, speaker in enumerate(SPEAKERS):
            for index in INDICES:
                pitch_hz = 110 * (1 + voice) + 3 * index
                formant = 3 * (1 + int(digit))
                tone = sum(np.sin(2 * np.pi * k * pitch_hz * time) / (1 + abs(k - formant)) for k in range(1, 12))
                wave = 0.1 * tone * np.sin(np.pi * time / SECONDS) + 0.003 * generator.standard_normal(len(time))
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", wave, RATE)
    audiovae.prepare(folder, target, audiovae.PrepareSettings(sample_rate=RATE, trim=False))
    header, utterances, left_out = read_index(target)
    write_index(target, replace(header, source="recordings"), utterances, left_out)  # not the folder of this machine


def make_latents(priors: dict[str, audiovae.AudioVAE], wave: Tensor, target: Path) -> dict[str, Any]:
    import soundfile
    from audiovae.recordings import encode_file

    target.mkdir()
    numbers = {}
    with tempfile.TemporaryDirectory() as place:
        soundfile.write(Path(place, "wave.wav"), wave.numpy(), RATE)
        for name, prior in priors.items():
            encoded = encode_file(prior, Path(place, "wave.wav"))
            encoded.save(target / f"{name}.npz")
            numbers[name] = {"level": encoded.level, **measure_latents(prior, encoded.latents)}
    return numbers


def make_runs(corpus: audiovae.PackedCorpus, target: Path) -> None:
    """The same run twice: to its end, and killed after its first checkpoint."""
    for name in ("finished", "halfway"):
        torch.manual_seed(1)
        stft = audiovae.STFT(N_FFT, HOP)
        prior = audiovae.AudioVAE(stft, audiovae.FrameVAE(stft.n_freqs, MODELS["frame"]), RATE)  # type: ignore[arg-type]
        progress = kill if name == "halfway" else lambda _: None
        with contextlib.suppress(KeyboardInterrupt):
            audiovae.fit(prior, corpus, corpus, target / name, RUN, progress=progress)
        for curves in (target / name / "training").glob("events.*"):
            curves.unlink()  # they carry the name of the machine


def kill(progress: Any) -> None:
    if progress.elbo is not None:
        raise KeyboardInterrupt


if __name__ == "__main__":
    main(Path(sys.argv[1]))
