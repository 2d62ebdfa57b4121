"""Sound files of every kind: read, refused, resampled and written."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from audiovae import audio
from audiovae.audio import Resampler, Writer, resample, resampled_length
from audiovae.errors import AudioError, PathError

RATE = 16000

# Suffix, container and subtype as libsndfile names them, and the largest error of a sample after one encoding.
FORMATS = [
    (".wav", "WAV", "PCM_16", 2**-15),
    (".wav", "WAV", "PCM_24", 2**-23),
    (".wav", "WAV", "PCM_32", 2**-24),
    (".wav", "WAV", "PCM_U8", 2**-7),
    (".wav", "WAV", "FLOAT", 0),
    (".wav", "WAV", "DOUBLE", 0),
    (".wav", "WAV", "ULAW", 2**-5),
    (".wav", "WAV", "ALAW", 2**-5),
    (".wav", "WAVEX", "PCM_24", 2**-23),
    (".wav", "RF64", "PCM_16", 2**-15),
    (".wav", "NIST", "PCM_16", 2**-15),
    (".rf64", "RF64", "FLOAT", 0),
    (".flac", "FLAC", "PCM_16", 2**-15),
    (".flac", "FLAC", "PCM_24", 2**-23),
    (".ogg", "OGG", "VORBIS", 0.1),
    (".oga", "OGG", "VORBIS", 0.1),
    (".ogg", "OGG", "OPUS", 0.5),  # at the abrupt end; the correlation tells the rest
    (".opus", "OGG", "OPUS", 0.5),
    (".mp3", "MP3", "MPEG_LAYER_III", 0.1),
    (".aiff", "AIFF", "PCM_16", 2**-15),
    (".aif", "AIFF", "PCM_24", 2**-23),
    (".aifc", "AIFF", "FLOAT", 0),
    (".au", "AU", "PCM_16", 2**-15),
    (".snd", "AU", "ULAW", 2**-5),
    (".caf", "CAF", "PCM_16", 2**-15),
    (".w64", "W64", "PCM_24", 2**-23),
    (".sph", "NIST", "PCM_16", 2**-15),
    (".nist", "NIST", "ULAW", 2**-5),
]
every_format = pytest.mark.parametrize(
    ("suffix", "container", "subtype", "tolerance"), FORMATS, ids=["-".join((row[0][1:], *row[1:3])) for row in FORMATS]
)


def sound(n_samples: int = 6001, n_channels: int = 2) -> NDArray[np.float32]:
    """A tone that rises, with faint noise, another one in every channel."""
    time = np.arange(n_samples) / RATE
    noise = 0.01 * np.random.default_rng(0).standard_normal((n_channels, n_samples))
    frequencies = 300 + 150 * np.arange(n_channels)[:, None]
    return (0.5 * np.linspace(0.2, 1, n_samples) * np.sin(2 * np.pi * frequencies * time) + noise).astype(np.float32)


def store(
    path: Path, wave: NDArray[np.float32], container: str | None = None, subtype: str | None = None, rate: int = RATE
) -> Path:
    soundfile.write(path, wave.T, rate, subtype=subtype, format=container)
    return path


# Reading -------------------------------------------------------------------------------------------------------------


@every_format
def test_a_file_is_read_with_its_shape_and_rate(
    suffix: str, container: str, subtype: str, tolerance: float, tmp_path: Path
) -> None:
    path = store(tmp_path / f"x{suffix}", sound(), container, subtype)
    wave, info = audio.read(path)
    assert info == audio.AudioInfo(path, RATE, 6001, 2, container, subtype)
    assert info.seconds == 6001 / 16000
    assert wave.dtype == np.float32
    assert wave.shape == (2, 6001)
    assert np.abs(wave - sound()).max() <= tolerance
    assert np.corrcoef(wave[1], sound()[1])[0, 1] > 0.99


@every_format
def test_a_written_file_is_like_the_one_it_was_made_of(
    suffix: str, container: str, subtype: str, tolerance: float, tmp_path: Path
) -> None:
    wave, info = audio.read(store(tmp_path / f"x{suffix}", sound(), container, subtype))
    with Writer(tmp_path / f"y{suffix}", RATE, 2, 6001, like=info) as writer:
        for start in range(0, 6001, 1000):
            writer.write(wave[:, start : start + 1000])
    again, info_again = audio.read(tmp_path / f"y{suffix}")
    assert (info_again.container, info_again.subtype) == (container, subtype)
    assert (info_again.sample_rate, info_again.n_samples, info_again.n_channels) == (RATE, 6001, 2)
    assert np.abs(again - wave).max() <= max(tolerance, 2**-15)
    assert {path.name for path in tmp_path.iterdir()} == {f"x{suffix}", f"y{suffix}"}


@pytest.mark.parametrize("block", [1, 999, 6000, 6001, 7000, None])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_blocks_put_together_are_the_whole_file(block: int | None, suffix: str, tmp_path: Path) -> None:
    path = store(tmp_path / f"x{suffix}", sound(3001))
    info = audio.inspect(path)
    parts = list(audio.blocks(info, block))
    assert all(part.flags.c_contiguous for part in parts)
    assert [part.shape[1] for part in parts[:-1]] == [block] * (len(parts) - 1)
    together = np.concatenate(parts, axis=1)
    assert together.shape == (2, 3001)
    np.testing.assert_allclose(
        together, audio.read(path)[0], atol=0 if suffix != ".mp3" else 1e-6
    )  # the MP3 decoder rounds otherwise


@pytest.mark.parametrize("n_channels", [1, 3, 8])
@pytest.mark.parametrize("rate", [1000, 11025, 192000])
def test_any_rate_and_number_of_channels_is_read(rate: int, n_channels: int, tmp_path: Path) -> None:
    wave, info = audio.read(store(tmp_path / "x.wav", sound(50, n_channels), subtype="FLOAT", rate=rate))
    assert (info.sample_rate, wave.shape) == (rate, (n_channels, 50))
    assert np.array_equal(wave, sound(50, n_channels))


def test_a_suffix_in_capitals_is_read(tmp_path: Path) -> None:
    assert audio.read(store(tmp_path / "X.WAV", sound()))[0].shape == (2, 6001)


def test_a_file_is_resampled_on_the_way_in(tmp_path: Path) -> None:
    wave, info = audio.read(store(tmp_path / "x.wav", sound(), rate=44100), 16000)
    assert info.sample_rate == 44100
    assert wave.shape == (2, math.ceil(6001 * 16000 / 44100))


# A size that a program could not fill in afterwards, as it wrote into a pipe.
@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFF8, 0x7FFFF000])
def test_a_wav_file_of_unknown_length_is_read_to_its_end(size: int, tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", sound())
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    assert np.abs(audio.read(path)[0] - sound()).max() <= 2**-15


@pytest.mark.parametrize("n_samples", [2**36 - 1, 2**31])
def test_a_header_that_promises_too_much_is_refused_by_name(n_samples: int, tmp_path: Path) -> None:
    """And not by running out of memory."""
    path = store(tmp_path / "x.flac", sound())
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | n_samples >> 32
    content[22:26] = struct.pack(">I", n_samples & 0xFFFFFFFF)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"x\.flac: is (truncated|damaged)"):
        audio.read(path)


# Refused files -------------------------------------------------------------------------------------------------------

TEXT = b"The birch canoe slid on the smooth planks.\n" * 100
NOT_SOUND = "is not a sound file, or a damaged one; restore it, or convert it to WAV or FLAC"


@pytest.mark.parametrize("suffix", sorted(audio.SUFFIXES))
def test_text_under_the_suffix_of_a_sound_file_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(TEXT)
    with pytest.raises(AudioError, match=NOT_SOUND):
        audio.read(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", sorted(audio.SUFFIXES))
def test_an_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").touch()
    with pytest.raises(AudioError, match=r"is empty \(0 bytes\); restore it or leave it out"):
        audio.inspect(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".au", ".caf", ".w64", ".rf64", ".sph", ".ogg"])
def test_a_header_without_samples_is_refused(suffix: str, tmp_path: Path) -> None:
    container = {".sph": "NIST"}.get(suffix)
    path = store(tmp_path / f"x{suffix}", np.zeros((1, 0), np.float32), container)
    assert path.stat().st_size > 20
    with pytest.raises(AudioError, match="has a header but no samples; restore it or leave it out"):
        audio.inspect(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("place", [0, 3000, 6000])
def test_samples_that_are_not_finite_are_refused(value: float, place: int, tmp_path: Path) -> None:
    wave = sound().astype(np.float64)
    wave[1, place] = value
    path = store(tmp_path / "x.wav", wave, subtype="DOUBLE")
    with pytest.raises(AudioError, match="holds samples that are NaN or infinite; repair it or leave it out"):
        audio.read(path)


@pytest.mark.parametrize("suffix", [".m4a", ".M4A", ".aac", ".wma", ".webm"])
def test_a_format_that_cannot_be_decoded_is_named_with_a_remedy(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(TEXT)
    with pytest.raises(AudioError, match=rf"\{suffix} files cannot be read; convert it to WAV or FLAC first"):
        audio.inspect(tmp_path / f"x{suffix}")


def test_no_suffix_is_both_readable_and_foreign() -> None:
    assert not audio.SUFFIXES & audio.FOREIGN_SUFFIXES


@pytest.mark.parametrize("name", ["none.wav", "none.m4a", "no/folder.wav", "broken-link.wav"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "broken-link.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="no such file") as caught:
        audio.inspect(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: no such file"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").mkdir()
    with pytest.raises(AudioError, match="is a folder, not a sound file"):
        audio.inspect(tmp_path / "x.wav")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="is a pipe, not a file; write it to a file first"):
        audio.inspect(tmp_path / "x.wav")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", sound(60000))
    info = audio.inspect(path)
    path.write_bytes(path.read_bytes()[:100000])
    with pytest.raises(AudioError, match=r"is truncated: \d+ of 60000 samples can be read; restore the whole file"):
        list(audio.blocks(info))


def test_a_file_that_vanishes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", sound())
    info = audio.inspect(path)
    path.unlink()
    with pytest.raises(AudioError, match=r"x\.wav: "):
        list(audio.blocks(info))


# Resampling ----------------------------------------------------------------------------------------------------------

RATES = [
    (16000, 8000),
    (8000, 16000),
    (44100, 16000),
    (16000, 44100),
    (1000, 16000),
    (192000, 16000),
    (16000, 192000),
    (11025, 16000),
]


@pytest.mark.parametrize(("rate", "new_rate"), [*RATES, (16000, 16000), (192000, 1000)])
@pytest.mark.parametrize("length", [1, 2, 159, 4001])
def test_resampling_rounds_the_length_up(rate: int, new_rate: int, length: int) -> None:
    expected = math.ceil(length * new_rate / rate)
    assert resampled_length(length, rate, new_rate) == expected >= 1
    wave = resample(np.ones((2, length), np.float32), rate, new_rate)
    assert wave.shape == (2, expected)
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    assert resample(np.ones(length, np.float32), rate, new_rate).shape == (expected,)


@pytest.mark.parametrize(("rate", "new_rate"), RATES)
def test_a_resampled_sine_is_the_sine_of_the_new_rate(rate: int, new_rate: int) -> None:
    """In place: no delay, no change of gain; at a fifth of the lower rate, away from the ends."""
    frequency = 0.2 * min(rate, new_rate)
    n_samples = rate  # one second
    wave = np.sin(2 * np.pi * frequency * np.arange(n_samples) / rate).astype(np.float32)
    expected = np.sin(2 * np.pi * frequency * np.arange(new_rate) / new_rate)
    middle = slice(new_rate // 5, 4 * new_rate // 5)
    np.testing.assert_allclose(resample(wave, rate, new_rate)[middle], expected[middle], atol=2e-4)


def test_what_the_new_rate_cannot_hold_is_removed() -> None:
    wave = np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(wave, 16000, 8000)[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize(("rate", "new_rate"), RATES)
@pytest.mark.parametrize("length", [1, 2, 159, 4001])
def test_resampling_is_that_of_soxr_for_a_wave_followed_by_silence(rate: int, new_rate: int, length: int) -> None:
    """To the last sample: what is beyond the end counts as zero."""
    wave = sound(length, 1)[0]
    padded = np.concatenate([wave, np.zeros(100 + rate, np.float32)])
    expected = soxr.resample(padded, rate, new_rate, quality="HQ")[: math.ceil(length * new_rate / rate)]
    np.testing.assert_allclose(resample(wave, rate, new_rate), expected, atol=1e-5)


@pytest.mark.parametrize(("rate", "new_rate"), [*RATES, (16000, 16000)])
def test_resampling_blocks_gives_what_resampling_the_whole_gives(rate: int, new_rate: int) -> None:
    wave = sound(rate // 3, 2)
    generator = np.random.default_rng(1)
    resampler, parts, start = Resampler(rate, new_rate, 2), [], 0
    while start < wave.shape[1]:
        size = int(generator.integers(0, wave.shape[1] // 3))
        parts.append(resampler.push(wave[:, start : start + size]))
        start += size
    parts.append(resampler.finish(resampled_length(wave.shape[1], rate, new_rate)))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), resample(wave, rate, new_rate), atol=1e-6)


def test_channels_are_resampled_apart() -> None:
    wave = np.stack([sound(4000, 1)[0], np.zeros(4000, np.float32)])
    resampled = resample(wave, 16000, 11025)
    assert np.array_equal(resampled[0], resample(wave[0], 16000, 11025))
    assert not resampled[1].any()


# Writing -------------------------------------------------------------------------------------------------------------


USUAL_FORMATS = [
    (".wav", "WAV", "PCM_16"), (".WAV", "WAV", "PCM_16"), (".flac", "FLAC", "PCM_16"), (".ogg", "OGG", "VORBIS"),
    (".opus", "OGG", "OPUS"),
    (".mp3", "MP3", "MPEG_LAYER_III"), (".aif", "AIFF", "PCM_16"), (".snd", "AU", "PCM_16"), (".sph", "NIST", "PCM_16"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "container", "subtype"), USUAL_FORMATS)
def test_another_suffix_decides_on_the_format(suffix: str, container: str, subtype: str, tmp_path: Path) -> None:
    like = audio.inspect(store(tmp_path / "x.w64", sound(), subtype="FLOAT"))
    with Writer(tmp_path / f"y{suffix}", RATE, 2, 6001, like) as writer:
        writer.write(sound())
    info = audio.inspect(tmp_path / f"y{suffix}")
    assert (info.container, info.subtype, info.n_samples) == (container, subtype, 6001)


def test_a_wav_file_beyond_four_gigabytes_becomes_rf64(tmp_path: Path) -> None:
    """Decided by the announced length: nothing of that size is written here."""
    for n_samples, container in ((1_000_000, "WAV"), (600_000_000, "RF64")):
        with Writer(tmp_path / "x.wav", RATE, 2, n_samples) as writer:
            writer.write(sound())
        assert audio.inspect(tmp_path / "x.wav").container == container
        assert audio.read(tmp_path / "x.wav")[0].shape == (2, 6001)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with Writer(tmp_path / "deep" / "er" / "x.wav", RATE, 2, 6001) as writer:
        writer.write(sound())
        assert not (tmp_path / "deep" / "er" / "x.wav").exists()
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["x.wav"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop"), AudioError("y.wav", "is damaged")])
@pytest.mark.parametrize("before", [None, b"an earlier file"])
def test_nothing_is_left_when_the_block_raises(error: BaseException, before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    if before is not None:
        path.write_bytes(before)

    def write_and_fail() -> None:
        with Writer(path, RATE, 2, 6001) as writer:
            writer.write(sound())
            raise error

    with pytest.raises(type(error)) as caught:
        write_and_fail()
    assert caught.value is error
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == (
        {} if before is None else {"x.wav": before}
    )


CLIPPING = [
    (0.5, ".wav", "PCM_16", False), (1.0, ".wav", "PCM_16", False), (1.5, ".wav", "PCM_16", True), (1.5, ".wav",
    "PCM_24", True),
    (1.001, ".wav", "PCM_U8", True), (1.5, ".flac", "PCM_16", True), (1.5, ".aiff", "PCM_24", True), (1.001, ".wav",
    "ULAW", True),
    (1.5, ".wav", "ALAW", True), (1.5, ".sph", "ULAW", True), (1.5, ".wav", "MS_ADPCM", True), (1.5, ".wav", "FLOAT",
    False),
    (1.5, ".wav", "DOUBLE", False), (0.5, ".wav", "ULAW", False),
]  # fmt: skip


@pytest.mark.parametrize(("peak", "suffix", "subtype", "clips"), CLIPPING)
def test_peaks_above_full_scale_are_reported_and_cut_off(
    peak: float, suffix: str, subtype: str, clips: bool, tmp_path: Path
) -> None:
    """What is stored is the wave within -1 and 1: it does not wrap around to the other end of the range."""
    container = {".sph": "NIST"}.get(suffix)
    like = audio.inspect(store(tmp_path / f"x{suffix}", sound(), container, subtype))
    wave = np.float32(peak) * np.sin(2 * np.pi * np.arange(8000, dtype=np.float32) / 160)[None]
    with Writer(tmp_path / f"y{suffix}", RATE, 1, 8000, like) as writer:
        writer.write(wave[:, :20])
        writer.write(wave[:, 20:])
    assert writer.peak == pytest.approx(peak, rel=1e-6)
    assert writer.clips == clips
    stored = audio.read(tmp_path / f"y{suffix}")[0][:, :8000]
    np.testing.assert_allclose(stored, wave.clip(-1, 1) if clips else wave, atol=0.1)


@pytest.mark.parametrize(
    ("name", "what"),
    [("x.xyz", r"\.xyz"), ("x", "no suffix"), ("x.m4a", r"\.m4a"), ("x.npz", r"\.npz"), (".wav", "no suffix")],
)
def test_a_suffix_that_cannot_be_written_is_refused(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=f"{what} is not a sound format that can be written; use .wav or .flac"):
        Writer(tmp_path / name, RATE, 1, 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rate", "n_channels"),
    [("x.opus", 44100, 1), ("x.mp3", 192000, 1), ("x.mp3", 16000, 8), ("x.flac", 16000, 9)],
)
def test_what_a_format_cannot_hold_is_refused(name: str, rate: int, n_channels: int, tmp_path: Path) -> None:
    message = f"cannot be written as .* at {rate} Hz with {n_channels} channels; .*choose another suffix"
    with pytest.raises(AudioError, match=message), Writer(tmp_path / name, rate, n_channels, 100):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for target in (tmp_path / "file" / "x.wav", tmp_path / "file" / "deep" / "x.wav"):
        message = r"cannot be written .*check the folder and the free space"
        with pytest.raises(PathError, match=message) as caught, Writer(target, RATE, 1, 100):
            pass
        assert caught.value.path == target
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_target_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").mkdir()
    with pytest.raises(PathError, match="cannot be written"), Writer(tmp_path / "x.wav", RATE, 2, 6001) as writer:
        writer.write(sound())
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]
    assert list((tmp_path / "x.wav").iterdir()) == []


# Runs where no file may grow beyond a number of bytes, which stands for a disk without room.
FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from audiovae.audio import Writer
from audiovae.errors import PathError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, limit, n_samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
wave = 0.3 * np.random.default_rng(0).standard_normal((1, n_samples)).astype(np.float32)
results = {}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for suffix in sys.argv[4:]:
    try:
        with Writer(folder / f"x{suffix}", 16000, 1, n_samples) as writer:
            writer.write(wave)
        results[suffix] = "no error"
    except PathError as error:
        results[suffix] = str(error)
    except BaseException as error:
        results[suffix] = repr(error)
    results[suffix] = [results[suffix], [path.name for path in folder.iterdir()]]
    for path in folder.iterdir():
        path.unlink()
print(json.dumps(results))
"""
WRITTEN_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".caf", ".w64", ".rf64", ".sph")
DISKS = [
    (10, 3000),
    (1200, 3000),
    (4096, 160000),
]  # room for no header; for some of a file that is written when closed; for some blocks


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, tuple[str, list[str]]]]:
    """What happened to files of every format on disks that were full."""
    found = {}
    for limit, n_samples in DISKS:
        command = [
            sys.executable,
            "-c",
            FULL_DISK,
            str(tmp_path_factory.mktemp("full")),
            str(limit),
            str(n_samples),
            *WRITTEN_SUFFIXES,
        ]
        found[limit, n_samples] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
@pytest.mark.parametrize("disk", DISKS)
def test_on_a_full_disk_writing_fails_with_one_line_and_leaves_nothing(
    disk: tuple[int, int], suffix: str, full_disks: dict[tuple[int, int], dict[str, tuple[str, list[str]]]]
) -> None:
    message, left = full_disks[disk][suffix]
    assert f"x{suffix}: cannot be written" in message
    assert "\n" not in message
    assert left == []
