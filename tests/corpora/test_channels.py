"""All microphones of recordings, packed side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import speech_like

from audiovae import PackedCorpus, PrepareSettings, TrainingSettings, fit, prepare
from audiovae.cli.main import main
from audiovae.corpora.batches import SegmentSampler
from audiovae.errors import CorpusError, TrainingError
from audiovae.level import active_level
from audiovae.prior import AudioVAE

RATE = 16000
ALL = PrepareSettings(channels="all", trim=False, validation=0.25)


def wave_of(i: int, n_channels: int = 3, rate: int = RATE) -> np.ndarray:
    """Of each microphone another delay and gain, `[channel, sample]`."""
    wave = 0.4 * speech_like(0.8 + 0.1 * i, 100 + 20 * i, seed=i, rate=rate)
    return np.stack([0.8**c * np.roll(wave, 5 * c) for c in range(n_channels)])


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four speakers, one recording of three microphones each."""
    folder = tmp_path_factory.mktemp("arrays")
    for i in range(4):
        (folder / f"s{i}").mkdir()
        soundfile.write(folder / f"s{i}" / "a.wav", wave_of(i).T, RATE, "FLOAT")
    return folder


def test_every_channel_is_read_back_at_one_scale_and_level(arrays: Path, tmp_path: Path) -> None:
    prepare(arrays, tmp_path / "packed", ALL)
    corpus = PackedCorpus(tmp_path / "packed")
    corpus.verify()
    assert (corpus.n_channels, corpus.header.channels) == (3, "all")
    for i, utterance in enumerate(corpus.utterances):
        expected = wave_of(i)
        wave = corpus.wave(utterance)
        assert wave.shape == expected.shape
        np.testing.assert_allclose(wave, expected, rtol=0, atol=np.abs(expected).max() * (0.5 / 32767 + 2**-23))
        assert utterance.level == pytest.approx(active_level(expected, RATE), rel=1e-4)
    assert (tmp_path / "packed" / "samples.int16").stat().st_size == 6 * sum(u.n_samples for u in corpus.utterances)


def test_channels_are_resampled_and_trimmed_together(tmp_path: Path) -> None:
    rate, silence = 44100, np.zeros((2, 44100))
    (tmp_path / "s").mkdir()
    wave = np.concatenate([silence, wave_of(0, 2, rate), silence], axis=1)
    soundfile.write(tmp_path / "s" / "a.wav", wave.T, rate, "FLOAT")
    prepare(tmp_path / "s", tmp_path / "all", PrepareSettings(channels="all"))
    soundfile.write(tmp_path / "s" / "a.wav", wave[0], rate, "FLOAT")
    prepare(tmp_path / "s", tmp_path / "first")
    both, first = (PackedCorpus(tmp_path / name) for name in ("all", "first"))
    wave_of_first = first.wave(first.utterances[0])
    channel = both.wave(both.utterances[0])[0]
    assert abs(len(channel) - len(wave_of_first)) <= 1024
    n = min(len(channel), len(wave_of_first))
    np.testing.assert_allclose(channel[:n], wave_of_first[:n], atol=1e-3)


def test_a_long_recording_is_packed_like_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", wave_of(0).T, RATE)
    prepare(tmp_path, tmp_path / "held", ALL)
    monkeypatch.setattr("audiovae.audio._HELD_SAMPLES", 0)
    prepare(tmp_path, tmp_path / "again", ALL)
    assert PackedCorpus(tmp_path / "held").fingerprint() == PackedCorpus(tmp_path / "again").fingerprint()


def test_other_numbers_of_channels_are_left_out_and_a_second_run_goes_on(arrays: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    for i in (0, 1):
        (folder / f"s{i}").mkdir(parents=True)
        soundfile.write(folder / f"s{i}" / "a.wav", wave_of(i).T, RATE)
    soundfile.write(folder / "s1" / "stereo.wav", wave_of(2, 2).T, RATE)
    prepared = prepare(folder, tmp_path / "packed", ALL)
    assert [(file.id, file.reason) for file in prepared.left_out] == [
        ("s1/stereo.wav", "has 2 channels, where the corpus has 3")
    ]
    (folder / "s0" / "a.wav").unlink()
    soundfile.write(folder / "s1" / "b.wav", wave_of(3).T, RATE)
    prepared = prepare(folder, tmp_path / "packed", ALL)
    assert (prepared.n_new, len(prepared.left_out)) == (1, 1)
    corpus = PackedCorpus(tmp_path / "packed")
    corpus.verify()
    np.testing.assert_allclose(corpus.wave(corpus.utterances[1]), wave_of(3), atol=5e-5)
    with pytest.raises(CorpusError, match=r"holds a corpus with channels 'all', not 'mean'; --overwrite replaces it"):
        prepare(folder, tmp_path / "packed", PrepareSettings(trim=False))


def test_segments_are_slices_of_all_channels(arrays: Path, tmp_path: Path) -> None:
    prepare(arrays, tmp_path / "packed", ALL)
    corpus = PackedCorpus(tmp_path / "packed")
    sampler = SegmentSampler(corpus, "train", 4000, torch.device("cpu"))
    waves, drawn = sampler.draw(8, seed=0, step=0)
    assert waves.shape == (8, 3, 4000)
    for segment, utterance in zip(waves.numpy(), drawn, strict=True):
        whole = corpus.wave(utterance) / utterance.level
        lags = [np.abs(whole[:, i : i + 4000] - segment).max() for i in range(utterance.n_samples - 3999)]
        assert min(lags) < 1e-5
    n_longest = max(u.n_samples for u in corpus.utterances)
    sampler = SegmentSampler(corpus, "train", n_longest + 500, torch.device("cpu"))
    waves, drawn = sampler.draw(6, seed=0, step=0)
    for segment, utterance in zip(waves.numpy(), drawn, strict=True):
        np.testing.assert_allclose(
            segment[:, : utterance.n_samples], corpus.wave(utterance) / utterance.level, atol=1e-5
        )
        assert not segment[:, utterance.n_samples :].any()


def test_a_model_of_one_channel_refuses_them_by_name(arrays: Path, tmp_path: Path, prior: AudioVAE) -> None:
    prepare(arrays, tmp_path / "packed", ALL)
    corpus = PackedCorpus(tmp_path / "packed")
    with pytest.raises(TrainingError, match=r"packed has recordings of 3 channels, and the model takes one; prepare"):
        fit(prior, corpus, corpus, tmp_path / "model", TrainingSettings(steps=1))


def test_all_channels_of_a_table_on_the_command_line(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"path": str(arrays / f"s{i}" / "a.wav"), "speaker": f"s{i}", "id": f"{i}"} for i in range(4)]
    rows.append({"path": "none.wav", "speaker": "s4", "id": "gone"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["prepare", str(tmp_path / "t.jsonl"), str(tmp_path / "packed"), "--channels", "all", "--json"]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["layout"] == "table"
    assert f"{tmp_path / 't.jsonl'}/gone: left out: no such file" in told.err
    assert PackedCorpus(tmp_path / "packed").n_channels == 3
    with pytest.raises(SystemExit):
        main(["prepare", str(arrays), str(tmp_path / "packed"), "--channels", "some"])
    assert "channels: expected Literal['mean', 'all'], got some" in capsys.readouterr().err
