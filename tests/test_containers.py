"""Truncated files: each container's own way to tell, and none that is complete is accused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speech_like

from audiovae import audio
from audiovae.containers import missing_bytes
from audiovae.errors import AudioError

# Suffix, container, subtype; CAF is not among them: a file that lacks its last few per cent is read short.
FORMATS = [
    (".wav", "WAV", "PCM_16"), (".wav", "WAV", "PCM_24"), (".wav", "WAV", "FLOAT"), (".wav", "WAV", "ULAW"), (".wav",
    "WAVEX", "PCM_16"),
    (".wav", "WAV", "IMA_ADPCM"), (".rf64", "RF64", "PCM_16"), (".flac", "FLAC", "PCM_16"), (".flac", "FLAC", "PCM_24"),
    (".ogg", "OGG", "VORBIS"), (".opus", "OGG", "OPUS"), (".mp3", "MP3", "MPEG_LAYER_III"), (".aiff", "AIFF", "PCM_16"),
    (".aifc", "AIFF", "FLOAT"), (".au", "AU", "PCM_16"), (".w64", "W64", "PCM_16"), (".sph", "NIST", "PCM_16"),
    (".wav", "NIST", "PCM_16"),
]  # fmt: skip
NAMES = ["-".join((row[0][1:], *row[1:])) for row in FORMATS]
every_format = pytest.mark.parametrize(("suffix", "container", "subtype"), FORMATS, ids=NAMES)
EXACT = {"WAV", "WAVEX", "RF64", "AIFF", "AU", "W64", "NIST"}  # their headers tell the number of bytes


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], bytes]:
    folder = tmp_path_factory.mktemp("whole")
    wave = np.stack([speech_like(1.0, 120), speech_like(1.0, 150)], axis=1)
    found = {}
    for suffix, container, subtype in [*FORMATS, (".caf", "CAF", "PCM_16")]:
        soundfile.write(folder / f"x{suffix}", wave, 16000, subtype=subtype, format=container)
        found[suffix, container, subtype] = (folder / f"x{suffix}").read_bytes()
    return found


@every_format
def test_a_whole_file_lacks_nothing(
    suffix: str, container: str, subtype: str, whole_files: dict, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole_files[suffix, container, subtype])
    assert missing_bytes(path) == 0
    assert audio.read(path)[0].shape[0] == 2


@every_format
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9, 0.99, 0.999, -100, -1])
def test_a_truncated_file_is_refused(
    suffix: str, container: str, subtype: str, kept: float, whole_files: dict, tmp_path: Path
) -> None:
    whole = whole_files[suffix, container, subtype]
    n_kept = len(whole) + int(kept) if kept < 0 else int(kept * len(whole))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole[:n_kept])
    with pytest.raises(
        AudioError, match=r"is truncated: |is damaged: decoding fails|is not a sound file, or a damaged one"
    ):
        audio.read(path)
    if n_kept > 2000 and container != "FLAC":  # beyond the header: by the right name
        with pytest.raises(AudioError, match="is truncated: it ends before its header says; restore the whole file"):
            audio.inspect(path)
    if n_kept > 2000 and container in EXACT:
        assert missing_bytes(path) == len(whole) - n_kept


def test_a_caf_file_that_lacks_most_of_its_sound_is_refused(whole_files: dict, tmp_path: Path) -> None:
    whole = whole_files[".caf", "CAF", "PCM_16"]
    (tmp_path / "x.caf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match="is not a sound file, or a damaged one"):
        audio.read(tmp_path / "x.caf")


@pytest.mark.parametrize("tail", [b"LIST\x04\0\0\0abcd", b"junk behind the last chunk", b"\0" * 4097])
@pytest.mark.parametrize("name", [(".wav", "WAV", "PCM_16"), (".aiff", "AIFF", "PCM_16"), (".au", "AU", "PCM_16")])
def test_bytes_behind_the_sound_do_no_harm(
    name: tuple[str, str, str], tail: bytes, whole_files: dict, tmp_path: Path
) -> None:
    path = tmp_path / f"x{name[0]}"
    path.write_bytes(whole_files[name] + tail)
    assert missing_bytes(path) == 0
    assert audio.read(path)[0].shape == (2, 16000)


def test_the_sound_may_stand_behind_other_chunks_of_odd_size(whole_files: dict, tmp_path: Path) -> None:
    """A RIFF chunk is padded to an even number of bytes."""
    whole = whole_files[".wav", "WAV", "PCM_16"]
    other = b"note" + struct.pack("<I", 5) + b"hello\0"
    content = bytearray(whole[:36] + other + whole[36:])
    content[4:8] = struct.pack("<I", len(content) - 8)
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    assert missing_bytes(path) == 0
    assert audio.read(path)[0].shape == (2, 16000)
    path.write_bytes(content[:-10])
    assert missing_bytes(path) == 10


def test_a_big_endian_wav_file_is_understood(whole_files: dict, tmp_path: Path) -> None:
    wave = soundfile_roundtrip(tmp_path / "x.wav", "WAV", endian="BIG")
    assert (tmp_path / "x.wav").read_bytes().startswith(b"RIFX")
    assert audio.read(tmp_path / "x.wav")[0].shape == wave.shape[::-1]
    content = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(content[:-7])
    assert missing_bytes(tmp_path / "x.wav") == 7


def soundfile_roundtrip(path: Path, container: str, endian: str) -> np.ndarray:
    wave = np.stack([speech_like(0.2, 120), speech_like(0.2, 150)], axis=1)
    soundfile.write(path, wave, 16000, subtype="PCM_16", format=container, endian=endian)
    return wave


def test_an_au_file_of_unknown_length_lacks_nothing(whole_files: dict, tmp_path: Path) -> None:
    content = bytearray(whole_files[".au", "AU", "PCM_16"])
    content[8:12] = b"\xff\xff\xff\xff"
    (tmp_path / "x.au").write_bytes(content)
    assert missing_bytes(tmp_path / "x.au") == 0
    assert audio.read(tmp_path / "x.au")[0].shape == (2, 16000)


@pytest.mark.parametrize("name", [(".ogg", "OGG", "VORBIS"), (".opus", "OGG", "OPUS")])
def test_an_ogg_file_that_lacks_whole_pages_is_refused(
    name: tuple[str, str, str], whole_files: dict, tmp_path: Path
) -> None:
    """Cut between two pages: only the flag of the last page tells the end."""
    whole = whole_files[name]
    last = whole.rindex(b"OggS")
    assert last > 1000
    path = tmp_path / f"x{name[0]}"
    path.write_bytes(whole[:last])
    assert missing_bytes(path) == 1
    with pytest.raises(AudioError, match="is truncated"):
        audio.inspect(path)


# MP3 -----------------------------------------------------------------------------------------------------------------

KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def frame_starts(content: bytes, rate: int) -> list[int]:
    """Where the frames begin: 144 (72 below 32 kHz, which is MPEG 2) bits per second over the rate apart, plus
    padding."""
    samples, table = (144, KBPS[1]) if rate >= 32000 else (72, KBPS[2])
    starts, position = [], 0
    while position + 4 <= len(content) and content[position] == 0xFF:
        starts.append(position)
        position += samples * 1000 * table[content[position + 2] >> 4] // rate + (content[position + 2] >> 1 & 1)
    return starts


def test_tags_around_an_mp3_file_do_no_harm(whole_files: dict, tmp_path: Path) -> None:
    whole = whole_files[".mp3", "MP3", "MPEG_LAYER_III"]
    at_front, at_end = b"ID3\x03\0\0\0\0\x02\x01" + bytes(257), b"TAG" + bytes(125)
    path = tmp_path / "x.mp3"
    for content in (at_front + whole, whole + at_end, at_front + whole + at_end):
        path.write_bytes(content)
        assert missing_bytes(path) == 0
        assert audio.read(path)[0].shape == (2, 16000)
    path.write_bytes((at_front + whole)[:-50])
    assert missing_bytes(path) == 50


# MPEG 1, 2 and 2.5 have other tables, and the tag with the length stands at another place in mono and stereo.
MP3_FILES = [(rate, n_channels) for rate in (8000, 11025, 16000, 22050, 44100, 48000) for n_channels in (1, 2)]
every_mp3 = pytest.mark.parametrize(("rate", "n_channels"), MP3_FILES)


def mp3(path: Path, rate: int, n_channels: int) -> bytes:
    soundfile.write(path, np.tile(speech_like(0.5, 120, rate=rate)[:, None], n_channels), rate)
    return path.read_bytes()


@every_mp3
def test_an_mp3_file_tells_how_many_bytes_it_lacks(rate: int, n_channels: int, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    whole = mp3(path, rate, n_channels)
    assert missing_bytes(path) == 0
    for n_cut in (1, 100, len(whole) // 2):
        path.write_bytes(whole[:-n_cut])
        assert missing_bytes(path) == n_cut


@every_mp3
def test_an_mp3_file_without_a_length_must_end_with_a_whole_frame(rate: int, n_channels: int, tmp_path: Path) -> None:
    """Its first frame, which tells the length, is taken away."""
    path = tmp_path / "x.mp3"
    whole = mp3(path, rate, n_channels)
    starts = frame_starts(whole, rate)
    assert len(starts) > 5
    assert whole[starts[-1]] == 0xFF
    bare = whole[starts[1] :]
    path.write_bytes(bare)
    assert missing_bytes(path) == 0
    path.write_bytes(bare[:-1])
    assert missing_bytes(path) == 1
    with pytest.raises(AudioError, match="is truncated"):
        audio.inspect(path)
    path.write_bytes(whole[starts[1] : starts[4]])  # whole frames: nothing tells that there were more
    assert missing_bytes(path) == 0


# Hostile headers -----------------------------------------------------------------------------------------------------

HOSTILE = [
    b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", b"RF64\xff\xff\xff\xffWAVEds64", b"RIFF\0\0\0\0WAVEdata\xff\xff\xff\x7e",
    b"FORM\0\0", b"FORM\0\0\0\0AIFF", b"riff.\x91\xcf\x11" + bytes(60), b".snd", b".snd\xff",
    b"NIST_1A", b"NIST_1A\nabc\n", b"NIST_1A\n   1024\nsample_count -i x\n", b"OggS", b"OggS" + bytes(22) + b"\xff",
    b"ID3", b"\xff\xfb", b"\xff\xfb\x90", b"\xff\xfb\xf0\0", b"fLaC", b"caff",
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
def test_a_broken_header_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(AudioError, match=r"x\.wav: (is truncated|is not a sound file|has a header but no samples)"):
        audio.inspect(tmp_path / "x.wav")


@every_format
def test_changed_headers_are_read_or_refused(
    suffix: str, container: str, subtype: str, whole_files: dict, tmp_path: Path
) -> None:
    """Twenty files with a few bytes of the first hundred changed at random: none raises another error, none hangs."""
    generator = np.random.default_rng(0)
    path = tmp_path / f"x{suffix}"
    for _ in range(20):
        content = bytearray(whole_files[suffix, container, subtype])
        for place in generator.integers(0, 100, 3):
            content[place] = generator.integers(0, 256)
        path.write_bytes(content)
        try:
            info = audio.inspect(path)
            n_read = sum(block.shape[1] for block in audio.blocks(info))
        except AudioError:
            continue
        assert n_read == info.n_samples
