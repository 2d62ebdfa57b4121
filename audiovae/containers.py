"""Does a sound file hold all that its header promises, and does its header know all that it holds?

libsndfile reads cut-off WAV, MP3 and OGG files short in silence; and it stops where a header
says, even if there is more.
"""

from __future__ import annotations

import io
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from audiovae.errors import AudioError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_Part = bytes | tuple[int, int]  # what stands there, or (start, end) in the file

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
    not looked at: its decoder reports a cut by itself.
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
    data = _riff_data(file, size)
    if data is None or data.unfinished or (data.size >= _UNKNOWN_SIZE and data.size_at_64 is None):
        return 0
    return data.start + data.size - size


@dataclass(frozen=True)
class _Data:
    """The chunk of a WAV file that holds its samples.

    Attributes:
        size: that its header promises.
        start: of its first sample.
        size_at_64: where an RF64 file says it in 64 bits.
        order: of the bytes, for struct.
        unfinished: nobody returned to fill the size in.
    """

    size: int
    start: int
    size_at_64: int | None
    order: str
    unfinished: bool


def _riff_data(file: BinaryIO, size: int) -> _Data | None:
    file.seek(0)
    order = ">" if file.read(12).startswith(b"RIFX") else "<"
    size_64, size_at_64 = 0, None
    for name, chunk_size, start in _chunks(file, size, order):
        if name == b"ds64":
            size_at_64, size_64 = start + 8, struct.unpack("<Q", file.read(16)[8:16])[0]
        if name == b"data":
            in_64 = chunk_size == 0xFFFFFFFF and size_at_64 is not None
            promised = size_64 if in_64 else chunk_size
            unknown = promised in (0, 2**64 - 1) or (
                not in_64 and promised >= _UNKNOWN_SIZE and start + promised < size
            )
            unfinished = unknown and start < size and not (promised == 0 and _only_chunks(file, start, size, order))
            return _Data(promised, start, size_at_64 if in_64 else None, order, unfinished)
    return None


def _only_chunks(file: BinaryIO, start: int, size: int, order: str) -> bool:
    """Is all from `start` to the end of the file a row of chunks with names, and so no sound?"""
    file.seek(start)
    end = start
    for name, chunk_size, chunk_start in _chunks(file, size, order):
        if not (name.isascii() and name.decode().isprintable()):
            return False
        end = chunk_start + chunk_size
    return size - 1 <= end <= size + 1


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
    start, chunk_size = _wave64_data(file, size)
    return 0 if chunk_size in (0, 24, 2**64 - 1) else start - 24 + chunk_size - size


def _wave64_data(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the samples begin, and the size of their chunk with its header; (size, 24) where there are none."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, chunk_size = struct.unpack("<4s12xQ", file.read(24))
        if name == b"data":
            return position + 24, chunk_size
        position += max(24, (chunk_size + 7) // 8 * 8)
    return size, 24


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
    """A Xing header tells the numbers of bytes and frames; and the last frame must be whole."""
    links = _mpeg_links(file, size)
    lacking = max((link.promised_end - size for link in links), default=0)
    if lacking > 0:
        return lacking
    if any(link.promised is not None and link.promised > link.count + 1 and not link.speaks_of_all for link in links):
        return 1
    return 1 if links and links[-1].end > size else 0


@dataclass
class _MpegLink:
    """An MP3 file, or one of those that were joined: its frames from one Xing header to the next.

    Attributes:
        first: header of the first frame.
        info: where the frame with the Xing header stands, which holds no sound; empty without one.
        count: of the frames that hold sound.
        promised: by the Xing header, how many there are; None without.
        promised_end: by the Xing header, where the link ends; 0 without.
        end: of the last frame.
        places: of those that hold sound, those side by side taken together: (start, end).
        changes: not all have the same rate and number of channels.
        is_damaged: the frame with the Xing header is not as LAME wrote it, by its CRC.
        speaks_of_all: the Xing header counts the frames of all links from here on, as some programs join files.
    """

    first: bytes
    info: list[_Part] = field(default_factory=list)
    count: int = 0
    promised: int | None = None
    promised_end: int = 0
    end: int = 0
    places: list[_Part] = field(default_factory=list)
    changes: bool = False
    is_damaged: bool = False
    speaks_of_all: bool = False

    @property
    def knows_its_count(self) -> bool:
        """Some programs count the frame with the header too."""
        return self.promised in (self.count, self.count + 1)


def _mpeg_links(file: BinaryIO, size: int) -> list[_MpegLink]:
    links: list[_MpegLink] = []
    position = _behind_mpeg_tags(file, 0)
    while position + 4 <= size:
        file.seek(position)
        frame = file.read(200)
        length = _mpeg_frame_length(frame[:4])
        if length is None:
            behind = _behind_mpeg_tags(file, position)
            like = links[-1].first if links else b""
            position = behind if behind > position else _next_mpeg_frame(file, position, like)
            continue
        xing = next((at for at in (13, 21, 36) if _is_xing(frame, at, is_first=not links)), None)
        if not links or xing is not None:
            links.append(_MpegLink(frame[:4]))
        link = links[-1]
        link.changes |= _mpeg_kind(frame) != _mpeg_kind(link.first)
        place = (position, position + length)
        if xing is None:
            link.count += 1
            last = link.places[-1] if link.places else None
            if isinstance(last, tuple) and last[1] == position:
                link.places[-1] = (last[0], place[1])
            else:
                link.places.append(place)
        else:
            crc_at = xing + _LAME_CRC
            link.is_damaged = _is_lame(frame, xing) and _crc16(frame[:crc_at]).to_bytes(2) != frame[crc_at:][:2]
        if xing is not None and frame[xing : xing + 4] in (b"Xing", b"Info"):
            link.info = [place]
            n_frames, n_bytes = (int.from_bytes(frame[at : at + 4], "big") for at in (xing + 8, xing + 12))
            if frame[xing + 7] & 1:
                link.promised = n_frames
            if frame[xing + 7] & 2:
                link.promised_end = position + (n_bytes if frame[xing + 7] & 1 else n_frames)
        link.end = position = place[1]
    for i, link in enumerate(links):
        rest = sum(other.count for other in links[i:])
        link.speaks_of_all = link.promised is not None and 0 <= link.promised - rest <= len(links) - i
    return links


_LAME_NAME, _LAME_CRC = 120, 154  # where LAME's name and its CRC of all before it stand behind "Xing"


def _is_xing(frame: bytes, at: int, is_first: bool) -> bool:
    """Or one whose own name is damaged, at the beginning: a frame without sound that names its encoder."""
    return frame[at : at + 4] in (b"Xing", b"Info", b"VBRI") or (
        is_first and not any(frame[4:at]) and _is_lame(frame, at)
    )


def _is_lame(frame: bytes, at: int) -> bool:
    return frame[at + _LAME_NAME :].startswith(b"LAME")


def _crc16(content: bytes) -> int:
    """Of the polynomial x^16 + x^15 + x^2 + 1, lowest bits first."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def _mpeg_kind(header: bytes) -> tuple[int, int, bool]:
    """Version and layer, rate, and whether it is mono."""
    return header[1] & 0x1E, header[2] & 0x0C, header[3] >> 6 == 3


def _behind_mpeg_tags(file: BinaryIO, position: int) -> int:
    """Where an ID3 or APE tag that begins there ends, and all that follow it; `position` itself if there is none."""
    while True:
        file.seek(position)
        head = file.read(32)
        if head.startswith(b"ID3") and len(head) >= 10:
            length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            position += 10 + length
        elif head.startswith(b"TAG"):
            position += 128
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            position += 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
        else:
            return position


def _next_mpeg_frame(file: BinaryIO, position: int, like: bytes) -> int:
    """Where the next two frames in a row begin that are of the kind of `like`; the end of the file if nowhere."""
    file.seek(position)
    while len(block := file.read(2**16)) >= 4:
        for match in re.finditer(rb"\xff[\xe2-\xff]", block):
            place = position + match.start()
            file.seek(place)
            head = file.read(4)
            length = _mpeg_frame_length(head) if len(head) == 4 else None
            if length and (not like or _mpeg_kind(head) == _mpeg_kind(like)):
                file.seek(place + length)
                following = file.read(4)
                if _mpeg_frame_length(following) is not None and _mpeg_kind(following) == _mpeg_kind(head):
                    return place
        position += len(block) - 1  # a header may begin with the last byte
        file.seek(position)
    return position + 4


def _mpeg_frame_length(header: bytes) -> int | None:
    """In bytes; None for what is no header of a frame."""
    if len(header) < 4:
        return None
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


# What a header does not know ------------------------------------------------------------------------------------------


def streams(path: str | Path) -> list[View]:
    """A file as one or more streams, one after another, whose headers know all that they hold; empty if it is one.

    A chain of Ogg streams is cut into its links, and joined MP3 files are; an MP3 file without a true number of frames
    gets one, and loses what stands between its frames; the size or length that nobody filled in is.

    Raises:
        AudioError: the parts of an MP3 file have different rates or numbers of channels.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(16)
        for prefixes, know in _KNOW:
            if magic.startswith(prefixes):
                try:
                    return [View(path, parts) for parts in know(file, size)]
                except _UncountedError as error:
                    raise AudioError(path, str(error)) from error
    return []


class _UncountedError(Exception):
    """A file whose frames cannot be counted, and why."""


class View(io.RawIOBase):
    """Parts of a file, and bytes between them, as a file that can be read."""

    def __init__(self, path: str | Path, parts: list[_Part]) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        self._parts = [part for part in parts if _length(part)]
        self._ends = list(accumulate(_length(part) for part in self._parts))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        into = memoryview(buffer).cast("B")
        n_read = 0  # a short read is the end to libsndfile
        while n_read < len(into) and (content := self._next(len(into) - n_read)):
            into[n_read : n_read + len(content)] = content
            n_read += len(content)
        return n_read

    def _next(self, n_bytes: int) -> bytes:
        """At most so many bytes of one part; none at the end."""
        i = bisect_right(self._ends, self._position)
        if i == len(self._parts):
            return b""
        part = self._parts[i]
        offset = self._position - self._ends[i] + _length(part)
        n_bytes = min(n_bytes, _length(part) - offset)
        if isinstance(part, bytes):
            content = part[offset : offset + n_bytes]
        else:
            self._file.seek(part[0] + offset)
            content = self._file.read(n_bytes)
        self._position += len(content)
        return content

    def close(self) -> None:
        self._file.close()
        super().close()


def _length(part: _Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]


def _know_riff(file: BinaryIO, size: int) -> list[list[_Part]]:
    data = _riff_data(file, size)
    if data is None or not data.unfinished:
        return []
    n_bytes = size - data.start
    if data.size_at_64 is not None:
        sizes = struct.pack("<QQ", size - 8, n_bytes)
        return [[(0, data.size_at_64 - 8), sizes, (data.size_at_64 + 8, size)]]
    if size < 0xFFFFFFF0:
        whole, sound = (struct.pack(data.order + "I", value) for value in (size - 8, n_bytes))
        return [[(0, 4), whole, (8, data.start - 4), sound, (data.start, size)]]
    if data.order == ">":
        return []  # there is no RF64 of such
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, size - 8, n_bytes, 0, 0)
    unsaid = b"\xff\xff\xff\xff"
    return [[b"RF64" + unsaid + b"WAVE" + ds64, (12, data.start - 4), unsaid, (data.start, size)]]


def _know_aiff(file: BinaryIO, size: int) -> list[list[_Part]]:
    file.seek(12)
    for name, chunk_size, start in _chunks(file, size, ">"):
        if name == b"SSND":
            sizes = [struct.pack(">I", value) for value in (size - 8, size - start)]
            unfinished = chunk_size in (0, 8) and start + 8 < size < 0xFFFFFFF0
            unfinished = unfinished and not _only_chunks(file, start + chunk_size, size, ">")
            return [[(0, 4), sizes[0], (8, start - 4), sizes[1], (start, size)]] if unfinished else []
    return []


def _know_wave64(file: BinaryIO, size: int) -> list[list[_Part]]:
    start, chunk_size = _wave64_data(file, size)
    if chunk_size not in (0, 24, 2**64 - 1) or start >= size:
        return []
    sizes = [struct.pack("<Q", value) for value in (size, size - start + 24)]
    return [[(0, 16), sizes[0], (24, start - 8), sizes[1], (start, size)]]


def _know_au(file: BinaryIO, size: int) -> list[list[_Part]]:
    file.seek(4)
    start, data_size = struct.unpack(">II", file.read(8))
    return [[(0, 8), b"\xff\xff\xff\xff", (12, size)]] if data_size == 0 and start < size else []


def _know_flac(file: BinaryIO, size: int) -> list[list[_Part]]:
    file.seek(0)
    head = file.read(26)
    if int.from_bytes(head[21:], "big") % 2**36:
        return []
    n_samples = _flac_samples(file)
    if not 0 < n_samples < 2**36:
        return []
    return [[(0, 21), (head[21] << 32 | n_samples).to_bytes(5, "big"), (26, size)]]


def _flac_samples(file: BinaryIO) -> int:
    """Where the last frame of a FLAC file ends, in samples; 0 if it does not begin with a frame."""
    position, is_last = 4, False
    while not is_last:
        file.seek(position)
        head = file.read(4)
        position += 4 + int.from_bytes(head[1:], "big")
        is_last = not head or head[0] >= 0x80
    file.seek(position)
    like = file.read(_FLAC_HEADER_BYTES)
    first = _flac_frame(like, like)
    if first is None:
        return 0
    unit = 1 if like[1] == 0xF9 else first[1]  # of the numbers: samples, or frames, then all as long as the first
    n_samples = 0
    file.seek(position)
    while len(block := file.read(2**20)) > 5:
        n_kept = _FLAC_HEADER_BYTES if len(block) == 2**20 else 0
        for match in re.finditer(rb"\xff[\xf8\xf9]", block[: len(block) - n_kept]):
            frame = _flac_frame(block[match.start() : match.start() + _FLAC_HEADER_BYTES], like)
            if frame is not None and 0 <= frame[0] * unit - n_samples < _FLAC_GAP:
                n_samples = frame[0] * unit + frame[1]
        position += len(block) - n_kept
        file.seek(position)
    return n_samples


_FLAC_HEADER_BYTES = 16  # at most
_FLAC_GAP = 2**24  # samples of frames whose headers are damaged, which the decoder will tell; what is beyond is chance
_FLAC_BLOCK_SAMPLES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << i for i in range(8)))


def _flac_frame(header: bytes, like: bytes) -> tuple[int, int] | None:
    """Number and length in samples of a frame of the kind of `like`; None for what is no header of one.

    Reference: RFC 9639, "Free Lossless Audio Codec (FLAC)", 2024, section 9.1.
    """
    if len(header) < 6 or header[1] != like[1] or any((header[i] ^ like[i]) & 15 for i in (2, 3)):
        return None
    n_ones = 8 - (header[4] ^ 0xFF).bit_length()  # the number is coded as in UTF-8: what its first byte begins with
    place = 4 + max(1, n_ones)
    number = header[4] & 0xFF >> n_ones + 1
    for byte in header[5:place]:
        number = number << 6 | byte & 0x3F
    size_code, rate_code = header[2] >> 4, header[2] & 15
    n_samples = _FLAC_BLOCK_SAMPLES[size_code]
    if size_code in (6, 7):
        n_samples = 1 + int.from_bytes(header[place : place + size_code - 5], "big")
        place += size_code - 5
    place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    return (number, n_samples) if n_samples and _crc8(header[: place + 1]) == 0 else None


def _crc8(content: bytes) -> int:
    """Of the polynomial x^8 + x^2 + x + 1; 0 for what ends with its own."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc


def _know_ogg(file: BinaryIO, size: int) -> list[list[_Part]]:
    """Each link begins with pages that say so, one for every stream that runs in it at the same time."""
    starts: list[int] = []
    position, in_beginning = 0, False
    while position + 27 <= size:
        file.seek(position)
        head = file.read(27)
        if not head.startswith(b"OggS"):
            file.seek(position)
            block = file.read(2**16)
            at = block.find(b"OggS", 1)
            position += at if at > 0 else max(1, len(block) - 3)
            continue
        begins = bool(head[5] & 2)
        if begins and not in_beginning:
            starts.append(position)
        in_beginning = begins
        position += 27 + head[26] + sum(file.read(head[26]))
    return [[part] for part in zip(starts, [*starts[1:], size], strict=True)] if len(starts) > 1 else []


def _know_mpeg(file: BinaryIO, size: int) -> list[list[_Part]]:
    """A link whose Xing header is right keeps it: by it the decoder cuts off what the encoder put at both ends."""
    links = [link for link in _mpeg_links(file, size) if link.count]
    if len(links) == 1 and links[0].knows_its_count:
        return []
    if any(link.changes for link in links):
        raise _UncountedError("changes its rate or its number of channels in the middle; split it there")
    if any(link.is_damaged and not (link.knows_its_count or link.speaks_of_all) for link in links):
        raise _UncountedError("is damaged: its header does not count its frames; restore the whole file")
    headers = [link.info if link.knows_its_count else _xing_frame(link.first, link.count) for link in links]
    return [[*header, *link.places] for header, link in zip(headers, links, strict=True)] if all(headers) else []


def _xing_frame(like: bytes, n_frames: int) -> list[_Part]:
    """A silent frame of layer 3 that says how many follow; empty for another layer."""
    if like[1] & 6 != 2:
        return []
    mpeg1, mono = like[1] >> 3 & 3 == 3, like[3] >> 6 == 3
    place = 4 + (17 if mpeg1 == mono else 32 if mpeg1 else 9)
    for bitrate in range(1, 15):
        header = bytes((like[0], like[1] | 1, like[2] & 0x0C | bitrate << 4, like[3]))
        length = _mpeg_frame_length(header)
        if length is not None and length >= place + 12:
            content = header.ljust(place, b"\0") + b"Xing\0\0\0\1" + n_frames.to_bytes(4, "big")
            return [content.ljust(length, b"\0")]
    return []


_MPEG_PREFIXES = _CHECKS[-1][0]
_KNOW: tuple[tuple[tuple[bytes, ...], Callable[[BinaryIO, int], list[list[_Part]]]], ...] = (
    ((b"RIFF", b"RIFX", b"RF64", b"BW64"), _know_riff),
    ((b"FORM",), _know_aiff),
    ((b"riff.\x91\xcf\x11",), _know_wave64),
    ((b".snd",), _know_au),
    ((b"fLaC",), _know_flac),
    ((b"OggS",), _know_ogg),
    (_MPEG_PREFIXES, _know_mpeg),
)
