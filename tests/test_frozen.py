"""What version 0.1.0 left on disk keeps working: see tests/data/make.py. Nothing here is ever made anew to please newer
code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from data.make import HOP, MEASURED_SAMPLES, MODELS, N_FFT, RATE, RUN, checksum, measure, measure_latents

from audiovae import STFT, AudioVAE, FrameVAE, PackedCorpus, fit
from audiovae.corpora.packed import FORMAT_VERSION, INDEX
from audiovae.errors import CorpusError, TrainingError
from audiovae.files import LatentsFile, decode_file

FROZEN = Path(__file__).parent / "data"
NUMBERS = json.loads((FROZEN / "numbers.json").read_text())
NUMBERS_OF = NUMBERS["models"]


@pytest.fixture
def corpus(tmp_path: Path) -> PackedCorpus:
    """The frozen corpus as one of today's: format 1 is refused, as its levels are of another band."""
    today = shutil.copytree(FROZEN / "corpus", tmp_path / "corpus")
    index = (today / INDEX).read_text().replace('"format_version": 1', f'"format_version": {FORMAT_VERSION}', 1)
    digest = {"index_sha256": hashlib.sha256(index.encode()).hexdigest()}
    (today / INDEX).write_text(index + json.dumps(digest) + "\n")
    return PackedCorpus(today)


@pytest.fixture
def wave(corpus: PackedCorpus) -> torch.Tensor:
    """`[sample]`, the sound of which the stored numbers are."""
    return torch.from_numpy(corpus.wave(corpus.utterances[0])[:MEASURED_SAMPLES])


def test_every_frozen_model_is_tested() -> None:
    assert sorted(path.name for path in (FROZEN / "models").iterdir()) == sorted(NUMBERS_OF)


@pytest.mark.parametrize("name", NUMBERS_OF)
def test_a_frozen_model_loads_and_says_what_it_said(name: str, wave: torch.Tensor) -> None:
    prior = AudioVAE.from_pretrained(FROZEN / "models" / name)
    expected = dict(NUMBERS_OF[name])
    assert prior.model_hash() == expected.pop("hash")
    with torch.no_grad():
        assert measure(prior, wave) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NUMBERS_OF)
def test_a_frozen_model_is_saved_as_the_same_model(name: str, tmp_path: Path) -> None:
    AudioVAE.from_pretrained(FROZEN / "models" / name).save_pretrained(tmp_path)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (FROZEN / "models" / name / file).read_bytes()


@pytest.mark.parametrize("name", ["frame", "dsae"])
def test_frozen_latents_are_decoded(name: str, wave: torch.Tensor, tmp_path: Path) -> None:
    prior = AudioVAE.from_pretrained(FROZEN / "models" / name)
    path = FROZEN / "latents" / f"{name}.npz"
    encoded = LatentsFile.load(path)
    assert encoded.model == prior.model_hash()
    assert bool(encoded.sequence) == (name == "dsae")
    found = {"level": encoded.level, **measure_latents(prior, encoded.latents)}
    assert found == pytest.approx(NUMBERS["latents"][name], rel=1e-4)
    torch.manual_seed(0)
    decode_file(prior, path, tmp_path / "out.wav", "sample")
    decoded, rate = soundfile.read(tmp_path / "out.wav")
    assert (rate, len(decoded)) == (RATE, len(wave))
    assert float((decoded**2).mean() / (wave**2).mean()) == pytest.approx(1, abs=0.9)  # its model is untrained


def test_the_frozen_corpus_is_refused_with_the_remedy() -> None:
    with pytest.raises(CorpusError, match=r"older audiovae \(format 1\).*; prepare the corpus again with --overwrite"):
        PackedCorpus(FROZEN / "corpus")


def test_the_frozen_corpus_holds_the_same_sound(corpus: PackedCorpus) -> None:
    assert checksum(corpus) == NUMBERS["corpus"]["samples"]
    assert corpus.fingerprint() == NUMBERS["corpus"]["fingerprint"]
    assert corpus.header.sample_rate == RATE
    assert {name: len(corpus.split(name)) for name in ("train", "validation", "test")} == {
        "train": 8,
        "validation": 4,
        "test": 4,
    }
    assert (corpus.classes("digit"), corpus.classes("speaker")) == (("0", "1"), ("ann", "bob"))


def test_the_model_of_a_finished_run_loads(wave: torch.Tensor) -> None:
    prior = AudioVAE.from_pretrained(FROZEN / "runs" / "finished")
    assert prior.model_hash() == json.loads((FROZEN / "runs" / "finished" / "config.json").read_text())["config_sha256"]
    assert torch.isfinite(prior.log_likelihood(wave)).all()


@pytest.mark.parametrize("name", ["finished", "halfway"])
def test_a_run_goes_on_to_its_end_or_is_refused(name: str, corpus: PackedCorpus, tmp_path: Path) -> None:
    folder = shutil.copytree(FROZEN / "runs" / name, tmp_path / name)
    stft = STFT(N_FFT, HOP)
    prior = AudioVAE(stft, FrameVAE(stft.n_freqs, MODELS["frame"]), RATE)
    steps: list[int] = []
    refusal = None
    try:
        fit(prior, corpus, corpus, folder, RUN, progress=lambda progress: steps.append(progress.step))
    except TrainingError as error:
        refusal = str(error)
    if refusal is not None:
        assert "checkpoint" in refusal
        assert "--overwrite" in refusal
        return
    assert steps == ([6, 8, 8] if name == "halfway" else [])  # the first half is not done again
    finished = AudioVAE.from_pretrained(FROZEN / "runs" / "finished").state_dict()
    for key, weights in AudioVAE.from_pretrained(folder).state_dict().items():
        torch.testing.assert_close(weights, finished[key], rtol=1e-3, atol=1e-4)
