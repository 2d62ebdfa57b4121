"""What stands below a folder: nothing is passed over in silence, and nothing is packed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speech_like

from audiovae import PrepareSettings, audio, prepare
from audiovae.cli.arguments import find_inputs
from audiovae.corpora.packed import PackedCorpus
from audiovae.errors import CorpusError

RATE = 16000


def store(path: Path, pitch: float = 120, rate: int = RATE, dc: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * speech_like(0.5, pitch, rate=rate) + dc, rate, format="WAV", subtype="FLOAT")
    return path


def ids(packed: Path) -> list[str]:
    return [utterance.id for utterance in PackedCorpus(packed).utterances]


def test_linked_folders_are_followed_and_loops_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    store(corpus / "s1" / "a.wav")
    store(tmp_path / "disk" / "s2" / "b.wav")
    (corpus / "s2").symlink_to(tmp_path / "disk" / "s2")
    (corpus / "s1" / "again").symlink_to(corpus)
    result = prepare(corpus, tmp_path / "packed")
    assert ids(tmp_path / "packed") == ["s1/a.wav", "s2/b.wav"]
    (passed_over,) = result.left_out
    assert (passed_over.id, passed_over.failed) == ("s1/again", False)
    assert "is a link to" in passed_over.reason
    assert [item.name for item in find_inputs([str(corpus)])] == ["s1/a.wav", "s2/b.wav"]
    assert f"{corpus}/s1/again: is a link to {corpus}, which is taken once" in capsys.readouterr().err
    assert len(prepare(corpus, tmp_path / "packed").left_out) == 1


def test_a_file_that_is_found_twice_is_taken_once(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    file = store(corpus / "s1" / "a.wav")
    (corpus / "s1" / "b.wav").symlink_to(file)
    result = prepare(corpus, tmp_path / "packed")
    assert ids(tmp_path / "packed") == ["s1/a.wav"]
    assert [(f.id, f.reason, f.failed) for f in result.left_out] == [
        ("s1/b.wav", "is the same file as s1/a.wav", False)
    ]
    inputs = [str(file), str(corpus / "s1"), str(corpus / "*" / "*.wav")]
    assert [item.source.name for item in find_inputs(inputs)] == ["a.wav", "b.wav"]


@pytest.mark.parametrize("suffix", [".wave", ".WAVE", ".bwf", ".mpga", ".mp2", ".svx", ".voc", ".m4a", ".spx"])
def test_every_suffix_of_sound_is_found(suffix: str, tmp_path: Path) -> None:
    store(tmp_path / f"x{suffix}")
    assert audio.find(tmp_path).files == [tmp_path / f"x{suffix}"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_of_labels_as_a_spreadsheet_saves_it(delimiter: str, encoding: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / "corpus" / "s1" / f"{name}.wav", 120 if name == "a" else 150)
    rows = [["file", "mood"], ["./s1/a.wav", "gay, or so" if delimiter != "," else "gay"], [r"s1\b.wav", "sad"]]
    table = tmp_path / "labels.csv"
    table.write_text("\r\n".join(delimiter.join(row) for row in rows) + "\r\n", encoding=encoding)
    prepare(tmp_path / "corpus", tmp_path / "packed", PrepareSettings(labels=str(table)))
    assert [u.labels["mood"] for u in PackedCorpus(tmp_path / "packed").utterances] == [rows[1][1], "sad"]


def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "corpus" / "s1" / "a.wav")
    table = tmp_path / "labels.csv"
    table.write_text("file,mood\ns1/a.wav,gay\ns1/a.wav,gay\n")
    prepare(tmp_path / "corpus", tmp_path / "packed", PrepareSettings(labels=str(table)))
    table.write_text("file,mood\ns1/a.wav,gay\ns1/a.wav,sad\n")
    with pytest.raises(CorpusError, match=r"says of s1/a\.wav in row 3 something else than before; keep one of"):
        prepare(tmp_path / "corpus", tmp_path / "packed", PrepareSettings(labels=str(table)))


def test_channels_that_cancel_each_other_are_one(tmp_path: Path) -> None:
    wave = 0.5 * speech_like(0.5, 120)
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "corpus" / "a.wav", np.stack([wave, -wave], axis=1), RATE, subtype="FLOAT")
    prepare(tmp_path / "corpus", tmp_path / "packed", PrepareSettings(trim=False))
    corpus = PackedCorpus(tmp_path / "packed")
    np.testing.assert_allclose(corpus.wave(corpus.utterances[0]), wave, atol=2e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-41, 1e-30, 0.0])
def test_what_single_precision_cannot_divide_by_is_silent(scale: float, tmp_path: Path) -> None:
    store(tmp_path / "corpus" / "b.wav")
    wave = (scale * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    soundfile.write(tmp_path / "corpus" / "a.wav", wave, RATE, subtype="FLOAT")
    result = prepare(tmp_path / "corpus", tmp_path / "packed")
    assert [(f.id, f.reason, f.failed) for f in result.left_out] == [("a.wav", "is silent", True)]


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_an_offset_changes_nothing_of_what_is_packed_but_itself(rate: int, tmp_path: Path) -> None:
    for name, dc in (("none", 0.0), ("offset", 0.3)):
        store(tmp_path / name / "a.wav", rate=rate, dc=dc)
        result = prepare(tmp_path / name, tmp_path / f"packed-{name}")
    assert result.n_resampled == (rate != RATE)
    clean, offset = (PackedCorpus(tmp_path / f"packed-{name}").utterances[0] for name in ("none", "offset"))
    assert offset.level == pytest.approx(clean.level, rel=0.01)
    assert abs(offset.n_samples - clean.n_samples) <= 1024
