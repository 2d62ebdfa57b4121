"""Recordings as people have them: folders, tables, and the data sets of other libraries."""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from audiovae import audio
from audiovae.corpora.items import Item, Split
from audiovae.corpora.layouts import sources
from audiovae.corpora.packed import LeftOut
from audiovae.errors import AudioError, AudiovaeError, CorpusError

_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_PACKED_TAR = r"\.(tgz|tar\.\w+)$"
_OTHERS = {  # what a folder may hold in place of sound files, and what to do
    ".parquet": "save the data set in it with load_dataset(FOLDER).save_to_disk(OTHER) of the library datasets, "
    "and prepare that",
    ".tar": "name the tars in it: 'FOLDER/*.tar'",
}


@dataclass(frozen=True)
class Recordings:
    """What there is to pack.

    Attributes:
        items: each with a name of its own and a speaker.
        layout: of a folder, see `audiovae.corpora.layouts`; else the kind of source.
        name: by which a second run knows the source.
        left_out: places of a folder that were not looked into.
    """

    items: list[Item]
    layout: str
    name: str
    left_out: list[LeftOut]


def recordings(source: str | Path | Iterable[Item], layout: str = "auto") -> Recordings:
    """Find the recordings of any source that `audiovae.prepare` takes.

    Args:
        layout: of a folder.

    Raises:
        CorpusError: no such source, no recording in it, two of one name, or what it says of one is no time or split.
        AudiovaeError: a library that reads it is missing.
    """
    if not isinstance(source, (str, Path)):
        kind, name, found = "items", "items", iter(source)
    elif str(source).startswith("torchaudio:"):
        kind, root, found = _torchaudio(str(source))
        name = f"{kind}:{root.resolve()}"
    elif Path(source).is_dir() and not _is_saved(Path(source)):
        return _folder(Path(source), layout)
    else:
        kind, found = _stored(Path(source))
        name = str(Path(source).resolve())
    what = source if isinstance(source, (str, Path)) else "the items"
    if layout != "auto":
        raise CorpusError(what, f"has no layout, as it is no folder of sound files; leave {layout} out")
    items, ids = [], set()
    for item in found:
        if not isinstance(item, Item):
            raise CorpusError(what, f"hold {str(item)[:50]!r}; give each as audiovae.Item(id, sound)")
        if item.id in ids:
            raise CorpusError(what, f"has two recordings of the name {item.id}; give each an id of its own")
        ids.add(item.id)
        speaker = item.speaker or item.labels.get("speaker") or item.id
        items.append(replace(item, speaker=speaker, labels={"speaker": speaker, **item.labels}))
    if all(item.left_out is not None for item in items):
        raise CorpusError(what, "holds no recording that can be used")
    return Recordings(items, kind, name, [])


def _folder(folder: Path, layout: str) -> Recordings:
    there = audio.find(folder)
    layout, found = sources(folder, there.files, layout)
    if all(item.left_out is not None for item in found):
        kinds = "WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF, NIST, RF64, W64"
        others = {path.suffix for path in folder.iterdir()} & _OTHERS.keys() if not found else set()
        advice = "; ".join(_OTHERS[suffix] for suffix in sorted(others))
        raise CorpusError(folder, f"holds no sound file that can be used ({kinds})" + (f"; {advice}" if advice else ""))
    passed = [(path, reason, False) for path, reason in there.passed_over]
    passed += [(path, reason, True) for path, reason in there.unreadable]
    left_out = [LeftOut(path.relative_to(folder).as_posix(), reason, failed, 0, 0) for path, reason, failed in passed]
    return Recordings(found, layout, str(folder.resolve()), left_out)


def _stored(path: Path) -> tuple[str, Iterator[Item]]:
    """The kind of what is no folder of sound files, and the recordings in it."""
    if path.is_dir():
        return "datasets", _datasets(path)
    if path.suffix == ".tar":
        return "webdataset", _webdataset(path)
    if re.search(_PACKED_TAR, path.name):
        raise CorpusError(path, "is compressed; unpack it, as a folder of sound files or as a plain .tar of WebDataset")
    if not path.exists():
        raise CorpusError(path, "no such folder")
    if re.search(r"\.(csv|tsv|jsonl|jsonl\.gz)$", path.name):
        rows = read_table(path)
        first: Mapping[str, Any] = rows[0] if rows else {}
        if first.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut"):
            return "lhotse", _lhotse(path)
        if "sources" in first and "sampling_rate" in first:
            raise CorpusError(path, "is a list of lhotse's recordings; make cuts of it: CutSet.from_manifests")
        return "table", _table(path, rows)
    raise CorpusError(path, "is a file; give the folder that holds it")


def _library(name: str, extra: str, what: str | Path) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: torchaudio that was built for another torch
        library = name.partition(".")[0]
        raise AudiovaeError(f"{what}: needs {library} to be read: pip install 'audiovae[{extra}]'") from error


# Tables ---------------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or TSV file, or one of JSON lines, by the names of its columns.

    Raises:
        CorpusError: it is none, or a row has another number of cells than the heading.
    """
    try:
        if ".jsonl" in path.suffixes:
            content = path.read_bytes()
            lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line that is no object")
            return rows
        with path.open(newline="", encoding="utf-8-sig") as file:
            heading = file.readline()
            file.seek(0)
            delimiter = max("\t;,", key=heading.count) if path.suffix != ".tsv" else "\t"
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise CorpusError(path, "cannot be read; give a CSV or TSV file in UTF-8, or one of JSON lines") from error
    for i, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise CorpusError(path, f"has another number of cells in row {i} than in its heading")
    return rows


def _table(path: Path, rows: list[dict[str, Any]]) -> Iterator[Item]:
    """Columns path, below the folder of the table, start, duration, id, speaker, split; any other is a label."""
    for i, row in enumerate(rows, start=1 if ".jsonl" in path.suffixes else 2):
        where = f"{path}, row {i}"
        sound = row.pop("path", None)
        if not isinstance(sound, str) or not sound:
            raise CorpusError(where, "has no path; a table of recordings has a column path")
        start, duration = (_seconds(row.pop(name, None), name, where) for name in ("start", "duration"))
        for name, value in row.items():
            if isinstance(value, (list, dict)):
                raise CorpusError(where, f"has a list or an object for {name}; a label is a text or a number")
        item = _item(row, sound + (f"#{start:g}" if start else ""), path.parent / sound, where)
        yield replace(item, start=start or 0.0, duration=duration)


def _seconds(told: Any, name: str, where: str) -> float | None:
    if told is None or told == "":
        return None
    try:
        return float(told)
    except (ValueError, TypeError) as error:
        raise CorpusError(where, f"has the {name} {told!r}; give seconds") from error


def _item(told: Mapping[str, Any], name: str, sound: Any, where: str | Path) -> Item:
    """A recording of what is known of it: its id, speaker and split; all other texts and numbers are labels.

    Args:
        name: of one without an id.
    """
    known = {key: str(value) for key, value in told.items() if isinstance(value, (str, int, float))}
    speaker = known.pop("speaker", "") or known.get("speaker_id", "")
    return Item(
        known.pop("id", "") or name, sound, speaker=speaker, split=_split(known.pop("split", ""), where), labels=known
    )


def _split(name: str, where: str | Path) -> Split | None:
    """Of a name such as "train", "dev-clean" or "validation.other"."""
    word = re.split(r"[^a-z]", name.lower())[0]
    if name and word not in _SPLITS:
        raise CorpusError(where, f"has the split {name!r}; known are train, validation (or valid, val, dev) and test")
    return _SPLITS[word] if name else None


# Other libraries ------------------------------------------------------------------------------------------------------


def _lhotse(path: Path) -> Iterator[Item]:
    """Cuts; one over all channels of a sound file is read from there, any other one as lhotse loads it."""
    lhotse = _library("lhotse", "data", path)
    for cut in lhotse.CutSet.from_file(path):
        is_simple = isinstance(cut, (lhotse.MonoCut, lhotse.MultiCut))
        spoken = cut.supervisions
        told = {"text": " ".join(s.text for s in spoken if s.text) or None}
        for custom in _customs(cut, is_simple):
            told |= custom or {}
        for name in ("speaker", "gender", "language"):
            values = {getattr(s, name) for s in spoken} - {None}
            told |= {name: values.pop()} if len(values) == 1 else {}
        item = _item({**told, "id": cut.id}, cut.id, path, path)
        if len({s.speaker for s in spoken} - {None}) > 1:
            yield replace(item, left_out="has several speakers; cut it with trim_to_supervisions")
        elif not cut.has_recording:
            yield replace(item, left_out="has no recording")
        elif is_simple and _is_file(cut):
            whole = cut.start == 0 and cut.duration >= cut.recording.duration
            sound, duration = Path(cut.recording.sources[0].source), None if whole else float(cut.duration)
            yield replace(item, sound=sound, start=float(cut.start), duration=duration)
        else:
            yield replace(item, sound=cut.load_audio, sample_rate=cut.sampling_rate)


def _customs(cut: Any, is_simple: bool) -> list[dict[str, Any] | None]:
    """What people noted of a cut and of the one that speaks in it."""
    of_speech = [spoken.custom for spoken in cut.supervisions] if len(cut.supervisions) == 1 else []
    return [*of_speech, cut.custom] if is_simple else of_speech


def _is_file(cut: Any) -> bool:
    recording = cut.recording
    is_file = len(recording.sources) == 1 and recording.sources[0].type == "file" and not recording.transforms
    return is_file and cut.num_channels == recording.num_channels


def _is_saved(folder: Path) -> bool:
    """Is it one of Hugging Face's library?"""
    one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (folder / "dataset_dict.json").is_file()


def _datasets(folder: Path) -> Iterator[Item]:
    """What Hugging Face's library saved; columns id, speaker or speaker_id, and labels."""
    datasets = _library("datasets", "data", folder)
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of its own and of its files' format
        raise CorpusError(folder, f"is no whole data set ({type(error).__name__}: {error}); save it again") from error
    for part, rows in saved.items() if isinstance(saved, datasets.DatasetDict) else [("", saved)]:
        sounds = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Audio)]
        if len(sounds) != 1:
            raise CorpusError(folder, f"has {len(sounds)} columns of Audio; select one")
        encoded = rows.select_columns(sounds).cast_column(sounds[0], datasets.Audio(decode=False))
        classes = {name: f for name, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
        for i, told in enumerate(rows.remove_columns(sounds)):
            told |= {name: f.int2str(told[name]) for name, f in classes.items() if told[name] is not None}
            name = f"{part}/{i:08d}".lstrip("/")
            yield _item({"split": part, **told}, name, partial(_encoded, encoded, sounds[0], i), folder)


def _encoded(rows: Any, column: str, i: int) -> bytes:
    sound = rows[i][column]
    if sound is None or sound["bytes"] is None:
        raise AudioError(f"row {i}", "has no bytes in its data set")
    return bytes(sound["bytes"])


def _webdataset(pattern: Path) -> Iterator[Item]:
    """Tars of samples: files that share all of their names up to the first dot, one of them sound; a .json holds what
    is known of it, a .cls or .txt a label.
    """
    for shard in _shards(str(pattern)):
        try:
            with tarfile.open(shard, "r:") as tar:
                samples: dict[str, dict[str, tarfile.TarInfo]] = {}
                for member in tar:
                    path = PurePosixPath(member.name)
                    stem, _, suffix = path.name.partition(".")
                    if member.isfile() and suffix:
                        samples.setdefault((path.parent / stem).as_posix(), {})[suffix] = member
                for name, files in samples.items():
                    yield _sample(tar, shard, name, files)
        except (OSError, ValueError, TypeError, tarfile.TarError) as error:
            raise CorpusError(shard, f"cannot be read ({error}); restore the whole tar") from error


def _shards(pattern: str) -> list[str]:
    """The names that a pattern such as "shards-{000..099}.tar" stands for, in the order of their numbers."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces is None:
        return sorted(glob.glob(pattern)) or [pattern]
    first, last = braces.groups()
    numbers = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    return [shard for i in numbers for shard in _shards(pattern[: braces.start()] + i + pattern[braces.end() :])]


def _sample(tar: tarfile.TarFile, shard: str, name: str, files: Mapping[str, tarfile.TarInfo]) -> Item:
    told: dict[str, Any] = {}
    for suffix in ("cls", "txt", "json"):
        if suffix in files:
            text = tar.extractfile(files[suffix]).read().decode()  # type: ignore[union-attr] # it is a file
            told |= dict(json.loads(text)) if suffix == "json" else {suffix: text.strip()}
    known = audio.SUFFIXES | audio.FOREIGN_SUFFIXES
    sounds = [member for suffix, member in files.items() if PurePosixPath(f"x.{suffix}").suffix.lower() in known]
    item = _item({**told, "id": name}, name, Path(shard), f"{shard}, {name}")
    if len(sounds) != 1:
        return replace(item, left_out=f"has {len(sounds)} sound files; one is wanted")
    return replace(item, sound=partial(_member, shard, sounds[0].offset_data, sounds[0].size))


def _member(shard: str, start: int, n_bytes: int) -> bytes:
    with open(shard, "rb") as file:
        file.seek(start)
        return file.read(n_bytes)


@dataclass(frozen=True)
class _Set:
    """A data set of torchaudio that tells the files of its recordings.

    Attributes:
        folder: below its root, that the files are in.
        told: what it tells of a recording, after its file and rate.
        option: that chooses a part of it; empty: it has one.
        parts: and their splits.
    """

    folder: str
    told: tuple[str, ...]
    option: str = ""
    parts: Mapping[str, str] = field(default_factory=lambda: {"": ""})


_TORCHAUDIO = {
    "SPEECHCOMMANDS": _Set(
        "SpeechCommands", ("word", "speaker", "take"), "subset", {n: n for n in ("training", "validation", "testing")}
    ),
    "FluentSpeechCommands": _Set(
        "fluent_speech_commands_dataset", ("file", "speaker", "text", "action", "object", "location"), "subset",
        {n: n for n in ("train", "valid", "test")},
    ),
    "IEMOCAP": _Set("IEMOCAP", ("file", "emotion", "speaker")),
    "Snips": _Set("SNIPS", ("file", "text", "iob", "intent"), "subset", {n: n for n in ("train", "valid", "test")}),
}  # fmt: skip


def _torchaudio(source: str) -> tuple[str, Path, Iterator[Item]]:
    """Kind, root and recordings of "torchaudio:NAME:ROOT"."""
    _, name, root = (*source.split(":", 2), "", "")[:3]
    if name not in _TORCHAUDIO:
        raise CorpusError(
            source,
            f"is none of the data sets that tell their files ({', '.join(_TORCHAUDIO)}); give its folder instead",
        )
    if not root:
        raise CorpusError(source, f"does not say where it is; give torchaudio:{name}:ROOT, the folder that holds it")
    return f"torchaudio:{name}", Path(root), _told_by_torchaudio(name, Path(root))


def _told_by_torchaudio(name: str, root: Path) -> Iterator[Item]:
    kind = _TORCHAUDIO[name]
    try:
        make = getattr(_library("torchaudio.datasets", "audio", f"torchaudio:{name}"), name)
        for part, split in kind.parts.items():
            data_set = make(root, **({kind.option: part} if part else {}))
            for i in range(len(data_set)):
                path, _, *told = data_set.get_metadata(i)
                known = {"split": split, **dict(zip(kind.told, told, strict=True))}
                yield _item(known, PurePosixPath(path).as_posix(), root / kind.folder / path, root)
    except (OSError, RuntimeError) as error:
        raise CorpusError(root, f"{name} cannot be read ({' '.join(str(error).split())[:200]})") from error
