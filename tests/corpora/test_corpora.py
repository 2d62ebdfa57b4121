"""Finding, checking, packing and drawing recordings."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import chisquare

from audiovae import STFT, PackedCorpus, PrepareSettings, prepare
from audiovae.corpora import packed as packed_module
from audiovae.corpora import prepare as prepare_module
from audiovae.corpora.batches import SegmentSampler, random_equaliser
from audiovae.corpora.items import Item
from audiovae.corpora.layouts import LAYOUTS, assign_splits, recognise, sources, split_by
from audiovae.corpora.packed import Header, LeftOut, Utterance, read_index, write_index
from audiovae.errors import CorpusError

RATE = 16000
CPU = torch.device("cpu")

# ---------------------------------------------------------------------------------------------------------------------
# Layouts: (corpus folder, path below it, speaker, official split or None); a speaker of "" means: left out.

TREES: dict[str, tuple[str, list[tuple[str, str, str | None]]]] = {
    "librispeech": (
        "LibriSpeech",
        [
            ("train-clean-100/103/1240/103-1240-0000.flac", "103", None),
            ("train-clean-360/14/208/14-208-0003.flac", "14", None),
            ("train-other-500/20/205/20-205-0000.flac", "20", None),
            ("dev-clean/84/121123/84-121123-0000.flac", "84", "validation"),
            ("dev-other/116/288045/116-288045-0000.flac", "116", "validation"),
            ("test-clean/61/70968/61-70968-0000.flac", "61", "test"),
            ("test-other/367/130732/367-130732-0000.flac", "367", "test"),
        ],
    ),
    "libritts": (
        "LibriTTS",
        [
            ("train-clean-100/103/1241/103_1241_000000_000001.wav", "103", None),
            ("train-other-500/20/205/20_205_000003_000002.wav", "20", None),
            ("dev-clean/84/121123/84_121123_000007_000001.wav", "84", "validation"),
            ("test-other/367/130732/367_130732_000004_000000.wav", "367", "test"),
        ],
    ),
    "vctk": (
        "VCTK-Corpus-0.92",
        [
            ("wav48_silence_trimmed/p225/p225_001_mic1.flac", "p225", None),
            ("wav48_silence_trimmed/p225/p225_001_mic2.flac", "", None),
            ("wav48_silence_trimmed/s5/s5_400_mic1.flac", "s5", None),
            ("wav48_silence_trimmed/s5/s5_400_mic2.flac", "", None),
        ],
    ),
    "voicebank-demand": (
        "VoiceBank-DEMAND",
        [
            ("clean_trainset_28spk_wav/p226_001.wav", "p226", "validation"),
            ("clean_trainset_28spk_wav/p287_424.wav", "p287", "validation"),
            ("clean_trainset_28spk_wav/p227_003.wav", "p227", "train"),
            ("noisy_trainset_28spk_wav/p227_003.wav", "", None),
            ("clean_testset_wav/p232_001.wav", "p232", "test"),
            ("clean_testset_wav/p257_427.wav", "p257", "test"),
            ("noisy_testset_wav/p232_001.wav", "", None),
        ],
    ),
    "ljspeech": (
        "LJSpeech-1.1",
        [
            ("wavs/LJ001-0001.wav", "LJ", "validation"),
            ("wavs/LJ002-0345.wav", "LJ", "validation"),
            ("wavs/LJ003-0012.wav", "LJ", "test"),
            ("wavs/LJ004-0001.wav", "LJ", "train"),
            ("wavs/LJ050-0278.wav", "LJ", "train"),
        ],
    ),
    "wsj0": (
        "wsj0",
        [
            ("si_tr_s/011/011c0201.wv1", "011", "train"),
            ("si_tr_s/01t/01to030v.wv1", "01t", "train"),
            ("si_dt_05/050/050c0103.wv1", "050", "validation"),
            ("si_dt_20/4k0/4k0c030a.wv1", "4k0", "validation"),
            ("si_et_05/440/440c0202.wv1", "440", "test"),
            ("si_et_05/440/440c0202.wv2", "", None),
        ],
    ),
    "timit": (
        "TIMIT",
        [
            ("TRAIN/DR1/FCJF0/SA1.WAV", "FCJF0", None),
            ("TRAIN/DR8/MTCS0/SX352.WAV", "MTCS0", None),
            ("TEST/DR1/FAKS0/SI1573.WAV", "FAKS0", "test"),
        ],
    ),
    "cmu-arctic": (
        "cmu_arctic",
        [
            ("cmu_us_bdl_arctic/wav/arctic_a0001.wav", "bdl", None),
            ("cmu_us_slt_arctic/wav/arctic_b0539.wav", "slt", None),
        ],
    ),
    "jvs": (
        "jvs_ver1",
        [
            ("jvs001/parallel100/wav24kHz16bit/VOICEACTRESS100_001.wav", "jvs001", None),
            ("jvs001/nonpara30/wav24kHz16bit/BASIC5000_0025.wav", "jvs001", None),
            ("jvs100/parallel100/wav24kHz16bit/VOICEACTRESS100_100.wav", "jvs100", None),
            ("jvs001/whisper10/wav24kHz16bit/BASIC5000_2315.wav", "", None),
            ("jvs001/falset10/wav24kHz16bit/VOICEACTRESS100_001.wav", "", None),
        ],
    ),
    "jsut": (
        "jsut_ver1.1",
        [
            ("basic5000/wav/BASIC5000_0001.wav", "basic5000", "train"),
            ("onomatopee300/wav/ONOMATOPEE300_300.wav", "onomatopee300", "train"),
            ("loanword128/wav/LOANWORD128_001.wav", "loanword128", "train"),
            ("voiceactress100/wav/VOICEACTRESS100_001.wav", "voiceactress100", "validation"),
            ("travel1000/wav/TRAVEL1000_1000.wav", "travel1000", "test"),
        ],
    ),
    "free-spoken-digits": (
        "free-spoken-digit-dataset",
        [
            ("recordings/0_jackson_0.wav", "jackson", "test"),
            ("recordings/9_theo_4.wav", "theo", "test"),
            ("recordings/3_theo_5.wav", "theo", "validation"),
            ("recordings/3_yweweler_7.wav", "yweweler", "validation"),
            ("recordings/7_jackson_8.wav", "jackson", "train"),
            ("recordings/7_nicolas_49.wav", "nicolas", "train"),
        ],
    ),
}  # fmt: skip

OTHER_SPELLINGS = [
    ("vctk", "VCTK-Corpus/wav48/p225/p225_001.wav", "p225", None),  # release 0.80
    ("wsj0", "csr_1/11-1.1/wsj0/si_tr_s/011/011c0201.wv1", "011", "train"),  # as on the discs
    ("wsj0", "wsj0_wav/si_et_20/440/440o0301.wav", "440", "test"),  # converted
    ("timit", "timit/train/dr1/fcjf0/sa1.wav", "fcjf0", None),
    ("timit", "data/TEST/DR3/MMDM2/SX94.WAV.wav", "MMDM2", "test"),  # converted
    ("libritts", "LibriTTS_R/test-clean/61/70968/61_70968_000003_000000.wav", "61", "test"),
    ("voicebank-demand", "DS_10283_2791/clean_trainset_56spk_wav/p234_001.wav", "p234", "train"),
    ("voicebank-demand", "voicebank/clean_testset_wav_16k/p232_001.wav", "p232", "test"),
    ("cmu-arctic", "ARCTIC/cmu_us_awb_arctic/wav/arctic_a0593.wav", "awb", None),
]


def test_every_layout_has_a_tree_here() -> None:
    assert TREES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_corpus_is_recognised_with_its_speakers_and_official_splits(name: str) -> None:
    root, rows = TREES[name]
    folder = Path("corpora") / root
    recognised, found = sources(folder, [folder / path for path, _, _ in rows])
    assert recognised == name
    by_id = {source.id: source for source in found}
    assert {path: (by_id[path].speaker, by_id[path].split or "train") for path, speaker, _ in rows if speaker} == {
        path: (speaker, split or "train") for path, speaker, split in rows if speaker
    }
    assert {id_ for id_, source in by_id.items() if source.left_out} == {
        path for path, speaker, _ in rows if not speaker
    }


@pytest.mark.parametrize(("name", "path", "speaker", "split"), OTHER_SPELLINGS)
def test_other_spellings_of_a_corpus_are_recognised(name: str, path: str, speaker: str, split: str | None) -> None:
    recognised, (source,) = sources(Path("corpora"), [Path("corpora") / path])
    assert (recognised, source.speaker, source.split or "train") == (name, speaker, split or "train")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("timit", "wsj0")])
def test_one_part_of_a_corpus_is_recognised_by_its_own_name(name: str) -> None:
    root, rows = TREES[name]
    part, path = rows[0][0].split("/", 1)
    recognised, (source,) = sources(Path(root) / part, [Path(root) / part / path])
    assert (recognised, source.speaker, source.split) == (name, *rows[0][1:])


def test_wsj0_is_recognised_where_every_take_has_two_microphones() -> None:
    takes = [f"wsj0/si_tr_s/011/011c02{take:02d}" for take in range(1, 5)]
    assert recognise([take + suffix for take in takes for suffix in (".wv1", ".wv2")]) == "wsj0"


def test_a_folder_of_other_names_takes_its_first_folders_as_speakers() -> None:
    folder = Path("mine")
    name, found = sources(folder, [folder / path for path in ("anna/a/1.wav", "anna/2.wav", "ben/1.flac", "lone.wav")])
    assert name == "folder"
    assert {source.id: source.speaker for source in found} == {
        "anna/a/1.wav": "anna", "anna/2.wav": "anna", "ben/1.flac": "ben", "lone.wav": "lone.wav",
    }  # fmt: skip


def test_files_beside_a_named_layout_are_left_out_with_the_reason() -> None:
    folder = Path("LibriSpeech")
    _, found = sources(
        folder, [folder / "dev-clean/84/121123/84-121123-0000.flac", folder / "intro.mp3"], "librispeech"
    )
    assert [source.left_out for source in found] == [None, "not part of the librispeech layout"]


def test_an_unknown_layout_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CorpusError, match=r"unknown layout 'libri'; known are auto, folder, librispeech, .*jsut"):
        sources(Path("x"), [Path("x/a.wav")], "libri")


def _sources(**speakers: str | None) -> list[Item]:
    return [
        Item(f"{name}/{i}.wav", Path(f"{name}/{i}.wav"), speaker=name, split=split)
        for name, split in speakers.items()
        for i in range(2)
    ]


def _splits(recordings: list[Item]) -> dict[str, set[str | None]]:
    return {
        source.speaker: {other.split for other in recordings if other.speaker == source.speaker}
        for source in recordings
    }


def test_a_speaker_in_two_official_splits_is_refused() -> None:
    folder = Path("LibriSpeech")
    paths = [
        "dev-clean/84/121123/84-121123-0000.flac",
        "train-clean-100/84/1/84-1-0000.flac",
        "dev-clean/85/1/85-1-0000.flac",
    ]
    name, found = sources(folder, [folder / path for path in paths])
    with pytest.raises(CorpusError, match=r"speaker 84 is in the splits validation and train"):
        assign_splits(found, name, 0.1, frozenset(), frozenset())


def test_a_corpus_of_one_voice_is_split_by_chapter() -> None:
    root, rows = TREES["ljspeech"]
    name, found = sources(Path(root), [Path(root) / path for path, _, _ in rows])
    splits = {source.id: source.split for source in assign_splits(found, name, 0.1, frozenset(), frozenset())}
    assert splits == {path: split for path, _, split in rows}


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("voicebank-demand", [f"clean_trainset_56spk_wav/p{speaker}_001.wav" for speaker in (234, 237, 238, 241)]),
        ("wsj0", [f"si_tr_s/{speaker}/{speaker}c0201.wv1" for speaker in ("011", "012", "013", "014")]),
    ],
)
def test_training_speakers_are_held_out_where_no_official_validation_part_is_there(name: str, paths: list[str]) -> None:
    layout, found = sources(Path(name), [Path(name) / path for path in paths])
    splits = [source.split for source in assign_splits(found, layout, 0.25, frozenset(), frozenset())]
    assert sorted(map(str, splits)) == ["train", "train", "train", "validation"]


def test_named_speakers_come_before_official_splits_and_hashes() -> None:
    recordings = _sources(a="train", b="validation", c=None, d=None, e="test")
    splits = _splits(assign_splits(recordings, "folder", 0.5, frozenset("ca"), frozenset("b")))
    assert splits == {"a": {"validation"}, "b": {"test"}, "c": {"validation"}, "d": {"train"}, "e": {"test"}}


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        ("zed", "a", "zed: is named as a validation or test speaker"),
        ("a", "a", "a: is named as a validation and as a test speaker"),
    ],
)
def test_a_named_speaker_must_exist_and_have_one_role(validation: str, test: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        assign_splits(_sources(a=None, b=None), "folder", 0.1, frozenset([validation]), frozenset([test]))


@pytest.mark.parametrize(
    ("n_speakers", "fraction", "n_held_out"), [(20, 0.25, 5), (10, 0.1, 1), (8, 0.01, 1), (5, 0.0, 0), (1, 0.5, 0)]
)
def test_the_share_of_speakers_that_is_held_out(n_speakers: int, fraction: float, n_held_out: int) -> None:
    recordings = _sources(**dict.fromkeys((f"s{i}" for i in range(n_speakers)), None))
    splits = _splits(assign_splits(recordings, "folder", fraction, frozenset(), frozenset()))
    assert all(len(of_speaker) == 1 for of_speaker in splits.values())
    assert sum(of_speaker == {"validation"} for of_speaker in splits.values()) == n_held_out


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        ([f"takes/{i}.wav" for i in range(10)], "one folder"),
        ([f"{i}.wav" for i in range(10)], "no folder"),
        ([f"cmu_us_bdl_arctic/wav/arctic_a{i:04}.wav" for i in range(10)], "one speaker of a known corpus"),
    ],
)
def test_recordings_are_held_out_where_there_is_one_speaker_only(paths: list[str], name: str) -> None:
    layout, found = sources(Path(name), [Path(name) / path for path in paths])
    group = split_by(found, None)
    assert group == "recording"
    splits = [source.split for source in assign_splits(found, layout, 0.2, frozenset(), frozenset(), group)]
    assert sorted(map(str, splits)) == ["train"] * 8 + ["validation"] * 2
    assert split_by(found, "speaker") == "speaker"  # as asked for


def test_a_group_stands_in_one_split(small: Path, tmp_path: Path) -> None:
    """Sessions of several speakers each; a table that names speakers goes before the folders."""
    ids = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
    rows = [f"{id_},s{i // 2},v{i % 2}" for i, id_ in enumerate(ids)]
    table = _table(tmp_path / "labels.csv", ["file,session,speaker", *rows])
    for group, label in (("session", "session"), ("speaker", "speaker"), (None, "speaker")):
        found = prepare(small, tmp_path / "packed", PrepareSettings(labels=table, group=group, validation=0.4))
        assert found.split_by == label
        splits: dict[str, set[str]] = {}
        for utterance in found.utterances:
            splits.setdefault(utterance.labels[label], set()).add(utterance.split)
        assert all(len(of_group) == 1 for of_group in splits.values())
        assert set.union(*splits.values()) == {"train", "validation"}
        assert {u.speaker for u in found.utterances} == {"v0", "v1"}
    with pytest.raises(CorpusError, match=r"has no label 'day' to split by; it has recording, session, speaker"):
        prepare(small, tmp_path / "packed", PrepareSettings(labels=table, group="day"))
    (tmp_path / "names.txt").write_text("v1\n")
    settings = PrepareSettings(labels=table, group="session", validation_speakers=str(tmp_path / "names.txt"))
    with pytest.raises(CorpusError, match=r"session s0 is in the splits train and validation"):
        prepare(small, tmp_path / "packed", settings)


def test_the_held_out_speakers_do_not_depend_on_the_order_or_number_of_files() -> None:
    recordings = _sources(**dict.fromkeys((f"s{i}" for i in range(20)), None))
    shuffled = random.Random(0).sample(recordings, len(recordings))
    once = [s for s in recordings if Path(s.id).stem == "0"]
    held_out = [
        {
            s.speaker
            for s in assign_splits(list(some), "folder", 0.2, frozenset(), frozenset())
            if s.split == "validation"
        }
        for some in (recordings, shuffled, once)
    ]
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(held_out[0]) == 4


# ---------------------------------------------------------------------------------------------------------------------
# prepare: what stands in the packed corpus

FORMATS = [  # file, container, sample format, rate, channels
    ("a.wav", "WAV", "PCM_16", 16000, 1), ("b.wav", "WAV", "PCM_24", 16000, 2), ("c.wav", "WAV", "PCM_U8", 16000, 1),
    ("d.wav", "WAV", "PCM_32", 16000, 8), ("e.wav", "WAV", "FLOAT", 16000, 1), ("f.wav", "WAV", "DOUBLE", 16000, 3),
    ("g.wav", "WAV", "ULAW", 16000, 1), ("h.wav", "WAV", "ALAW", 16000, 1), ("i.wav", "WAV", "IMA_ADPCM", 16000, 1),
    ("j.flac", "FLAC", "PCM_16", 16000, 1), ("k.flac", "FLAC", "PCM_24", 16000, 2), ("l.ogg", "OGG", "VORBIS", 16000,
    1),
    ("m.opus", "OGG", "OPUS", 16000, 1), ("n.mp3", "MP3", "MPEG_LAYER_III", 16000, 1), ("o.aiff", "AIFF", "PCM_16",
    16000, 1),
    ("p.sph", "NIST", "PCM_16", 16000, 1), ("q.rf64", "RF64", "PCM_16", 16000, 2), ("r.au", "AU", "PCM_16", 16000, 1),
    ("s.caf", "CAF", "PCM_16", 16000, 1), ("t.w64", "W64", "PCM_16", 16000, 1), ("u.WAV", "WAV", "PCM_16", 16000, 1),
    ("v.wv1", "NIST", "PCM_16", 16000, 1),
]  # fmt: skip
RATES = [
    ("8k.wav", 8000),
    ("11k.flac", 11025),
    ("22k.wav", 22050),
    ("44k.ogg", 44100),
    ("48k.opus", 48000),
    ("96k.wav", 96000),
    ("192k.wav", 192000),
]
TONE_HZ, TONE_AMPLITUDE = 440.0, 0.4


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackedCorpus]:
    folder = tmp_path_factory.mktemp("formats")
    generator = np.random.default_rng(1)
    for name, container, subtype, rate, n_channels in FORMATS:
        fade = np.hanning(8000)[:, None]
        soundfile.write(
            folder / name,
            0.3 * fade * generator.standard_normal((8000, n_channels)).clip(-3, 3),
            rate,
            subtype,
            format=container,
        )
    for name, rate in RATES:
        tone = TONE_AMPLITUDE * np.sin(2 * np.pi * TONE_HZ * np.arange(rate) / rate)
        options = {"format": "OGG", "subtype": "OPUS"} if name.endswith(".opus") else {}
        soundfile.write(folder / name, tone, rate, **options)
    target = tmp_path_factory.mktemp("formats-packed")
    prepared = prepare(folder, target, PrepareSettings(trim=False))
    assert not prepared.left_out
    return folder, PackedCorpus(target)


def _half_a_step(wave: np.ndarray) -> float:
    """Half a step of 16 bits at the wave's own peak, and the rounding of float32 at that peak."""
    return float(np.abs(wave).max()) * (0.5 / 32767 + 2**-23)


def _utterance(corpus: PackedCorpus, id_: str) -> Utterance:
    return next(u for u in corpus.utterances if u.id == id_)


@pytest.mark.parametrize("name", [row[0] for row in FORMATS])
def test_a_packed_recording_is_its_source_within_half_a_step_of_its_own_peak(
    formats: tuple[Path, PackedCorpus], name: str
) -> None:
    folder, corpus = formats
    mono = soundfile.read(folder / name, always_2d=True)[0].mean(axis=1)
    utterance = _utterance(corpus, name)
    error = np.abs(corpus.wave(utterance).astype(np.float64) - mono)
    assert len(mono) == utterance.n_samples
    assert error.max() <= _half_a_step(mono)
    assert np.abs(corpus.wave(utterance)).max() == pytest.approx(np.abs(mono).max(), rel=1e-6)


@pytest.mark.parametrize("name", [row[0] for row in RATES])
def test_a_recording_at_another_rate_keeps_its_pitch_phase_and_length(
    formats: tuple[Path, PackedCorpus], name: str
) -> None:
    _, corpus = formats
    wave = corpus.wave(_utterance(corpus, name))
    expected = TONE_AMPLITUDE * np.sin(2 * np.pi * TONE_HZ * np.arange(RATE) / RATE)
    tolerance = 0.02 if name.endswith((".ogg", ".opus")) else 1e-4  # lossy codecs
    assert len(wave) == RATE
    assert np.abs(wave - expected)[2000:-2000].max() < tolerance * TONE_AMPLITUDE


def test_the_index_names_levels_and_hashes_that_belong_to_the_samples(packed: Path) -> None:
    corpus = PackedCorpus(packed)
    spans = sorted((u.start, u.start + u.n_samples) for u in corpus.utterances)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert _samples_are_those_of_the_index(corpus)
    for utterance in corpus.utterances:
        assert np.abs(corpus.samples[utterance.start : utterance.start + utterance.n_samples]).max() == 32767
        # The level is an RMS over active frames: no less than that of the whole, no more than the peak.
        rms = np.sqrt(np.mean(np.square(corpus.wave(utterance), dtype=np.float64)))
        assert rms * 0.95 < utterance.level < utterance.scale * 32767


def test_trimming_cuts_where_librosa_does(toy_corpus_folder: Path, tmp_path: Path) -> None:
    import librosa

    folder = tmp_path / "sound"
    folder.mkdir()
    wave, rate = soundfile.read(toy_corpus_folder / "speaker3" / "0.wav", dtype="float32")
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(7000).astype(np.float32)
    whole = np.concatenate([quiet, wave, quiet[:5000]])
    soundfile.write(folder / "a.wav", whole, rate, "FLOAT")
    prepare(folder, tmp_path / "packed")
    corpus = PackedCorpus(tmp_path / "packed")
    _, (start, end) = librosa.effects.trim(whole, top_db=30)
    expected = whole[start:end]
    assert 0 < start < end < len(whole)
    assert np.abs(corpus.wave(corpus.utterances[0]) - expected).max() <= _half_a_step(expected)


def test_real_utterances_are_found_with_the_speakers_of_their_layout(data: Path, tmp_path: Path) -> None:
    source = data / "librispeech-mini" / "LibriSpeech"
    folder = tmp_path / "LibriSpeech" / "train-clean-100"
    for speaker in sorted((source / "train-clean-100").iterdir())[:3]:
        shutil.copytree(speaker, folder / speaker.name)
    prepared = prepare(tmp_path / "LibriSpeech", tmp_path / "packed")
    assert prepared.layout == "librispeech"
    assert {u.speaker for u in prepared.utterances} == {path.name for path in folder.iterdir()}
    assert sorted(u.split for u in prepared.utterances) == ["train", "train", "validation"]


BROKEN: list[tuple[str, Callable[[Path, Path], object], str]] = [  # file, how it is made from a good one, the reason
    ("text.wav", lambda path, good: path.write_text("This is not sound.\n" * 50), r"is not a sound file"),
    ("empty.flac", lambda path, good: path.touch(), r"is empty \(0 bytes\)"),
    ("cut.wav", lambda path, good: path.write_bytes(good.read_bytes()[:20000]), r"is truncated"),
    ("header.wav", lambda path, good: soundfile.write(path, np.zeros((0, 1)), RATE), r"has a header but no samples"),
    ("nan.wav", lambda path, good: soundfile.write(path, np.r_[np.ones(9000), np.nan], RATE, "FLOAT"),
    r"NaN or infinite"),
    ("inf.wav", lambda path, good: soundfile.write(path, np.r_[np.ones(9000), np.inf], RATE, "FLOAT"),
    r"NaN or infinite"),
    ("silent.wav", lambda path, good: soundfile.write(path, np.zeros(20000), RATE), r"is silent"),
    ("short.wav", lambda path, good: soundfile.write(path, np.ones(1500), RATE), r"is shorter than 0\.1 s"),
    ("foreign.m4a", lambda path, good: path.write_bytes(b"\0\0\0\x20ftypM4A "),
    r"\.m4a files cannot be read; convert it"),
    ("dangling.wav", lambda path, good: path.symlink_to(path.parent / "gone.wav"), r"no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "reason"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_file_that_cannot_be_used_is_left_out_with_its_name_and_reason(
    toy_corpus_folder: Path, tmp_path: Path, name: str, make: Callable[[Path, Path], object], reason: str
) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    good = Path(shutil.copy(toy_corpus_folder / "speaker0" / "0.wav", folder / "good.wav"))
    make(folder / name, good)
    prepared = prepare(folder, tmp_path / "packed")
    assert [u.id for u in prepared.utterances] == ["good.wav"]
    (left_out,) = prepared.left_out
    assert left_out.id == name
    assert left_out.failed
    assert re.search(reason, left_out.reason)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.write_text(""), "is a file; give the folder that holds it"),
        (lambda folder: folder.mkdir(), r"holds no sound file that can be used \(WAV, FLAC"),
    ],
    ids=["missing", "file", "empty"],
)
def test_a_corpus_folder_without_sound_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "sound")
    with pytest.raises(CorpusError, match=rf"sound: {message}"):
        prepare(tmp_path / "sound", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_files_name_the_speakers_of_each_split(toy_corpus_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "validation.txt").write_text("speaker1\nspeaker4\n")
    (tmp_path / "test.txt").write_text("speaker7")
    settings = PrepareSettings(
        validation_speakers=str(tmp_path / "validation.txt"), test_speakers=str(tmp_path / "test.txt")
    )
    utterances = prepare(toy_corpus_folder, tmp_path / "packed", settings).utterances
    speakers = {split: {u.speaker for u in utterances if u.split == split} for split in ("train", "validation", "test")}
    assert speakers["validation"] == {"speaker1", "speaker4"}
    assert speakers["test"] == {"speaker7"}
    assert speakers["train"] == {f"speaker{i}" for i in (0, 2, 3, 5, 6)}


def test_a_speaker_with_a_space_in_its_name_can_be_held_out(toy_corpus_folder: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("Jane Doe", "Ann Lee", "Bo")):
        shutil.copytree(toy_corpus_folder / f"speaker{i}", tmp_path / "sound" / name)
    (tmp_path / "validation.txt").write_text("Jane Doe\nBo\n")  # one a line
    settings = PrepareSettings(validation_speakers=str(tmp_path / "validation.txt"))
    utterances = prepare(tmp_path / "sound", tmp_path / "packed", settings).utterances
    assert {u.speaker for u in utterances if u.split == "validation"} == {"Jane Doe", "Bo"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "binary"])
def test_a_speaker_file_that_cannot_be_read_is_named(
    toy_corpus_folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=r"names\.txt: cannot be read; give a text file with one speaker a line"):
        prepare(
            toy_corpus_folder, tmp_path / "packed", PrepareSettings(validation_speakers=str(tmp_path / "names.txt"))
        )


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """A failure within the block is reported in ASCII: file names that are no Unicode cannot pass between test
    processes.
    """
    try:
        yield
    except Exception as error:
        raise pytest.fail.Exception(ascii(error), pytrace=False) from None


def test_names_of_any_bytes_are_packed(toy_corpus_folder: Path, tmp_path: Path) -> None:
    latin_1 = os.fsencode(tmp_path) + b"/sound/caf\xe9"
    os.makedirs(latin_1)
    shutil.copy(os.fsencode(toy_corpus_folder) + b"/speaker0/0.wav", latin_1 + b"/\xff.wav")
    shutil.copytree(toy_corpus_folder / "speaker1", tmp_path / "sound" / "日本 <&>\n")
    with plain_failures():
        prepared = prepare(tmp_path / "sound", tmp_path / "packed")
        assert {os.fsencode(u.speaker) for u in prepared.utterances} == {b"caf\xe9", "日本 <&>\n".encode()}
        assert len(PackedCorpus(tmp_path / "packed").fingerprint()) == 64


# ---------------------------------------------------------------------------------------------------------------------
# prepare: what a second run does


@pytest.fixture
def small(toy_corpus_folder: Path, tmp_path: Path) -> Path:
    """A corpus folder of four files that a test may change."""
    for speaker in ("speaker0", "speaker1"):
        shutil.copytree(toy_corpus_folder / speaker, tmp_path / "small" / speaker)
    return tmp_path / "small"


def _fresh(folder: Path, target: Path, settings: PrepareSettings = PrepareSettings()) -> str:
    prepare(folder, target, settings)
    return PackedCorpus(target).fingerprint()


def test_a_second_run_packs_only_what_is_new(small: Path, tmp_path: Path, toy_corpus_folder: Path) -> None:
    target = tmp_path / "packed"
    assert prepare(small, target).n_new == 4
    before = {u.id: u for u in PackedCorpus(target).utterances}
    assert prepare(small, target).n_new == 0
    shutil.copytree(toy_corpus_folder / "speaker2", small / "speaker2")
    assert prepare(small, target).n_new == 2
    corpus = PackedCorpus(target)
    assert {u.id: replace(u, split=before[u.id].split) for u in corpus.utterances if u.id in before} == before
    assert corpus.fingerprint() == _fresh(small, tmp_path / "fresh")


def test_a_second_run_notices_changed_and_removed_files(small: Path, tmp_path: Path, toy_corpus_folder: Path) -> None:
    target = tmp_path / "packed"
    prepare(small, target)
    shutil.copy(toy_corpus_folder / "speaker5" / "1.wav", small / "speaker0" / "0.wav")
    (small / "speaker1" / "1.wav").unlink()
    prepared = prepare(small, target)
    assert [u.id for u in PackedCorpus(target).utterances] == ["speaker0/0.wav", "speaker0/1.wav", "speaker1/0.wav"]
    assert PackedCorpus(target).fingerprint() == _fresh(small, tmp_path / "fresh")
    assert len(prepared.utterances) == 3


def test_a_broken_file_is_tried_again_only_when_it_changed(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    good, bad = small / "speaker0" / "0.wav", small / "speaker0" / "bad.wav"
    content = good.read_bytes()
    bad.write_bytes(b"x" * len(content))
    os.utime(bad, ns=(10**18, 10**18))
    assert [file.id for file in prepare(small, target).left_out] == ["speaker0/bad.wav"]
    bad.write_bytes(content)
    os.utime(bad, ns=(10**18, 10**18))  # same size and time: not looked at
    assert [file.id for file in prepare(small, target).left_out] == ["speaker0/bad.wav"]
    os.utime(bad, ns=(10**18, 10**18 + 1))
    prepared = prepare(small, target)
    assert (prepared.n_new, prepared.left_out) == (1, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PrepareSettings(sample_rate=8000), "sample_rate 16000, not 8000"),
        (PrepareSettings(trim=False), "trimmed True, not False"),
        (PrepareSettings(layout="jvs"), "layout 'folder', not 'jvs'|holds no sound file that can be used"),
    ],
)
def test_a_corpus_prepared_otherwise_is_refused_by_the_name_of_the_difference(
    small: Path, tmp_path: Path, settings: PrepareSettings, message: str
) -> None:
    target = tmp_path / "packed"
    fingerprint = _fresh(small, target)
    with pytest.raises(CorpusError, match=message):
        prepare(small, target, settings)
    assert PackedCorpus(target).fingerprint() == fingerprint


def test_another_corpus_in_the_target_is_refused_and_overwrite_replaces_it(
    small: Path, tmp_path: Path, toy_corpus_folder: Path
) -> None:
    target = tmp_path / "packed"
    prepare(toy_corpus_folder, target)
    with pytest.raises(CorpusError, match=r"holds a corpus with source '.*', not '.*small'; --overwrite replaces it"):
        prepare(small, target)
    prepare(small, target, PrepareSettings(sample_rate=8000), overwrite=True)
    assert PackedCorpus(target).header.sample_rate == 8000
    assert PackedCorpus(target).fingerprint() == _fresh(small, tmp_path / "fresh", PrepareSettings(sample_rate=8000))
    assert (target / "samples.int16").stat().st_size == (tmp_path / "fresh" / "samples.int16").stat().st_size


def _drop_last_lines(target: Path) -> None:
    *lines, _ = (target / "index.jsonl").read_text().splitlines(keepends=True)
    rest = "".join(lines[:-2])
    digest = {"index_sha256": hashlib.sha256(rest.encode()).hexdigest()}
    (target / "index.jsonl").write_text(rest + json.dumps(digest) + "\n")


def _append_samples(target: Path) -> None:
    with open(target / "samples.int16", "ab") as file:
        file.write(b"\x12\x34\x56" * 5001)


def _drop_index(target: Path) -> None:
    (target / "index.jsonl").unlink()


def _drop_samples(target: Path) -> None:
    (target / "samples.int16").unlink()


def _cut_samples(target: Path) -> None:
    os.truncate(target / "samples.int16", 20000)


def _samples_are_those_of_the_index(corpus: PackedCorpus) -> bool:
    slices = [(u, corpus.samples[u.start : u.start + u.n_samples]) for u in corpus.utterances]
    return all(hashlib.sha256(samples.tobytes()).hexdigest() == utterance.sha256 for utterance, samples in slices)


@pytest.mark.parametrize("damage", [_drop_last_lines, _append_samples, _drop_index])
def test_the_same_command_repairs_an_interrupted_corpus(
    small: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    target = tmp_path / "packed"
    fingerprint = _fresh(small, target)
    damage(target)
    prepare(small, target)
    assert PackedCorpus(target).fingerprint() == fingerprint
    assert _samples_are_those_of_the_index(PackedCorpus(target))


@pytest.mark.parametrize("damage", [_drop_samples, _cut_samples])
def test_lost_samples_are_packed_again_or_refused_and_never_become_silence(
    small: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    target = tmp_path / "packed"
    prepare(small, target)
    damage(target)
    with contextlib.suppress(CorpusError):
        prepare(small, target)
    try:
        corpus = PackedCorpus(target)
    except CorpusError:
        return
    assert _samples_are_those_of_the_index(corpus)


def test_an_interrupted_run_is_continued(
    toy_corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_COMMIT_BYTES", 0)

    def interrupt(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(toy_corpus_folder, tmp_path / "packed", progress=interrupt)
    assert prepare(toy_corpus_folder, tmp_path / "packed").n_new == 16 - 9
    assert PackedCorpus(tmp_path / "packed").fingerprint() == _fresh(toy_corpus_folder, tmp_path / "fresh")


def test_two_jobs_pack_the_same_corpus_as_one(toy_corpus_folder: Path, packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "two"
    prepare(toy_corpus_folder, target, PrepareSettings(validation=0.25), jobs=2)
    assert PackedCorpus(target).fingerprint() == PackedCorpus(packed).fingerprint()
    assert (target / "samples.int16").read_bytes() == (packed / "samples.int16").read_bytes()


def test_speeds_add_training_recordings_of_another_pitch_and_tempo(tmp_path: Path) -> None:
    folder = tmp_path / "tones"
    for speaker in "abcd":
        (folder / speaker).mkdir(parents=True)
        soundfile.write(folder / speaker / "1.wav", 0.5 * np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE), RATE)
    prepared = prepare(folder, tmp_path / "packed", PrepareSettings(validation=0.25, trim=False, speeds=(0.9, 1.1)))
    corpus = PackedCorpus(tmp_path / "packed")
    held_out = {u.speaker for u in prepared.utterances if u.split == "validation"}
    assert sorted(u.id for u in prepared.utterances) == sorted(
        f"{speaker}/1.wav{speed}"
        for speaker in "abcd"
        for speed in ("", "@0.9", "@1.1")
        if not (speed and speaker in held_out)
    )
    for utterance in corpus.utterances:
        speed = float((utterance.id + "@1").split("@")[1])
        spectrum = np.abs(np.fft.rfft(corpus.wave(utterance) * np.hanning(utterance.n_samples)))
        peak_hz = np.argmax(spectrum) * RATE / utterance.n_samples
        assert utterance.n_samples == pytest.approx(RATE / speed, abs=1)
        assert peak_hz == pytest.approx(400 * speed, abs=1.0)
    assert (
        prepare(folder, tmp_path / "packed", PrepareSettings(validation=0.25, trim=False, speeds=(0.9, 1.1))).n_new == 0
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading a packed corpus


def _newer(folder: Path) -> None:
    header, *rest = (folder / "index.jsonl").read_text().splitlines()
    newer = {**json.loads(header), "format_version": packed_module.FORMAT_VERSION + 1, "what_is_new": 1}
    (folder / "index.jsonl").write_text("\n".join([json.dumps(newer), *rest]))


def _garble(folder: Path) -> None:
    text = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(text[: len(text) // 2])


def _no_recording(folder: Path) -> None:
    header, _, _ = read_index(folder)
    write_index(folder, header, [], [LeftOut("a.wav", "is silent", True, 0, 0)])


REFUSED = [
    (lambda folder: shutil.rmtree(folder),
     r"is not a packed corpus \(no index\.jsonl\); make one with: audiovae prepare"),
    (_drop_index, r"is not a packed corpus \(no index\.jsonl\)"),
    (_drop_samples, r"samples\.int16: is missing or truncated; prepare the corpus again with --overwrite"),
    (lambda folder: os.truncate(folder / "samples.int16", (folder / "samples.int16").stat().st_size - 1),
    r"is missing or trunc"),
    (_newer, r"was written by a newer audiovae \(format 3, this one reads up to 2\); update it"),
    (_garble, r"index\.jsonl: is damaged; prepare the corpus again with --overwrite"),
    (lambda folder: (folder / "index.jsonl").write_text(""), r"index\.jsonl: is damaged"),
    (lambda folder: (folder / "index.jsonl").write_bytes(b"\x93NUMPY\xff\xfe"), r"index\.jsonl: is damaged"),
    (lambda folder: (folder / "index.jsonl").write_text("[1, 2]\n"), r"index\.jsonl: is damaged"),
    (_no_recording, r"holds no recording; prepare it from a folder of sound files"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_a_packed_corpus_that_cannot_be_used_is_refused(
    packed: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(packed, folder)
    damage(folder)
    with pytest.raises(CorpusError, match=message):
        PackedCorpus(folder)


def test_the_fingerprint_tells_samples_splits_levels_and_rate(packed: Path, tmp_path: Path) -> None:
    header, utterances, left_out = read_index(packed)
    shutil.copy(packed / "samples.int16", tmp_path)
    first = utterances[0]
    prints = []
    for changed_header, changed in (
        (header, first),
        (replace(header, sample_rate=8000), first),
        (header, replace(first, split="test")),
        (header, replace(first, level=0.5)),
        (header, replace(first, sha256="0" * 64)),
        (header, replace(first, id="other.wav")),
        (header, replace(first, scale=first.scale * 2)),
        (
            replace(header, source="elsewhere"),
            replace(first, source_mtime_ns=1),
        ),  # where it came from is not what it is
    ):
        write_index(tmp_path, changed_header, [changed, *utterances[1:]], left_out)
        prints.append(PackedCorpus(tmp_path).fingerprint())
    assert prints[0] == PackedCorpus(packed).fingerprint() == prints[-1]
    assert len(set(prints[:-1])) == len(prints) - 1


# ---------------------------------------------------------------------------------------------------------------------
# Drawing segments

SEGMENT_SAMPLES = 128


def _ramp_corpus(folder: Path, *lengths: int, level: float = 1.0) -> PackedCorpus:
    """Recordings one after another whose samples count 1, 2, 3, ... through the file, so that a sample tells its
    place."""
    folder.mkdir(exist_ok=True)
    np.arange(1, sum(lengths) + 1, dtype="<i2").tofile(folder / "samples.int16")
    starts = np.cumsum([0, *lengths])[:-1].tolist()
    utterances = [
        Utterance(f"{i}.wav", str(i), "train", start, length, 0.5, level, 0, 0, "")
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    write_index(folder, Header(RATE, True, "folder", ""), utterances, [])
    return PackedCorpus(folder)


def _sampler(corpus: PackedCorpus, split: str = "train") -> SegmentSampler:
    return SegmentSampler(corpus, split, SEGMENT_SAMPLES, CPU)


def test_a_draw_depends_on_seed_step_and_rank_alone(packed: Path) -> None:
    corpus = PackedCorpus(packed)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 7, 3)]
    once = {key: _sampler(corpus).draw(4, *key) for key in keys}
    sampler = _sampler(corpus)
    for key in reversed(keys):
        waves, utterances = sampler.draw(4, *key)
        assert torch.equal(waves, once[key][0])
        assert utterances == once[key][1]
    assert len({waves.numpy().tobytes() for waves, _ in once.values()}) == len(keys)


def test_segments_are_slices_of_their_recording_over_its_level(packed: Path) -> None:
    corpus = PackedCorpus(packed)
    stft = STFT()
    waves, utterances = SegmentSampler(corpus, "train", 15 * 256 + 1024, CPU).draw(4, 0, 0)
    assert waves.shape == (4, 15 * 256 + 1024)
    assert stft.frames(waves).shape == (4, 16, 513)
    for wave, utterance in zip(waves.numpy(), utterances, strict=True):
        assert utterance.split == "train"
        whole = corpus.wave(utterance) / utterance.level
        windows = np.lib.stride_tricks.sliding_window_view(whole, len(wave))
        assert np.abs(windows - wave).max(axis=1).min() < 1e-5 * np.abs(whole).max()


def test_segments_for_a_model_with_the_rule_peak_are_slices_over_the_peak(packed: Path) -> None:
    corpus = PackedCorpus(packed)
    usual, utterances = SegmentSampler(corpus, "train", 4000, CPU).draw(8, 0, 0)
    waves, _ = SegmentSampler(corpus, "train", 4000, CPU, "peak").draw(8, 0, 0)
    for wave, other, utterance in zip(waves, usual, utterances, strict=True):
        peak = float(np.abs(corpus.wave(utterance)).max())
        torch.testing.assert_close(wave * peak, other * utterance.level, rtol=1e-5, atol=1e-7)


def test_positions_are_uniform_within_and_over_the_recordings(tmp_path: Path) -> None:
    lengths = (SEGMENT_SAMPLES + 9, SEGMENT_SAMPLES + 99, SEGMENT_SAMPLES)  # 10, 100 and 1 possible places
    corpus = _ramp_corpus(tmp_path, *lengths)
    waves, utterances = _sampler(corpus).draw(111 * 200, seed=0, step=0)
    starts = (waves[:, 0] / 0.5 - 1).round().long().numpy()
    allowed = np.concatenate(
        [
            np.arange(length - SEGMENT_SAMPLES + 1) + begin
            for begin, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)
        ]
    )
    counts = np.bincount(starts, minlength=sum(lengths))
    assert counts.sum() == counts[allowed].sum() == len(starts)
    assert (
        chisquare(counts[allowed]).pvalue > 1e-3
    )  # a wrong alarm for one seed in a thousand; this seed was not chosen
    assert all(u.start <= start < u.start + u.n_samples for u, start in zip(utterances, starts, strict=True))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_recording_shorter_than_a_segment_is_followed_by_zeros(tmp_path: Path, place: int) -> None:
    lengths = [SEGMENT_SAMPLES + 2, SEGMENT_SAMPLES + 2, SEGMENT_SAMPLES + 2]
    lengths[place] = 50
    corpus = _ramp_corpus(tmp_path, *lengths, level=0.25)
    waves, utterances = _sampler(corpus).draw(200, seed=0, step=0)
    short = [i for i, utterance in enumerate(utterances) if utterance.n_samples == 50]
    assert 10 < len(short) < 60  # expected: 200 / 7
    begin = sum(lengths[:place])
    expected = torch.zeros(SEGMENT_SAMPLES)
    expected[:50] = torch.arange(begin + 1, begin + 51) * 0.5 / 0.25
    assert all(torch.equal(waves[i], expected) for i in short)
    assert all((waves[i] > 0).all() for i in range(200) if i not in short)


def test_a_corpus_of_a_single_short_recording_can_be_drawn_from(tmp_path: Path) -> None:
    waves, _ = _sampler(_ramp_corpus(tmp_path, 50)).draw(3, seed=0, step=0)
    assert torch.equal(waves[0, :50], 0.5 * torch.arange(1.0, 51.0))
    assert not waves[:, 50:].any()


def test_with_a_margin_segments_begin_and_end_in_the_zeros_around_a_recording(tmp_path: Path) -> None:
    margin, frame, lengths = 16, 32, [4000, 50, 4000]  # of all three the file holds another recording next to it
    corpus = _ramp_corpus(tmp_path, *lengths)
    waves, utterances = SegmentSampler(corpus, "train", SEGMENT_SAMPLES, CPU, margin=margin).draw(
        10_000, seed=0, step=0
    )
    around = [
        np.pad(np.arange(u.start + 1, u.start + u.n_samples + 1), (margin, SEGMENT_SAMPLES)).astype(np.float32) / 2
        for u in corpus.utterances
    ]
    heard = np.zeros((2, lengths[0] // frame))  # of the long ones, how often each frame
    for wave, utterance in zip(waves.numpy(), utterances, strict=True):
        i = corpus.utterances.index(utterance)
        loudest = int(wave.argmax())
        place = round(2 * wave[loudest]) - utterance.start - 1 + margin - loudest
        assert np.array_equal(around[i][place : place + SEGMENT_SAMPLES], wave)
        assert place <= max(0, utterance.n_samples + 2 * margin - SEGMENT_SAMPLES)
        if utterance.n_samples > frame * 2:
            for start in range(place, place + SEGMENT_SAMPLES - frame + 1, frame // 2):
                heard[i // 2, min(start // frame, heard.shape[1] - 1)] += 1
    ends = np.concatenate([heard[:, :4], heard[:, -4:]], axis=1)
    assert ends.mean() == pytest.approx(heard[:, 4:-4].mean(), rel=0.15)
    assert ends.min() > 0.4 * heard.mean()


def test_a_split_without_recordings_is_refused_by_name(packed: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no recording in the split 'test'"):
        _sampler(PackedCorpus(packed), "test")


def test_equaliser_gains_have_the_variance_of_their_cosine_series() -> None:
    gains_db = 10 * torch.log10(random_equaliser(20000, 33, 2.0, (0, 1, 2, 1)).double())[:, 0].numpy()
    places = (np.arange(33) + 0.5) / 33
    variance = sum(2.0**2 / (1 + k) * np.cos(np.pi * k * places) ** 2 for k in range(7))
    standard_error = variance * np.sqrt(2 / 20000)  # of the variance of a Gaussian
    assert np.abs(gains_db.mean(axis=0)).max() < 4 * np.sqrt(variance.max() / 20000)
    assert (np.abs(gains_db.var(axis=0) - variance) < 4 * standard_error).all()


def test_the_equaliser_is_a_function_of_its_seed() -> None:
    first, again, other = (random_equaliser(3, 9, 1.0, seed) for seed in ((0, 5, 0, 1), (0, 5, 0, 1), (0, 6, 0, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(random_equaliser(3, 9, 0.0, (0,)), torch.ones(3, 1, 9))


def test_an_index_is_read_back_as_it_was_written(packed: Path, tmp_path: Path) -> None:
    header, utterances, _ = read_index(packed)
    left_out = [LeftOut("x.wav", "is silent", True, 3, 4)]
    write_index(tmp_path, header, list(reversed(utterances)), left_out)
    assert read_index(tmp_path) == (header, sorted(utterances, key=lambda u: u.id), left_out)
    shared = {"sample_rate": RATE, "trimmed": True, "layout": "folder", "source": header.source}
    assert asdict(header) == {**shared, "channels": "mean", "n_channels": 1}


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_spoken_digits_are_labelled_by_digit_and_speaker_and_split_by_take(digits: Path) -> None:
    corpus = PackedCorpus(digits)
    assert corpus.header.layout == "free-spoken-digits"
    assert len(corpus.utterances) == 16
    for utterance in corpus.utterances:
        digit, speaker, index = utterance.id.removesuffix(".wav").split("_")
        assert utterance.labels == {"speaker": speaker, "digit": digit}
        assert utterance.speaker == speaker
        assert utterance.split == {"0": "test", "5": "validation", "8": "train", "9": "train"}[index]
    assert (corpus.classes("digit"), corpus.classes("speaker")) == (("0", "1"), ("ann", "bob"))
    with pytest.raises(CorpusError, match="has no label 'word'; it has digit, speaker"):
        corpus.classes("word")


def _table(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_a_table_labels_the_recordings_of_any_folder(small: Path, tmp_path: Path) -> None:
    """As CSV and TSV, on top of the speaker; columns in any order, and rows of files that are not there."""
    ids = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
    rows = [f"{'soft' if i % 2 else 'loud, very'}\t{id_}\t{i}" for i, id_ in enumerate(ids)]
    tsv = _table(tmp_path / "labels.tsv", ["voice\tfile\tplace", *rows, "soft\tnone.wav\t0"])
    quoted = ['{1},"{0}",{2}'.format(*row.split("\t")) for row in rows]
    csv = _table(tmp_path / "labels.csv", ["file,voice,place", *quoted])
    prints = set()
    for name, table in (("tsv", tsv), ("csv", csv)):
        prepare(small, tmp_path / name, PrepareSettings(labels=table, speeds=(0.9,)))
        corpus = PackedCorpus(tmp_path / name)
        for utterance in corpus.utterances:
            i = ids.index(utterance.id.split("@")[0])
            assert utterance.labels == {
                "speaker": utterance.speaker,
                "voice": "soft" if i % 2 else "loud, very",
                "place": str(i),
            }
        assert "soft" in corpus.classes("voice")
        prints.add(corpus.fingerprint())
    assert len(prints) == 1


def test_another_table_relabels_what_is_packed_and_changes_the_fingerprint(small: Path, tmp_path: Path) -> None:
    ids = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
    prints = []
    for voice in ("soft", "loud"):
        table = _table(tmp_path / "labels.csv", ["file,voice", *(f"{id_},{voice}" for id_ in ids)])
        prepared = prepare(small, tmp_path / "packed", PrepareSettings(labels=table))
        prints.append(PackedCorpus(tmp_path / "packed").fingerprint())
        assert {utterance.labels["voice"] for utterance in prepared.utterances} == {voice}
    assert prepared.n_new == 0
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"labels\.csv: cannot be read; give a CSV or TSV file"),
        ([""], r"labels\.csv: needs a heading with a column 'file' and one for each label"),
        (["path,voice", "a.wav,soft"], "needs a heading with a column 'file'"),
        (["file", "a.wav"], "and one for each label"),
        (["file,voice", "a.wav,soft"], r"labels\.csv: has no row for .*\.wav"),
        (["file,voice", "{ids}"], r"labels\.csv: "),  # a label is missing in every row
        (["file,voice", "{ids},soft,more"], r"labels\.csv: "),  # and here is one too many
    ],
)
def test_a_table_that_does_not_label_every_recording_is_refused(
    small: Path, tmp_path: Path, rows: list[str] | None, message: str
) -> None:
    ids = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.wav"))
    if rows is not None:
        _table(
            tmp_path / "labels.csv",
            [line.replace("{ids}", id_) for line in rows for id_ in (ids if "{ids}" in line else ids[:1])],
        )
    with pytest.raises(CorpusError, match=message):
        prepare(small, tmp_path / "packed", PrepareSettings(labels=str(tmp_path / "labels.csv")))
    assert not (tmp_path / "packed").exists()
