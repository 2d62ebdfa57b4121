"""audiovae enhance --stream - -o -: from the standard input to the standard output while it is heard."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from audiovae.cli.streams import SIGN
from audiovae.errors import STANDARD_INPUT, AudiovaeError

_TYPES: dict[str, np.dtype[np.int16] | np.dtype[np.float32]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}
_UNKNOWN_LENGTH = 0xFFFFFFFF
_LEAST_UNKNOWN_LENGTH = 0x7FFFF000  # what programs write that do not know it: nearly 2 or 4 GiB, or 0
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # of a WAV's format chunk
_LARGEST_CHUNK = 2**20  # bytes, before the samples
_BLOCK = 2**14  # bytes, at most
_OF_FILES: dict[str, Any] = {  # options of files, which a stream refuses, and what they are where none is given
    "overwrite": False, "resume": False, "break_lock": False, "residual": None, "report": None, "json": False,
    "jobs": 1, "devices": 1, "shard": None, "ray": None, "batch": None, "label": [], "device": "cpu",
    "precision": "auto", "noise": "slow", "rank": 8, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How samples stand in a stream, those of all channels beside each other.

    Attributes:
        sample_rate: in Hz.
        n_channels: of them.
        kind: s16 or f32, little-endian.
        n_bytes: of samples, as a header says; None: until the stream ends.
    """

    sample_rate: int
    n_channels: int = 1
    kind: str = "s16"
    n_bytes: int | None = None

    @property
    def frame_bytes(self) -> int:
        return self.n_channels * _TYPES[self.kind].itemsize

    @classmethod
    def raw(cls, text: str) -> Form:
        """What --raw says.

        Raises:
            AudiovaeError: it is none.
        """
        rate, _, rest = text.partition(",")
        kind, _, channels = rest.partition(",")
        numbers = [rate, channels or "1"]
        if kind not in ("", *_TYPES) or not all(n.isascii() and n.isdigit() and 0 < int(n) < 10**6 for n in numbers):
            raise AudiovaeError(f"enhance: --raw must be RATE, RATE,f32 or RATE,s16,CHANNELS, got {text[:40]!r}")
        return cls(int(rate), int(channels or 1), kind or "s16")

    @classmethod
    def of_header(cls, read: Any) -> Form:
        """Of a WAV, up to its first sample.

        Raises:
            AudiovaeError: it is none, or one of other samples.
        """
        fault = f"the {STANDARD_INPUT} is no WAV of 16-bit or 32-bit float samples; convert it, or say --raw RATE"
        riff = read(12)
        if riff[:4] not in (b"RIFF", b"RF64") or riff[8:] != b"WAVE":
            raise AudiovaeError(fault)
        form = None
        while True:
            head = read(8)
            if len(head) < 8:
                raise AudiovaeError(fault)
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                break
            content = read(size + size % 2) if size <= _LARGEST_CHUNK else b""
            if name == b"fmt " and len(content) >= 16:
                tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
                tag = struct.unpack("<H", content[24:26])[0] if tag == _EXTENSIBLE and len(content) >= 26 else tag
                kind = {(_PCM, 16): "s16", (_FLOAT, 32): "f32"}.get((tag, bits))
                form = cls(rate, channels, kind) if kind and channels and rate else None
        if form is None:
            raise AudiovaeError(fault)
        is_known = riff[:4] == b"RIFF" and 0 < size < _LEAST_UNKNOWN_LENGTH
        return replace(form, n_bytes=size if is_known else None)

    def header(self) -> bytes:
        """Of a WAV whose length is not known yet."""
        tag, size = (_PCM if self.kind == "s16" else _FLOAT), _TYPES[self.kind].itemsize
        chunk = struct.pack(
            "<HHIIHH", tag, self.n_channels, self.sample_rate, self.sample_rate * self.frame_bytes, self.frame_bytes,
            8 * size,
        )  # fmt: skip
        length = struct.pack("<I", _UNKNOWN_LENGTH)
        return b"RIFF" + length + b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + b"data" + length

    def decoded(self, content: bytes) -> Float32[np.ndarray, "channel sample"]:
        samples = np.frombuffer(content, _TYPES[self.kind]).reshape(-1, self.n_channels).T.astype(np.float32)
        return samples / np.float32(2**15) if self.kind == "s16" else samples

    def encoded(self, wave: Float32[np.ndarray, "channel sample"]) -> bytes:
        """Samples beyond full scale are cut in 16 bits."""
        if self.kind == "s16":
            wave = np.rint(wave * 2.0**15).clip(-(2**15), 2**15 - 1)
        return wave.T.astype(_TYPES[self.kind]).tobytes()


def run(options: Any) -> int:
    """Enhance the standard input until it ends.

    Raises:
        AudiovaeError: options that do not go with --stream, or an input that is none.
    """
    if options.inputs != [SIGN] or options.output != SIGN:
        raise AudiovaeError("enhance: --stream goes from the standard input to the standard output: --stream - -o -")
    for name, plain in _OF_FILES.items():
        if getattr(options, name) != plain:
            raise AudiovaeError(
                f"enhance: --stream makes sound alone, in one way; leave out --{name.replace('_', '-')}"
            )
    if options.method not in (None, "fast"):
        raise AudiovaeError("enhance: --stream has one method, fast; leave out --method")
    from audiovae.prior import AudioVAE
    from audiovae.separation.streaming import stream

    prior = AudioVAE.from_pretrained(options.model or "speech-16k-live")
    with open(0, "rb", 0, closefd=False) as source, open(1, "wb", 0, closefd=False) as target:
        form = Form.raw(options.raw) if options.raw else Form.of_header(lambda n: _whole(source, n))
        lookahead = 1 if options.lookahead is None else options.lookahead
        live = stream(prior, sample_rate=form.sample_rate, n_channels=form.n_channels, lookahead=lookahead)
        if not options.quiet:
            latency = 1000 * live.latency / form.sample_rate
            lost = (
                f"; without what lies above {prior.sample_rate / 2000:g} kHz"
                if form.sample_rate > prior.sample_rate
                else ""
            )
            _tell(f"{form.sample_rate} Hz, speech comes after {latency:.1f} ms{lost}")
        if not options.raw:
            _write(target, form.header())
        n_early = live.latency  # before the wave there is nothing
        for content in _frames(source, form):
            try:
                speech = live.push(form.decoded(content))
            except ValueError as error:
                raise AudiovaeError(f"{STANDARD_INPUT}: {error}") from error
            n_dropped = min(n_early, speech.shape[1])
            n_early -= n_dropped
            _write(target, form.encoded(speech[:, n_dropped:]))
        _write(target, form.encoded(live.flush()[:, n_early:]))
    return 0


def _whole(source: Any, n: int) -> bytes:
    """So many bytes of a pipe, fewer at its end."""
    content = b""
    while len(content) < n and (more := source.read(n - len(content))):
        content += more
    return content


def _frames(source: Any, form: Form) -> Iterator[bytes]:
    """Whole frames, as soon as they are there; what follows the samples is no sound."""
    rest, n_read = b"", 0
    while more := os.read(source.fileno(), _BLOCK):
        more = more if form.n_bytes is None else more[: max(0, form.n_bytes - n_read)]
        n_read += len(more)
        rest += more
        n = len(rest) // form.frame_bytes * form.frame_bytes
        if n:
            yield rest[:n]
        rest = rest[n:]
    if form.n_bytes is not None and n_read < form.n_bytes:
        missing = (form.n_bytes - n_read) / form.frame_bytes / form.sample_rate
        _tell(f"the {STANDARD_INPUT} ended {missing:.2f} s before what its header says")
    elif rest:
        _tell(f"the {STANDARD_INPUT} ended within a sample, which is left out")


def _tell(line: str) -> None:
    print(f"audiovae: {line}", file=sys.stderr, flush=True)


def _write(target: Any, content: bytes) -> None:
    while content:
        content = content[target.write(content) :]
