"""Where known corpora keep their speakers and splits; any other folder of sound files works too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from audiovae.corpora.items import Item, Split
from audiovae.errors import CorpusError


@dataclass(frozen=True)
class Layout:
    """A known corpus.

    Attributes:
        pattern: matches the path of every recording (beginning with the corpus folder's own name); its groups are named
            speaker and, where the corpus has official splits, split.
        labels: names of groups that label a recording, beside the speaker.
        split_of: official split by the value of the group "split"; empty where speakers must be held out by hash.
        single_speaker: the splits are by chapter, as there is one voice only.
        shared_speakers: every speaker is in every split, by design of the corpus.
        left_out: reason to exclude a match, by its groups.
    """

    pattern: str
    split_of: Callable[[re.Match[str]], Split | None] = lambda match: None
    single_speaker: bool = False
    shared_speakers: bool = False
    labels: tuple[str, ...] = ()
    left_out: Callable[[re.Match[str]], str | None] = lambda match: None


def _libri_split(match: re.Match[str]) -> Split | None:
    splits: dict[str, Split | None] = {"train": None, "dev": "validation", "test": "test"}
    return splits[match["split"]]


def _voicebank_split(match: re.Match[str]) -> Split | None:
    if match["split"] == "test":
        return "test"
    return "validation" if match["speaker"] in ("p226", "p287") else None  # the usual two of the 28


def _wsj0_split(match: re.Match[str]) -> Split | None:
    splits: dict[str, Split | None] = {"tr": None, "dt": "validation", "et": "test"}
    return splits[match["split"]]


def _jsut_split(match: re.Match[str]) -> Split:
    splits: dict[str, Split] = {"voiceactress100": "validation", "travel1000": "test"}
    return splits.get(match["speaker"], "train")


def _digit_split(match: re.Match[str]) -> Split:
    return "test" if int(match["index"]) < 5 else "validation" if int(match["index"]) < 8 else "train"


def _timit_split(match: re.Match[str]) -> Split | None:
    return "test" if match["split"].lower() == "test" else None


LAYOUTS: dict[str, Layout] = {
    "librispeech": Layout(r"(?P<split>train|dev|test)-(clean|other)(-\d+)?/(?P<speaker>\d+)/\d+/\d+-\d+-\d+\.flac$", _libri_split),
    "libritts": Layout(r"(?P<split>train|dev|test)-(clean|other)(-\d+)?/(?P<speaker>\d+)/\d+/\d+(_\d+){3}\.wav$", _libri_split),
    "vctk": Layout(
        r"wav48(_silence_trimmed)?/(?P<speaker>[ps]\d+)/[ps]\d+_\d+(?P<mic>_mic\d)?\.(wav|flac)$",
        left_out=lambda match: "second microphone of the same take" if match["mic"] == "_mic2" else None,
    ),
    "voicebank-demand": Layout(
        r"(?P<side>clean|noisy)_(?P<split>train|test)set(_\d+spk)?_wav(_16k)?/(?P<speaker>p\d+)_\d+\.wav$",
        _voicebank_split,
        left_out=lambda match: "noisy side of the pair" if match["side"] == "noisy" else None,
    ),
    "ljspeech": Layout(
        r"wavs/(?P<speaker>LJ)(?P<chapter>\d{3})-\d{4}\.wav$",
        lambda match: "validation" if int(match["chapter"]) <= 2 else "test" if int(match["chapter"]) == 3 else "train",
        single_speaker=True,
    ),
    "wsj0": Layout(
        r"si_(?P<split>tr|dt|et)_[a-z0-9]+/(?P<speaker>[0-9a-z]{3})/[0-9a-z]{8}\.(?P<mic>wav|wv1|wv2)$",
        _wsj0_split,
        left_out=lambda match: "second microphone of the same take" if match["mic"] == "wv2" else None,
    ),
    "timit": Layout(r"(?P<split>TRAIN|TEST|train|test)/(DR|dr)[1-8]/(?P<speaker>[A-Za-z0-9]{5})/\w+\.(WAV|wav)(\.wav)?$", _timit_split),
    "cmu-arctic": Layout(r"cmu_us_(?P<speaker>[a-z]+)_arctic/wav/arctic_[ab]\d+\.wav$"),
    "jvs": Layout(
        r"(?P<speaker>jvs\d{3})/(?P<style>parallel100|nonpara30|whisper10|falset10)/wav24kHz16bit/[^/]+\.wav$",
        left_out=lambda match: "whispered or falsetto speech" if match["style"] in ("whisper10", "falset10") else None,
    ),
    "jsut": Layout(
        r"(?P<speaker>basic5000|utparaphrase512|onomatopee300|countersuffix26|loanword128|voiceactress100|travel1000|precedent130|repeat500)"
        r"/wav/[^/]+\.wav$",
        _jsut_split,
        single_speaker=True,
    ),
    "free-spoken-digits": Layout(
        r"/(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav$", _digit_split, shared_speakers=True, labels=("digit",)
    ),
}  # fmt: skip


def recognise(ids: list[str]) -> str:
    """Name of the layout that most of the ids follow, or "folder"."""
    for name, layout in LAYOUTS.items():
        matching = sum(re.search(layout.pattern, "/" + id_) is not None for id_ in ids)
        if matching > len(ids) / 2:
            return name
    return "folder"


def sources(folder: Path, files: Iterable[Path], layout_name: str = "auto") -> tuple[str, list[Item]]:
    """Name the layout and give each file its speaker and official split.

    In a plain folder the speaker is the first folder below it, and a file directly in it is a speaker of its own.

    Raises:
        CorpusError: the layout is unknown.
    """
    paths = sorted(files)
    ids = [path.relative_to(folder).as_posix() for path in paths]
    named = [f"{folder.resolve().name}/{id_}" for id_ in ids]  # so that a single split folder is recognised as well
    if layout_name == "auto":
        layout_name = recognise(named)
    if layout_name == "folder":
        speakers = [id_.split("/")[0] for id_ in ids]
        return layout_name, [
            Item(id_, path, speaker=speaker, labels={"speaker": speaker})
            for path, id_, speaker in zip(paths, ids, speakers, strict=True)
        ]
    if layout_name not in LAYOUTS:
        raise CorpusError(folder, f"unknown layout {layout_name!r}; known are auto, folder, {', '.join(LAYOUTS)}")
    layout = LAYOUTS[layout_name]
    found = []
    for path, id_, name in zip(paths, ids, named, strict=True):
        match = re.search(layout.pattern, "/" + name)
        if match is None:
            found.append(Item(id_, path, left_out=f"not part of the {layout_name} layout"))
        else:
            labels = {label: match[label] for label in ("speaker", *layout.labels)}
            split, left_out = layout.split_of(match), layout.left_out(match)
            found.append(Item(id_, path, speaker=match["speaker"], split=split, left_out=left_out, labels=labels))
    return layout_name, found


def split_by(recordings: list[Item], group: str | None) -> str:
    """What is held out as a whole: what is asked for, or speakers; "recording" where there is one speaker only, or a
    folder that tells of none.
    """
    if group is not None:
        return group
    there = [source for source in recordings if source.left_out is None]
    one = len({source.speaker for source in there}) == 1 and all(source.split is None for source in there)
    return "recording" if one or all(source.speaker == source.id for source in there) else "speaker"


def assign_splits(
    recordings: list[Item],
    layout_name: str,
    fraction: float,
    validation: frozenset[str],
    test: frozenset[str],
    group: str | None = None,
) -> list[Item]:
    """Give every recording a split such that no group stands in two.

    Speakers named in `validation` and `test` come first, then official splits, then a share of `fraction` of the other
    groups, chosen by a hash of their names, is held out for validation (unless there already is some).

    Args:
        group: see `split_by`: "speaker", "recording" or another label; None: speakers, where the corpus itself does not
            have them in several splits.

    Raises:
        CorpusError: a named speaker does not exist, is named twice, a group is in two official splits, or recordings
            have no such label.
    """
    group_of = {source.id: _group(source, group or "speaker") for source in recordings if source.left_out is None}
    speakers = {source.speaker for source in recordings if source.left_out is None}
    for name in sorted((validation | test) - speakers):
        raise CorpusError(name, "is named as a validation or test speaker, but the corpus has no such speaker")
    for name in sorted(validation & test):
        raise CorpusError(name, "is named as a validation and as a test speaker; choose one")
    named: dict[str, Split] = {**dict.fromkeys(validation, "validation"), **dict.fromkeys(test, "test")}
    chosen = [replace(source, split=named.get(source.speaker, source.split)) for source in recordings]
    if not any(source.split == "validation" for source in chosen):
        free = sorted({group_of[s.id] for s in chosen if s.split is None and not s.left_out}, key=_hash)
        n_held_out = max(1, round(fraction * len(free))) if fraction > 0 and len(free) > 1 else 0
        held_out = set(free[:n_held_out])
        chosen = [
            replace(s, split="validation") if s.split is None and group_of.get(s.id) in held_out else s for s in chosen
        ]
    chosen = [replace(source, split=source.split or "train") for source in chosen]
    layout = LAYOUTS.get(layout_name)
    if group is not None or layout is None or not (layout.single_speaker or layout.shared_speakers):
        _check_groups(chosen, group_of, group or "speaker")
    return chosen


def _group(source: Item, group: str) -> str:
    known = {**source.labels, "speaker": source.speaker, "recording": source.id}
    if group not in known:
        raise CorpusError(
            source.path or source.id, f"has no label {group!r} to split by; it has {', '.join(sorted(known))}"
        )
    return known[group]


def _check_groups(recordings: list[Item], group_of: dict[str, str], name: str) -> None:
    split_of: dict[str, Split | None] = {}
    for source in recordings:
        group = group_of.get(source.id)
        if group is not None and split_of.setdefault(group, source.split) != source.split:
            raise CorpusError(
                source.path or source.id,
                f"{name} {group} is in the splits {split_of[group]} and {source.split}; --group recording lets that be",
            )


def _hash(speaker: str) -> str:
    return hashlib.sha256(speaker.encode("utf-8", "surrogateescape")).hexdigest()


def at_speeds(recordings: list[Item], speeds: Iterable[float]) -> list[Item]:
    """The recordings, and a copy of each training one at each of the speeds, named "ID@SPEED": voices that nobody has.

    Reference: T. Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
    """
    training = [source for source in recordings if source.split == "train" and source.left_out is None]
    return recordings + [
        replace(source, id=f"{source.id}@{speed:g}", speed=speed) for speed in speeds for source in training
    ]
