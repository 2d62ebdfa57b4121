"""The same recordings, as people have them: any source is packed to the same samples, speakers and splits."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import speech_like

from audiovae import Item, PackedCorpus, PrepareSettings, prepare
from audiovae.corpora.adapters import recordings
from audiovae.errors import AudiovaeError, CorpusError

RATE = 16000
TAKES = [(f"s{i // 2}", f"s{i // 2}-{i % 2}") for i in range(10)]  # speaker, name
SPLIT = {"s0": "validation", "s1": "test"}  # of the others: train
WORDS = ("yes", "no")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten short recordings of five speakers, two of them at another rate and one of two channels."""
    folder = tmp_path_factory.mktemp("files")
    for i, (_, name) in enumerate(TAKES):
        rate = 22050 if i in (3, 6) else RATE
        wave = 0.4 * speech_like(0.6, 100 + 15 * i, seed=i, rate=rate)
        channels = np.stack([wave, np.roll(wave, 7)], axis=1) if i == 5 else wave
        soundfile.write(folder / f"{name}.flac", channels, rate)
    return folder


def known(i: int) -> dict[str, str]:
    """What is known of a recording."""
    speaker, name = TAKES[i]
    return {"id": name, "speaker": speaker, "split": SPLIT.get(speaker, "train"), "word": WORDS[i % 2]}


def as_items(files: Path, place: Path, sound: Callable[[Path], Any] = lambda path: path, **more: Any) -> Any:
    return [
        Item(
            fields["id"], sound(files / f"{fields['id']}.flac"), speaker=fields["speaker"],
            split=fields["split"], labels={"word": fields["word"]}, **more,
        )
        for fields in map(known, range(10))
    ]  # fmt: skip


def wave_and_rate(path: Path) -> tuple[np.ndarray, int]:
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return wave.T, rate


def as_waves(files: Path, place: Path) -> Any:
    items = as_items(files, place)
    return [replace(i, sound=wave_and_rate(i.sound)[0], sample_rate=wave_and_rate(i.sound)[1]) for i in items]


def as_csv(files: Path, place: Path) -> Any:
    (place / "sound").symlink_to(files)
    with (place / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "id", "speaker", "split", "word"])
        writer.writeheader()
        writer.writerows({"path": f"sound/{known(i)['id']}.flac", **known(i)} for i in range(10))
    return str(place / "table.csv")


def as_jsonl(files: Path, place: Path) -> Any:
    rows = [json.dumps({"path": str(files / f"{known(i)['id']}.flac"), **known(i)}) for i in range(10)]
    (place / "table.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return place / "table.jsonl.gz"


def as_parts(files: Path, place: Path) -> Any:
    """All recordings of a rate and number of channels one after another in a file, with noise between them."""
    generator, waves, rows = np.random.default_rng(0), {}, []
    for i in range(10):
        wave, rate = wave_and_rate(files / f"{known(i)['id']}.flac")
        key = f"{rate}-{len(wave)}.wav"
        before = waves.setdefault(key, [])
        before.append(generator.uniform(-1, 1, (len(wave), 100 + i)))
        start = sum(part.shape[1] for part in before)
        before.append(wave)
        rows.append({"path": key, "start": start / rate, "duration": wave.shape[1] / rate, **known(i)})
    for key, parts in waves.items():
        soundfile.write(place / key, np.concatenate(parts, axis=1).T, int(key.split("-")[0]), "FLOAT")
    (place / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "parts.jsonl"


def as_lhotse(files: Path, place: Path, suffix: str = ".jsonl.gz", beside: int = 0) -> Any:
    """Cuts over whole files, or over the first channels of files that have `beside` more."""
    lhotse = pytest.importorskip("lhotse")
    cuts = []
    for i in range(10):
        fields = known(i)
        file = files / f"{fields['id']}.flac"
        wave, rate = wave_and_rate(file)
        if beside:
            noise = np.random.default_rng(i).uniform(-0.5, 0.5, (beside, wave.shape[1]))
            file = place / file.name
            soundfile.write(file, np.concatenate([wave, noise]).T, rate)
        recording = lhotse.Recording.from_file(file, recording_id=fields["id"])
        kind = lhotse.MonoCut if len(wave) == 1 else lhotse.MultiCut
        channel = 0 if len(wave) == 1 else [0, 1]
        spoken = lhotse.SupervisionSegment(fields["id"], fields["id"], 0, 0.5, channel, speaker=fields["speaker"])
        told = {"split": fields["split"], "word": fields["word"]}
        cuts.append(kind(fields["id"], 0, recording.duration, channel, [spoken], recording=recording, custom=told))
    lhotse.CutSet.from_cuts(cuts).to_file(place / f"cuts{suffix}")
    return place / f"cuts{suffix}"


def as_datasets(files: Path, place: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    parts = {}
    for split in ("train", "validation", "test"):
        rows = [known(i) for i in range(10) if known(i)["split"] == split]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("id", "speaker", "word")}
        columns["audio"] = [
            {"bytes": (files / f"{row['id']}.flac").read_bytes(), "path": f"{row['id']}.flac"} for row in rows
        ]
        stored = datasets.Dataset.from_dict(columns).cast_column("word", datasets.ClassLabel(names=list(WORDS)))
        parts[split] = stored.cast_column("audio", datasets.Audio())  # which is to be decoded, as people have it
    datasets.DatasetDict(parts).save_to_disk(str(place / "saved"))
    return place / "saved"


def as_webdataset(files: Path, place: Path) -> Any:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(place / "shard-%03d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            fields = known(i)
            told = {name: fields[name] for name in ("speaker", "split", "word")}
            writer.write({"__key__": fields["id"], "flac": (files / f"{fields['id']}.flac").read_bytes(), "json": told})
    assert len(list(place.glob("*.tar"))) == 3
    return str(place / "shard-{000..002}.tar")


SOURCES: dict[str, Callable[[Path, Path], Any]] = {
    "paths": as_items,
    "generator": lambda files, place: iter(as_items(files, place)),
    "bytes": partial(as_items, sound=Path.read_bytes),
    "functions": partial(as_items, sound=lambda path: partial(Path.read_bytes, path)),
    "waves": as_waves,
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parts": as_parts,
    "lhotse": as_lhotse,
    "lhotse by channel": partial(as_lhotse, suffix=".jsonl", beside=1),
    "datasets": as_datasets,
    "webdataset": as_webdataset,
}


@pytest.fixture(scope="module")
def expected(files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the corpus as a folder, labelled by a table: over ids, splits, labels, levels and samples."""
    place = tmp_path_factory.mktemp("folder")
    folder = place / "sound"
    for i in range(10):
        folder.mkdir(exist_ok=True)
        (folder / f"{known(i)['id']}.flac").write_bytes((files / f"{known(i)['id']}.flac").read_bytes())
    rows = [f"{known(i)['id']}.flac,{known(i)['speaker']},{known(i)['word']}" for i in range(10)]
    (place / "labels.csv").write_text("\n".join(["file,speaker,word", *rows]))
    for split in ("validation", "test"):
        (place / split).write_text("\n".join(speaker for speaker in SPLIT if SPLIT[speaker] == split))
    settings = PrepareSettings(
        labels=str(place / "labels.csv"), validation_speakers=str(place / "validation"),
        test_speakers=str(place / "test"),
    )  # fmt: skip
    prepare(folder, place / "packed", settings)
    return summary(place / "packed")


def summary(packed: Path) -> str:
    corpus = PackedCorpus(packed)
    corpus.verify()
    lines = [
        " ".join(map(repr, (u.id.removesuffix(".flac"), u.speaker, u.split, u.level, u.scale, u.sha256, u.labels)))
        for u in corpus.utterances
    ]
    assert len(lines) == 10
    return "\n".join(lines)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_packed_to_the_same_samples(name: str, files: Path, expected: str, tmp_path: Path) -> None:
    source = SOURCES[name](files, tmp_path)
    prepared = prepare(source, tmp_path / "packed")
    assert prepared.left_out == []
    assert summary(tmp_path / "packed") == expected
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["index.jsonl", "samples.int16"]
    again = prepare(SOURCES[name](files, tmp_path) if name == "generator" else source, tmp_path / "packed")
    assert (again.n_new, again.left_out) == (0, [])
