"""Does a sound file hold all that its header promises? libsndfile reads cut-off WAV, MP3 and OGG files short in
silence.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# Sizes that programs write into a pipe, where they cannot return to fill them in: the length is simply unknown.
_UNKNOWN_SIZE = 0x7FFFF000

_MPEG_BITRATES_KBPS = {  # by (MPEG 1?, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES_HZ = (44100, 48000, 32000)


def missing_bytes(path: str | Path) -> int:
    """How many bytes of sound the file lacks, as its container tells: 0 where it is complete or does not say.

    For an OGG file whose last page is missing, or an MP3 file that ends inside a frame, 1 stands for "some". FLAC is
    not
    looked at: its decoder reports a cut by itself.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(16)
        file.seek(0)
        for prefixes, check in _CHECKS:
            if magic.startswith(prefixes):
                return max(0, check(file, size))
    return 0


def _riff(file: BinaryIO, size: int) -> int:
    order = ">" if file.read(12).startswith(b"RIFX") else "<"
    data_size_64 = None
    for name, chunk_size, start in _chunks(file, size, order):
        if name == b"ds64":
            data_size_64 = struct.unpack("<Q", file.read(16)[8:16])[0]
        if name == b"data":
            promised = data_size_64 if chunk_size == 0xFFFFFFFF and data_size_64 is not None else chunk_size
            return 0 if chunk_size >= _UNKNOWN_SIZE and data_size_64 is None else start + promised - size
    return 0


def _aiff(file: BinaryIO, size: int) -> int:
    file.seek(12)
    return next((start + chunk - size for name, chunk, start in _chunks(file, size, ">") if name == b"SSND"), 0)


def _chunks(file: BinaryIO, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, size, start) of each RIFF or IFF chunk from the current position on; the file stands at its
    start.
    """
    position = file.tell()
    while position + 8 <= size:
        file.seek(position)
        name, chunk_size = struct.unpack(order + "4sI", file.read(8))
        yield name, chunk_size, position + 8
        position += 8 + chunk_size + chunk_size % 2


def _wave64(file: BinaryIO, size: int) -> int:
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, chunk_size = struct.unpack("<4s12xQ", file.read(24))
        if name == b"data":
            return position + chunk_size - size
        position += max(24, (chunk_size + 7) // 8 * 8)
    return 0


def _au(file: BinaryIO, size: int) -> int:
    start, data_size = struct.unpack(">4xII", file.read(12))
    return 0 if data_size >= _UNKNOWN_SIZE else start + data_size - size


def _nist(file: BinaryIO, size: int) -> int:
    lines = file.read(1024).decode("latin-1").splitlines()
    fields = {words[0]: words[2] for words in (line.split(maxsplit=2) for line in lines) if len(words) == 3}
    header_size = int(lines[1])
    count, channels, width = (int(fields.get(name, 0)) for name in ("sample_count", "channel_count", "sample_n_bytes"))
    return header_size + count * channels * width - size if "shorten" not in fields.get("sample_coding", "") else 0


def _ogg(file: BinaryIO, size: int) -> int:
    """The last page must be whole and carry the end-of-stream flag."""
    tail_start = max(0, size - 65536 - 282)  # the largest possible page
    file.seek(tail_start)
    tail = file.read()
    last = tail.rfind(b"OggS")
    if last < 0 or last + 27 > len(tail):
        return 1
    n_segments = tail[last + 26]
    segments = tail[last + 27 : last + 27 + n_segments]
    complete = len(segments) == n_segments and last + 27 + n_segments + sum(segments) <= len(tail)
    end_of_stream = bool(tail[last + 5] & 4)
    return 0 if complete and end_of_stream else 1


def _mpeg(file: BinaryIO, size: int) -> int:
    """A Xing header tells the number of bytes; without one, the last frame must be whole."""
    position = 0
    head = file.read(10)
    if head.startswith(b"ID3"):
        position = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    first = True
    while position + 4 <= size:
        file.seek(position)
        frame = file.read(200 if first else 4)
        length = _mpeg_frame_length(frame[:4])
        if length is None:
            return 0  # a tag at the end, or padding
        if first:
            for offset in (13, 21, 36):  # after the side information: MPEG 2 mono, stereo or MPEG 1 mono, MPEG 1 stereo
                if frame[offset : offset + 4] in (b"Xing", b"Info") and frame[offset + 7] & 2:
                    bytes_at = offset + 8 + 4 * (frame[offset + 7] & 1)
                    return position + int.from_bytes(frame[bytes_at : bytes_at + 4], "big") - size
        first = False
        position += length
    return 1 if position > size else 0


def _mpeg_frame_length(header: bytes) -> int | None:
    word = int.from_bytes(header, "big")
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    bitrate_index, rate_index, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    mpeg1 = version == 3
    bitrate = 1000 * _MPEG_BITRATES_KBPS[mpeg1, layer][bitrate_index]
    rate = _MPEG_RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    if layer == 1:
        return (12 * bitrate // rate + padding) * 4
    return (144 if mpeg1 or layer == 2 else 72) * bitrate // rate + padding


_CHECKS: tuple[tuple[tuple[bytes, ...], Callable[[BinaryIO, int], int]], ...] = (
    ((b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff),
    ((b"FORM",), _aiff),
    ((b"riff.\x91\xcf\x11",), _wave64),
    ((b".snd",), _au),
    ((b"NIST_1A",), _nist),
    ((b"OggS",), _ogg),
    (
        (
            b"ID3",
            b"\xff\xfb",
            b"\xff\xf3",
            b"\xff\xfa",
            b"\xff\xf2",
            b"\xff\xfc",
            b"\xff\xfd",
            b"\xff\xe3",
            b"\xff\xe2",
        ),
        _mpeg,
    ),
)
