"""The same recordings, as people have them: any source is packed to the same samples, speakers and splits."""

from __future__ import annotations

import csv
import gzip
import json
import sys
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

from audiovae import Item, PackedCorpus, PrepareSettings, audio, prepare
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


@pytest.mark.parametrize("name", ["functions", "waves", "parts", "lhotse by channel", "datasets", "webdataset"])
def test_two_jobs_pack_the_same_as_one(name: str, files: Path, expected: str, tmp_path: Path) -> None:
    assert prepare(SOURCES[name](files, tmp_path), tmp_path / "packed", jobs=2).left_out == []
    assert summary(tmp_path / "packed") == expected


def test_torchaudio_tells_files_labels_and_splits(files: Path, expected: str, tmp_path: Path) -> None:
    """As Speech Commands are stored: a folder a word, and lists of the files that are held out."""
    pytest.importorskip("torchaudio", exc_type=ImportError)
    root = tmp_path / "root" / "SpeechCommands" / "speech_commands_v0.02"
    lists: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for i, (speaker, name) in enumerate(TAKES):
        wave, rate = soundfile.read(files / f"{name}.flac", dtype="int16")
        path = f"{WORDS[i % 2]}/{speaker}_nohash_{i}.wav"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, wave, rate)
        lists[known(i)["split"]].append(path)
    (root / "validation_list.txt").write_text("\n".join(lists["validation"]))
    (root / "testing_list.txt").write_text("\n".join(lists["test"]))
    source = f"torchaudio:SPEECHCOMMANDS:{tmp_path / 'root'}"
    prepared = prepare(source, tmp_path / "packed")
    assert prepared.layout == "torchaudio:SPEECHCOMMANDS"
    packed = {u.sha256: (u.speaker, u.split, u.labels["word"]) for u in prepared.utterances}
    prepare(as_items(files, tmp_path), tmp_path / "items")
    assert packed == {
        u.sha256: (u.speaker, u.split, u.labels["word"]) for u in PackedCorpus(tmp_path / "items").utterances
    }
    assert prepare(source, tmp_path / "packed").n_new == 0
    with pytest.raises(CorpusError, match=r": SPEECHCOMMANDS cannot be read \(The path .* doesn't exist"):
        prepare(f"torchaudio:SPEECHCOMMANDS:{tmp_path}", tmp_path / "other")


@pytest.mark.parametrize("name", ["csv", "jsonl", "lhotse", "datasets", "webdataset"])
def test_a_second_run_packs_only_what_changed(name: str, files: Path, tmp_path: Path) -> None:
    """One recording becomes another one, and one is gone; the same file or folder is written anew."""
    sound = tmp_path / "sound-files"
    sound.mkdir()
    for path in files.iterdir():
        (sound / path.name).write_bytes(path.read_bytes())
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    source = SOURCES[name](sound, places[0])
    before = prepare(source, tmp_path / "packed")
    (sound / "s2-1.flac").write_bytes((files / "s0-1.flac").read_bytes())
    renamed = str(source).replace("first", "second")
    SOURCES[name](sound, places[1])
    places[0].rename(tmp_path / "gone")
    places[1].rename(places[0])
    after = prepare(source, tmp_path / "packed")
    assert Path(renamed).parent == places[1]
    digests = [{u.id: u.sha256 for u in prepared.utterances} for prepared in (before, after)]
    assert {name for name in digests[0] if digests[0][name] != digests[1][name]} == {"s2-1"}
    assert digests[1]["s2-1"] == digests[1]["s0-1"]
    assert after.n_new == 1


def test_a_part_that_moves_is_packed_again(files: Path, tmp_path: Path) -> None:
    def parts(start: float) -> list[Item]:
        return [Item("a", files / "s0-0.flac", start=start, duration=0.3), Item("b", files / "s1-0.flac")]

    assert prepare(parts(0.1), tmp_path / "packed").n_new == 2
    assert prepare(parts(0.1), tmp_path / "packed").n_new == 0
    assert prepare(parts(0.2), tmp_path / "packed").n_new == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_cannot_be_loaded_is_left_out_with_the_reason(jobs: int, files: Path, tmp_path: Path) -> None:
    good = partial(Path.read_bytes, files / "s0-0.flac")
    wave = wave_and_rate(files / "s0-0.flac")[0]
    items = [
        Item("good", good),
        Item("missing", files / "none.flac"),
        Item("failing", partial(Path.read_bytes, files / "none.flac")),
        Item("text", b"no sound"),
        Item("cut.flac", good()[:-3000]),
        Item("beyond", files / "s0-0.flac", start=0.5, duration=60.0),
        Item("after", files / "s0-0.flac", start=60.0),
        Item("integers", (32767 * wave).astype(np.int16), RATE),
        Item("deep", wave[None], RATE),
        Item("turned", np.zeros((2000, 3000), np.float32), RATE),
        Item("nan", np.full(RATE, np.nan, np.float32), RATE),
        Item("rateless", partial(np.ones, RATE)),
        Item("other rate", files / "s0-0.flac", 44100),
        Item("short", files / "s0-0.flac", duration=0.05),
        Item("foreign.m4a", good()),
    ]
    prepared = prepare(items, tmp_path / "packed", jobs=jobs)
    assert [u.id for u in prepared.utterances] == ["good"]
    assert {file.id: file.reason for file in prepared.left_out} == {
        "missing": "no such file",
        "failing": "cannot be loaded (FileNotFoundError: [Errno 2] No such file or directory: "
        f"'{files / 'none.flac'}')",
        "text": "is not a sound file, or a damaged one; restore it, or convert it to WAV or FLAC",
        "cut.flac": "is damaged: decoding fails in the middle; restore the whole file",
        "beyond": "has no part from 0.5 s to 60.5 s: it is 0.6 s long",
        "after": "has no part from 60 s to its end: it is 0.6 s long",
        "integers": "is int16 of shape (1, 9600); give bytes, or floats [sample] or [channel, sample] of full scale 1",
        "deep": "is float32 of shape (1, 1, 9600); give bytes, or floats [sample] or [channel, sample] of full scale 1",
        "turned": "is a wave of 2000 channels at 16000 Hz; give [sample] or [channel, sample]",
        "nan": "holds samples that are NaN or infinite; repair it or leave it out",
        "rateless": "is a wave without a sample rate; give its sample_rate",
        "other rate": "has 16000 Hz, not 44100",
        "short": "is shorter than 0.1 s",
        "foreign.m4a": ".m4a files cannot be read; convert it to WAV or FLAC first",
    }
    assert all(file.failed for file in prepared.left_out)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["index.jsonl", "samples.int16"]


@pytest.mark.parametrize(
    ("name", "container", "subtype"),
    [
        ("a.wav", "WAV", "PCM_16"), ("i.wav", "WAV", "IMA_ADPCM"), ("g.wav", "WAV", "GSM610"),
        ("j.flac", "FLAC", "PCM_24"), ("l.ogg", "OGG", "VORBIS"), ("m.opus", "OGG", "OPUS"),
        ("n.mp3", "MP3", "MPEG_LAYER_III"), ("p.sph", "NIST", "PCM_16"), ("s.caf", "CAF", "ALAC_16"),
    ],
)  # fmt: skip
def test_a_part_of_a_file_is_that_part(name: str, container: str, subtype: str, tmp_path: Path) -> None:
    """Also where the decoder cannot jump, or lands elsewhere."""
    rate = 8000
    wave = 0.3 * np.random.default_rng(0).standard_normal(25 * rate).clip(-3, 3)
    soundfile.write(tmp_path / name, wave, rate, subtype, format=container)
    whole = np.concatenate(list(audio.blocks(audio.inspect(tmp_path / name))), axis=1)
    for start, duration in ((0.0, 0.5), (0.0313, 22.0), (3.14159, 1.0), (21.5, None)):
        part = audio.part(audio.inspect(tmp_path / name), start, duration)
        read = np.concatenate(list(audio.blocks(part)), axis=1)
        first = round(start * rate)
        last = whole.shape[1] if duration is None else first + round(duration * rate)
        np.testing.assert_allclose(read, whole[:, first:last], rtol=0, atol=2e-7)  # MP3's rounding varies
        assert part.n_samples == read.shape[1]


def test_a_part_of_joined_files_may_lie_across_them(tmp_path: Path) -> None:
    waves = [0.4 * speech_like(1.0, pitch) for pitch in (100, 150, 200)]
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.ogg", wave, RATE)
    joined = tmp_path / "joined.ogg"
    joined.write_bytes(b"".join((tmp_path / f"{i}.ogg").read_bytes() for i in range(3)))
    whole = audio.read(joined)[0]
    part = audio.part(audio.inspect(joined), 0.5, 1.9)
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(part)), axis=1), whole[:, 8000:38400])


TABLES = [  # name, content, message
    ("t.csv", "speaker\na\n", r"t\.csv, row 2: has no path; a table of recordings has a column path"),
    ("t.csv", "path,start\na.wav,soon\n", r"t\.csv, row 2: has the start 'soon'; give seconds"),
    ("t.csv", "path,start\na.wav,-1\n", r"a\.wav#-1: starts at -1\.0 s; a start is a number from 0 on"),
    ("t.csv", "path,duration\na.wav,0\n", r"a\.wav: has a duration of 0\.0 s; it must be above 0"),
    ("t.csv", "path,duration\na.wav,nan\n", r"a\.wav: has a duration of nan s; it must be above 0"),
    ("t.csv", "path,split\na.wav,holdout\n", r"row 2: has the split 'holdout'; known are train, validation \(or valid"),
    ("t.csv", "path,split\na.wav\n", r"t\.csv: has another number of cells in row 2 than in its heading"),
    ("t.csv", "path,speaker\na.wav,b\na.wav,c\n", r"t\.csv: has two recordings of the name a\.wav; give each an id"),
    ("t.csv", "path\n", r"t\.csv: holds no recording that can be used"),
    ("t.jsonl", "{", r"t\.jsonl: cannot be read; give a CSV or TSV file in UTF-8, or one of JSON lines"),
    ("t.jsonl", "[1]", r"t\.jsonl: cannot be read; give a CSV or TSV file"),
    ("t.jsonl", '{"path": "a", "tags": [1]}', r"t\.jsonl, row 1: has a list or an object for tags; a label is a text"),
    ("t.jsonl.gz", "x", r"t\.jsonl\.gz: cannot be read; give a CSV"),
    ("t.jsonl", '{"sources": [], "sampling_rate": 8000}', r"is a list of lhotse's recordings; make cuts of it"),
    ("t.tar", "no tar", r"t\.tar: cannot be read \(.*\); restore the whole tar"),
    ("t.tar.gz", "x", r"t\.tar\.gz: is compressed; unpack it, as a folder of sound files or as a plain \.tar"),
]


@pytest.mark.parametrize(("name", "content", "message"), TABLES)
def test_a_table_that_says_no_place_or_time_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        prepare(tmp_path / name, tmp_path / "packed")
    assert not (tmp_path / "packed" / "index.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "nowhere-{00..03}.tar", r"nowhere-00\.tar: cannot be read \(.*No such file"),
        (
            lambda: "torchaudio:YESNO:/data",
            r"none of the data sets that tell their files \(SPEECHCOMMANDS, .*; give its folder",
        ),
        (lambda: "torchaudio:Snips", r"does not say where it is; give torchaudio:Snips:ROOT"),
        (lambda: [Item("", b"x")], r"is an item without an id; give each one"),
        (lambda: [Item("a", np.zeros(9))], r"a: is a wave without a sample rate; give its sample_rate"),
        (lambda: [Item("a", b"x"), Item("a", b"y")], r"the items: has two recordings of the name a"),
        (lambda: [], r"the items: holds no recording that can be used"),
    ],
)
def test_what_is_no_source_is_refused(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        prepare(make(), tmp_path / "packed")


@pytest.mark.parametrize(
    ("name", "advice"),
    [("a.tar", r"; name the tars in it: 'FOLDER/\*\.tar'"), ("a.parquet", r"; save the data set in it with load_dat")],
)
def test_a_folder_of_what_is_no_sound_is_told_how_to_give_it(name: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CorpusError, match=r"holds no sound file that can be used \(WAV.*W64\)" + advice):
        prepare(tmp_path, tmp_path.parent / f"packed-{name}")


@pytest.mark.usefixtures("unchecked")
def test_an_item_of_an_unknown_split_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"a: has the split 'dev'; known are train, validation, test"):
        Item("a", b"x", split="dev")  # type: ignore[arg-type]


def test_only_folders_have_a_layout(files: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no layout, as it is no folder of sound files; leave jvs out"):
        prepare(as_csv(files, tmp_path), tmp_path / "packed", PrepareSettings(layout="jvs"))


@pytest.mark.parametrize(("library", "name"), [("lhotse", "lhotse"), ("datasets", "datasets")])
def test_a_library_that_is_missing_is_named(
    library: str, name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES[name](files, tmp_path)
    monkeypatch.setitem(sys.modules, library, None)  # as where it is not installed
    with pytest.raises(AudiovaeError, match=rf": needs {library} to be read: pip install 'audiovae\[data\]'"):
        prepare(source, tmp_path / "packed")


def test_torchaudio_that_is_missing_or_of_another_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio.datasets", None)
    with pytest.raises(AudiovaeError, match=r"torchaudio:Snips: needs torchaudio to be read: .*audiovae\[audio\]'"):
        prepare(f"torchaudio:Snips:{tmp_path}", tmp_path / "packed")


def test_a_data_set_that_is_damaged_or_has_other_columns_is_refused(files: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(CorpusError, match=r"texts: has 0 columns of Audio; select one"):
        prepare(tmp_path / "texts", tmp_path / "packed")
    (tmp_path / "texts" / "state.json").write_text("{")
    with pytest.raises(CorpusError, match=r"texts: is no whole data set \(.*\); save it again"):
        prepare(tmp_path / "texts", tmp_path / "packed")


def test_a_data_set_without_splits_or_names_counts_its_rows(files: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sounds = [{"bytes": None, "path": str(files / f"{name}.flac")} for _, name in TAKES[:3]]
    (tmp_path / "text.flac").write_bytes(b"x")
    sounds.append({"bytes": None, "path": str(tmp_path / "text.flac")})
    sounds.append(None)
    rows = datasets.Dataset.from_dict({"audio": sounds, "speaker_id": [7, 7, 8, 8, 8]})
    rows.cast_column("audio", datasets.Audio()).save_to_disk(str(tmp_path / "saved"))
    prepared = prepare(tmp_path / "saved", tmp_path / "packed")
    assert {(u.id, u.speaker) for u in prepared.utterances} == {
        ("00000000", "7"), ("00000001", "7"), ("00000002", "8")
    }  # fmt: skip
    assert {u.split for u in prepared.utterances} == {"train", "validation"}
    assert [file.id for file in prepared.left_out] == ["00000003", "00000004"]
    assert prepared.left_out[0].reason.startswith("is not a sound file")
    assert prepared.left_out[1].reason == "has no bytes in its data set"


def test_a_line_of_json_may_hold_any_letter(files: Path, tmp_path: Path) -> None:
    text = "a line\u2028and \x85another, naïve"
    row = {"path": str(files / "s0-0.flac"), "text": text}
    (tmp_path / "t.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (utterance,) = prepare(tmp_path / "t.jsonl", tmp_path / "packed").utterances
    assert utterance.labels["text"] == text


def test_a_cut_of_several_speakers_and_one_without_sound_are_left_out(files: Path, tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(files / "s0-0.flac")
    spoken = [lhotse.SupervisionSegment(f"{s}", recording.id, 0, 0.5, speaker=s, text=s) for s in "ab"]
    cuts = [
        lhotse.MonoCut("both", 0, 0.6, 0, spoken, recording=recording),
        lhotse.MonoCut("none", 0, 0.6, 0, spoken[:1]),
        lhotse.MonoCut("part", 0.1, 0.4, 0, spoken[1:], recording=recording),
    ]
    cuts += [cuts[2].with_id("padded").pad(duration=1.0).with_id("padded")]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    prepared = prepare(tmp_path / "cuts.jsonl", tmp_path / "packed", PrepareSettings(trim=False))
    assert {file.id: file.reason for file in prepared.left_out} == {
        "both": "has several speakers; cut it with trim_to_supervisions", "none": "has no recording"
    }  # fmt: skip
    corpus = PackedCorpus(tmp_path / "packed")
    padded, part = sorted(corpus.utterances, key=lambda u: u.id)
    assert part.labels == {"speaker": "b", "text": "b"}
    wave = soundfile.read(files / "s0-0.flac")[0][1600:8000]
    np.testing.assert_allclose(corpus.wave(part), wave, atol=2e-5)
    assert padded.n_samples == RATE
    np.testing.assert_allclose(corpus.wave(padded)[:6000], wave[:6000], atol=1e-4)


def test_a_sample_with_two_sounds_is_left_out(files: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("s0-0", "s1-0"):
            tar.add(files / f"{name}.flac", f"below/{name}.flac")
        tar.add(files / "s2-0.flac", "below/s0-0.noisy.flac")
        (tmp_path / "word.cls").write_text("yes\n")
        tar.add(tmp_path / "word.cls", "below/s1-0.cls")
        tar.add(tmp_path / "word.cls", "below/s3-0.cls")
    prepared = prepare(tmp_path / "shard.tar", tmp_path / "packed")
    assert [(u.id, u.labels) for u in prepared.utterances] == [
        ("below/s1-0", {"speaker": "below/s1-0", "cls": "yes"}),
    ]
    assert {(file.id, file.reason) for file in prepared.left_out} == {
        ("below/s0-0", "has 2 sound files; one is wanted"), ("below/s3-0", "has 0 sound files; one is wanted")
    }  # fmt: skip


def test_labels_groups_speeds_and_named_speakers_hold_for_a_table_too(files: Path, tmp_path: Path) -> None:
    items = [replace(item, split=None, labels={}) for item in as_items(files, tmp_path)]
    table = tmp_path / "labels.csv"
    table.write_text("file,session\n" + "".join(f"{item.id},{i % 5}\n" for i, item in enumerate(items)))
    (tmp_path / "names").write_text("s4\n")
    prepared = prepare(items, tmp_path / "packed", PrepareSettings(labels=str(table), group="session", validation=0.4))
    assert prepared.split_by == "session"
    held_out = {u.labels["session"] for u in prepared.utterances if u.split == "validation"}
    assert len(held_out) == 2
    assert {u.labels["session"] for u in prepared.utterances if u.split == "train"} == set("01234") - held_out
    settings = PrepareSettings(validation_speakers=str(tmp_path / "names"), speeds=(1.1,))
    prepared = prepare(items, tmp_path / "speeds", settings)
    assert {u.id for u in prepared.utterances if u.split == "validation"} == {"s4-0", "s4-1"}
    assert sum(u.id.endswith("@1.1") for u in prepared.utterances) == 8
    overlapping = [replace(items[0], split="train"), replace(items[1], split="test")]
    with pytest.raises(
        CorpusError, match=r"speaker s0 is in the splits train and test; --group recording lets that be"
    ):
        prepare(overlapping, tmp_path / "overlap")
    assert len(prepare(overlapping, tmp_path / "overlap", PrepareSettings(group="recording")).utterances) == 2


def test_functions_that_other_processes_cannot_get_are_refused(files: Path, tmp_path: Path) -> None:
    items = as_items(files, tmp_path, sound=lambda path: lambda: path.read_bytes())
    with pytest.raises(CorpusError, match=r"the items: hold a function that other processes cannot get; take one of a"):
        prepare(items, tmp_path / "packed", jobs=2)
    assert len(prepare(items, tmp_path / "packed").utterances) == 10


def test_a_folder_of_sound_may_hold_other_files_too(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sound"
    folder.mkdir()
    (folder / "a.flac").write_bytes((files / "s0-0.flac").read_bytes())
    (folder / "state.json").write_text("{}")
    assert prepare(folder, tmp_path / "packed").layout == "folder"


def test_a_long_sound_that_is_no_file_is_read_again_from_one_that_goes(tmp_path: Path) -> None:
    wave = 0.3 * speech_like(70, 120).astype(np.float32)
    item = Item("long", lambda: wave, RATE)
    (tmp_path / "packed" / "sounds.partial").mkdir(parents=True)
    (tmp_path / "packed" / "sounds.partial" / "of-a-run-that-died.wav").write_bytes(b"x")
    prepare([item], tmp_path / "packed", PrepareSettings(trim=False))
    corpus = PackedCorpus(tmp_path / "packed")
    np.testing.assert_allclose(corpus.wave(corpus.utterances[0]), wave, atol=2e-5)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["index.jsonl", "samples.int16"]


def test_what_is_no_item_is_named() -> None:
    with pytest.raises(CorpusError, match=r"hold 'a.wav'; give each as audiovae.Item\(id, sound\)"):
        prepare(iter(["a.wav"]), "packed")  # type: ignore[arg-type]
