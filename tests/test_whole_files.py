"""Files whose headers know less than they hold are read to their ends."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speech_like
from numpy.typing import NDArray
from test_containers import frame_starts

from audiovae import audio
from audiovae.containers import missing_bytes, streams
from audiovae.errors import AudioError

RATE = 16000


def sound(seconds: float = 1.0, n_channels: int = 1, rate: int = RATE) -> NDArray[np.float64]:
    return np.stack([speech_like(seconds, 120 + 30 * i, rate=rate) for i in range(n_channels)], axis=1)


# MP3 -----------------------------------------------------------------------------------------------------------------

MP3_FILES = [(rate, n, mode) for rate in (8000, 22050, 48000) for n in (1, 2) for mode in ("CONSTANT", "VARIABLE")]
every_mp3 = pytest.mark.parametrize(("rate", "n_channels", "mode"), MP3_FILES)
DECODER_DELAY = 529


def mp3(path: Path, rate: int, n_channels: int, mode: str) -> tuple[bytes, bytes, int]:
    """A file, the same without its Xing header, and the number of samples in all frames of that."""
    wave = np.concatenate([0.01 * sound(1, n_channels, rate), sound(2, n_channels, rate)])
    soundfile.write(path, wave, rate, bitrate_mode=mode, compression_level=0.3)
    whole = path.read_bytes()
    starts = frame_starts(whole, rate)
    return whole, whole[starts[1] :], (len(starts) - 1) * (1152 if rate >= 32000 else 576)


@every_mp3
def test_an_mp3_file_without_a_count_is_read_whole(rate: int, n_channels: int, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    _, bare, n_coded = mp3(path, rate, n_channels, mode)
    expected, _ = audio.read(path)
    path.write_bytes(bare)
    found, info = audio.read(path)
    assert found.shape == (n_channels, n_coded - DECODER_DELAY)
    assert info.n_samples == n_coded - DECODER_DELAY
    np.testing.assert_allclose(found[:, 576 : 576 + expected.shape[1] - 576], expected[:, :-576], atol=1e-4)


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125), b"ID3\x03\0\0\0\0\x02\x01" + bytes(257), b"junk" * 50])
@pytest.mark.parametrize("with_headers", [True, False])
def test_joined_mp3_files_are_read_whole(between: bytes, with_headers: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    whole, bare, n_coded = mp3(path, 44100, 1, "VARIABLE")
    one = whole if with_headers else bare
    n_one = audio.read(path)[1].n_samples if with_headers else n_coded
    path.write_bytes(one + between + one)
    assert audio.read(path)[0].shape == (1, 2 * n_one if with_headers else 2 * n_one - DECODER_DELAY)
    path.write_bytes(one + between + one[:-1])
    with pytest.raises(AudioError, match="is truncated"):
        audio.inspect(path)


def test_an_intact_mp3_file_is_left_to_its_decoder(tmp_path: Path) -> None:
    whole, _, _ = mp3(tmp_path / "x.mp3", 44100, 2, "VARIABLE")
    for content in (whole, b"ID3\x03\0\0\0\0\x02\x01" + bytes(257) + whole + b"TAG" + bytes(125), whole + b"x" * 1000):
        (tmp_path / "x.mp3").write_bytes(content)
        assert streams(tmp_path / "x.mp3") == []


@pytest.mark.parametrize("rates", [(44100, 44100), (22050, 22050, 22050)])
@pytest.mark.parametrize("encoder", ["ffmpeg", "libsndfile"])
def test_every_link_of_joined_mp3_files_loses_what_its_encoder_put_around_it(
    encoder: str, rates: tuple[int, ...], tmp_path: Path
) -> None:
    contents, waves = [], []
    for i, rate in enumerate(rates):
        wave = sound(0.4 + 0.3 * i, 1, rate)
        soundfile.write(tmp_path / "x.wav", wave, rate)
        if encoder == "ffmpeg":
            if shutil.which("ffmpeg") is None:
                pytest.skip("no ffmpeg")
            command = ["ffmpeg", "-v", "error", "-y", "-i", tmp_path / "x.wav", "-b:a", "64k", tmp_path / "x.mp3"]
            subprocess.run(command, check=True)
        else:
            soundfile.write(tmp_path / "x.mp3", wave, rate)
        contents.append((tmp_path / "x.mp3").read_bytes())
        waves.append(wave[:, 0])
    (tmp_path / "x.mp3").write_bytes(b"".join(contents))
    found, _ = audio.read(tmp_path / "x.mp3")
    expected = np.concatenate(waves)
    assert found.shape == (1, len(expected))
    assert np.square(found[0] - expected).mean() < 0.05 * np.square(expected).mean()  # in place to the sample


def test_a_joined_mp3_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    whole, _, _ = mp3(tmp_path / "a.mp3", 44100, 1, "CONSTANT")
    starts = frame_starts(whole, 44100)
    (tmp_path / "x.mp3").write_bytes(whole[: starts[-20]] + whole)
    with pytest.raises(AudioError, match=r"x\.mp3: is truncated"):
        audio.inspect(tmp_path / "x.mp3")


@pytest.mark.parametrize("place", [0, 7, 11])  # its name, its flags, its number of frames
def test_a_damaged_header_of_an_mp3_file_is_refused(place: int, tmp_path: Path) -> None:
    """But not where nothing but its table of places is."""
    whole, _, _ = mp3(tmp_path / "x.mp3", 44100, 1, "CONSTANT")
    at = whole.index(b"Info")
    for byte, message in ((at + place, "is (damaged: its header does not count its frames|truncated)"), (at + 50, "")):
        content = bytearray(whole)
        content[byte] -= 1
        (tmp_path / "x.mp3").write_bytes(content)
        if message:
            with pytest.raises(AudioError, match=message):
                audio.inspect(tmp_path / "x.mp3")
        else:
            assert audio.read(tmp_path / "x.mp3")[0].shape == (1, 3 * 44100)


def test_the_first_header_of_joined_mp3_files_may_speak_of_all(tmp_path: Path) -> None:
    whole, _, n_coded = mp3(tmp_path / "x.mp3", 44100, 1, "CONSTANT")
    n_frames = len(frame_starts(whole, 44100)) - 1
    at = whole.index(b"Info") + 8
    first = whole[:at] + struct.pack(">II", 2 * n_frames, 2 * len(whole)) + whole[at + 8 :]
    (tmp_path / "x.mp3").write_bytes(first + whole)
    n_second = 3 * 44100
    assert audio.read(tmp_path / "x.mp3")[0].shape == (1, n_coded - DECODER_DELAY + n_second)


@pytest.mark.parametrize("with_headers", [True, False])
def test_joined_mp3_files_of_two_rates_are_refused(with_headers: bool, tmp_path: Path) -> None:
    files = [mp3(tmp_path / f"{rate}.mp3", rate, 1, "CONSTANT") for rate in (44100, 48000)]
    (tmp_path / "x.mp3").write_bytes(b"".join(file[0 if with_headers else 1] for file in files))
    with pytest.raises(AudioError, match=r"x\.mp3: (changes its|is a chain .* different) rate.* channels.*; split"):
        audio.inspect(tmp_path / "x.mp3")


# FLAC ----------------------------------------------------------------------------------------------------------------


def without_length(content: bytes) -> bytes:
    """STREAMINFO ends with 36 bits of length and an MD5: a program that writes into a pipe leaves both at 0."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(20) + content[42:]


@pytest.mark.parametrize(("rate", "n_channels"), [(16000, 1), (44100, 2), (12345, 1), (255000, 1)])
@pytest.mark.parametrize("seconds", [0.001, 0.3, 12])
def test_a_flac_file_without_its_length_is_read_whole(
    seconds: float, rate: int, n_channels: int, tmp_path: Path
) -> None:
    wave = sound(seconds, n_channels, rate)
    soundfile.write(tmp_path / "x.flac", wave, rate)
    expected, _ = audio.read(tmp_path / "x.flac")
    (tmp_path / "x.flac").write_bytes(without_length((tmp_path / "x.flac").read_bytes()))
    found, info = audio.read(tmp_path / "x.flac")
    assert np.array_equal(found, expected)
    assert info.n_samples == len(wave)


@pytest.mark.parametrize("options", [[], ["-frame_size", "512"], ["-strict", "-2", "-ch_mode", "mid_side"]])
def test_a_flac_file_of_a_pipe_is_read_whole(options: list[str], tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg")
    soundfile.write(tmp_path / "x.wav", sound(3, 2), RATE)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", *options, "-f", "flac", "-"]
    (tmp_path / "x.flac").write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert np.array_equal(audio.read(tmp_path / "x.flac")[0], audio.read(tmp_path / "x.wav")[0])


@pytest.mark.parametrize("n_lost", [1, 3000])
def test_a_flac_file_without_its_length_that_ends_in_a_frame_is_refused(n_lost: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", sound(3), RATE)
    (tmp_path / "x.flac").write_bytes(without_length((tmp_path / "x.flac").read_bytes())[:-n_lost])
    with pytest.raises(AudioError, match=r"x\.flac: is (truncated|damaged)"):
        audio.read(tmp_path / "x.flac")


# Ogg -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("n_links", [1, 2, 5])
def test_every_link_of_an_ogg_chain_is_read(subtype: str, n_links: int, tmp_path: Path) -> None:
    contents, waves = [], []
    for i in range(n_links):
        soundfile.write(tmp_path / "link.ogg", sound(0.3 + 0.2 * i, 2), RATE, subtype=subtype, format="OGG")
        contents.append((tmp_path / "link.ogg").read_bytes())
        waves.append(audio.read(tmp_path / "link.ogg")[0])
    (tmp_path / "x.ogg").write_bytes(b"".join(contents))
    found, info = audio.read(tmp_path / "x.ogg")
    assert np.array_equal(found, np.concatenate(waves, axis=1))
    assert (info.n_samples, info.subtype) == (found.shape[1], subtype)
    (tmp_path / "x.ogg").write_bytes(b"".join(contents)[:-200])
    with pytest.raises(AudioError, match="is truncated"):
        audio.inspect(tmp_path / "x.ogg")


def test_an_ogg_chain_of_different_streams_is_refused(tmp_path: Path) -> None:
    for name, n_channels in (("a", 1), ("b", 2)):
        soundfile.write(tmp_path / f"{name}.ogg", sound(0.3, n_channels), RATE)
    (tmp_path / "x.ogg").write_bytes((tmp_path / "a.ogg").read_bytes() + (tmp_path / "b.ogg").read_bytes())
    with pytest.raises(AudioError, match="is a chain of streams with different rates or channels; split it into files"):
        audio.inspect(tmp_path / "x.ogg")


# Sizes that nobody filled in -----------------------------------------------------------------------------------------

UNFINISHED = [  # container, subtype, where its sizes stand, and how wide
    ("WAV", "PCM_16", (4, b"data"), 4),
    ("WAV", "FLOAT", (4, b"data"), 4),
    ("WAV", "ULAW", (4, b"data"), 4),
    ("WAVEX", "PCM_24", (4, b"data"), 4),
    ("AIFF", "PCM_16", (4, b"SSND"), 4),
    ("AU", "PCM_16", (8,), 4),
    ("W64", "PCM_16", (16, b"data"), 8),
    ("RF64", "PCM_16", (20, 28), 8),
]


@pytest.mark.parametrize(("container", "subtype", "places", "width"), UNFINISHED)
@pytest.mark.parametrize("value", [b"\0", b"\xff"])
@pytest.mark.parametrize("all_sizes", [True, False])
def test_an_unfinished_header_is_read_to_the_end_of_the_file(
    container: str,
    subtype: str,
    places: tuple[int | bytes, ...],
    width: int,
    value: bytes,
    all_sizes: bool,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, sound(0.5, 2), RATE, subtype=subtype, format=container)
    expected, before = audio.read(path)
    content = bytearray(path.read_bytes())
    for place in places if all_sizes else places[-1:]:
        at = place if isinstance(place, int) else content.index(place) + (16 if container == "W64" else 4)
        content[at : at + width] = value * width
    path.write_bytes(content)
    if container == "AIFF" and value == b"\xff":  # IFF has no such convention
        with pytest.raises(AudioError, match="is truncated"):
            audio.inspect(path)
        return
    assert missing_bytes(path) == 0
    found, info = audio.read(path)
    assert info == before
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0abcd", b"LIST\x03\0\0\0abc\0id3 \x02\0\0\0xy"])
def test_a_file_that_really_holds_no_samples_is_refused(tail: bytes, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((0, 1)), RATE)
    content = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(content[: content.index(b"data") + 8] + tail)
    with pytest.raises(AudioError, match="has a header but no samples"):
        audio.inspect(tmp_path / "x.wav")


def test_a_wav_file_beyond_what_its_header_can_say_is_read_whole(tmp_path: Path) -> None:
    """5 GB from a pipe; a sparse file, whose middle takes no room."""
    path = tmp_path / "x.wav"
    soundfile.write(path, sound(0.1), RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with open(path, "r+b") as file:
        file.seek(5 * 10**9 - 2)
        file.write(struct.pack("<h", 12345))
    info = audio.inspect(path)
    assert info.n_samples == (5 * 10**9 - 44) // 2
    (view,) = streams(path)
    with view, soundfile.SoundFile(view) as opened:
        opened.seek(info.n_samples - 1)
        assert opened.read(1, dtype="int16")[0] == 12345


# Codecs of blocks ----------------------------------------------------------------------------------------------------

BLOCK_CODECS = [
    (".wav", "WAV", "IMA_ADPCM"), (".wav", "WAV", "MS_ADPCM"), (".wav", "WAV", "GSM610"), (".wav", "WAV", "G721_32"),
    (".wav", "WAV", "NMS_ADPCM_16"), (".w64", "W64", "IMA_ADPCM"), (".au", "AU", "G721_32"), (".au", "AU", "G723_24"),
    (".aiff", "AIFF", "IMA_ADPCM"), (".aiff", "AIFF", "GSM610"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "container", "subtype"), BLOCK_CODECS)
@pytest.mark.parametrize("n_samples", [7, 1001, 30001])
def test_what_is_made_of_a_codec_of_blocks_has_its_length(
    suffix: str, container: str, subtype: str, n_samples: int, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, sound(2)[:n_samples, 0], 8000, subtype=subtype, format=container)
    wave, info = audio.read(path)
    assert wave.shape[1] >= n_samples
    with audio.Writer(tmp_path / f"y{suffix}", 8000, 1, wave.shape[1], info) as writer:
        writer.write(wave)
    assert writer.recoded
    again, made = audio.read(tmp_path / f"y{suffix}")
    assert (made.container, made.subtype, made.n_samples) == (container, "PCM_16", info.n_samples)
    assert np.abs(again - wave).max() <= 2**-15


def test_other_formats_are_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sound(), RATE, subtype="ULAW")
    with audio.Writer(tmp_path / "y.wav", RATE, 1, 0, audio.inspect(tmp_path / "x.wav")) as writer:
        pass
    assert not writer.recoded


# Headers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 3, 50, 999])
def test_rates_below_1_khz_are_refused(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sound(), rate)
    with pytest.raises(AudioError, match=f"has a rate of {rate} Hz by its header, below 1000; correct the header"):
        audio.inspect(tmp_path / "x.wav")


def test_a_device_is_named_as_such() -> None:
    with pytest.raises(AudioError, match="is a device, not a file"):
        audio.inspect("/dev/zero")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_written(value: float, tmp_path: Path) -> None:
    wave = np.zeros((2, 100), np.float32)
    wave[1, 50] = value
    with (
        pytest.raises(AudioError, match=r"x\.wav: would hold samples that are NaN or infinite"),
        audio.Writer(tmp_path / "x.wav", RATE, 2, 100) as writer,
    ):
        writer.write(wave)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sound(), 2**31 - 1)
    with pytest.raises(
        AudioError, match="has a rate of 2147483647 Hz by its header, above 4000000; correct the header"
    ):
        audio.inspect(tmp_path / "x.wav")


def test_a_loop_of_links_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.wav").symlink_to(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=r"x\.wav: cannot be read \(Too many levels of symbolic links\)"):
        audio.inspect(tmp_path / "x.wav")
