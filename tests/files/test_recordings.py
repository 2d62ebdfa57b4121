"""Sound files through a prior: what is streamed equals what is computed at once, and what is stored comes back."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, build_prior, speech_like
from numpy.typing import NDArray
from torch import Tensor

from audiovae import STFT, AudioVAE, audio, phase
from audiovae.audio import resample
from audiovae.errors import AudioError, ModelError
from audiovae.files import LatentsFile, Recording, decode_file, encode_file, resynthesize_file, stretch, stretches
from audiovae.level import active_level
from audiovae.models import MODELS
from audiovae.phase import StreamingGriffinLim
from audiovae.stft import Front, StreamingSynthesis, power


def sound(n_samples: int, n_channels: int = 1, rate: int = RATE) -> NDArray[np.float32]:
    """Speech-like channels of different pitch and loudness."""
    seconds = max(n_samples / rate, 1e-9)
    rows = [
        speech_like(seconds + 1 / rate, 0.01 * rate + 7 * i, seed=i, rate=rate)[:n_samples] / (i + 1)
        for i in range(n_channels)
    ]
    return np.stack(rows).astype(np.float32)


def store(path: Path, wave: NDArray[np.floating], rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, wave.T, rate, subtype=subtype)
    return path


def offline(prior: AudioVAE, wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """The resynthesis of a whole wave: to the prior's rate, one level for all channels, and back."""
    at_rate = resample(wave, rate, prior.sample_rate)
    level = active_level(at_rate, prior.sample_rate)
    with torch.no_grad():
        result = prior.resynthesize(torch.from_numpy(at_rate), level=level)
    return resample(result.numpy(), prior.sample_rate, rate)[:, : wave.shape[1]]


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in blocks of 50 ms: less than one window at 16 kHz."""
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 0.05)


# Resynthesis ---------------------------------------------------------------------------------------------------------

RECORDINGS = [
    # rate, channels, samples
    (16000, 1, 16001),
    (16000, 2, 12345),
    (16000, 8, 4000),
    (16000, 1, 1),
    (16000, 3, 2),
    (16000, 1, 800),
    (44100, 2, 30011),
    (8000, 1, 7777),
    (11025, 1, 9999),
    (1000, 1, 2001),
    (1000, 2, 1),
    (192000, 1, 100001),
    (192000, 1, 1),
    (192000, 2, 13),
]


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
def test_the_streamed_resynthesis_of_a_file_is_the_offline_one(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    wave = sound(n_samples, n_channels, rate)
    writer = resynthesize_file(prior, store(tmp_path / "x.wav", wave, rate), tmp_path / "y.wav")
    result, info = audio.read(tmp_path / "y.wav")
    assert (info.sample_rate, info.n_channels, info.n_samples, info.subtype) == (rate, n_channels, n_samples, "FLOAT")
    expected = offline(prior, wave, rate)
    assert np.abs(expected).max() > 0
    tolerance = 2e-5 if rate == RATE else 2e-4  # the level of a file is measured before it is resampled
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))
    assert writer.peak == np.abs(result).max()


def test_a_file_of_several_usual_blocks_is_resynthesised_as_a_whole(prior: AudioVAE, tmp_path: Path) -> None:
    """45 s in blocks of 20 s."""
    wave = sound(45 * RATE + 3)
    resynthesize_file(prior, store(tmp_path / "x.wav", wave), tmp_path / "y.wav")
    np.testing.assert_allclose(audio.read(tmp_path / "y.wav")[0], offline(prior, wave, RATE), rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [100, 9000])
def test_blocks_of_any_length_give_the_same_file(
    length: int, prior: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "x.wav", sound(length, 2, 44100), 44100)
    results = []
    for seconds in (0.003, 0.0111, 0.05, 20.0):
        monkeypatch.setattr(audio, "BLOCK_SECONDS", seconds)
        resynthesize_file(prior, path, tmp_path / "y.wav")
        results.append(audio.read(tmp_path / "y.wav")[0])
    for result in results[:-1]:
        np.testing.assert_allclose(result, results[-1], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("phase", ["original", "griffin-lim"])
@pytest.mark.parametrize(
    ("rate", "n_channels", "n_samples"), [(16000, 1, 5000), (44100, 2, 10000), (16000, 1, 1), (1000, 3, 100)]
)
def test_silence_stays_silent(
    phase: str, rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    path = store(tmp_path / "x.wav", np.zeros((n_channels, n_samples), np.float32), rate)
    resynthesize_file(prior, path, tmp_path / "y.wav", phase)  # type: ignore[arg-type]
    assert np.array_equal(audio.read(tmp_path / "y.wav")[0], np.zeros((n_channels, n_samples), np.float32))


ODD = {
    "direct current": np.full((1, 5000), 0.5),
    "full scale, clipped": np.clip(10 * sound(9000, 2), -1, 1),
    "one silent channel": sound(5000, 2) * [[1.0], [0.0]],
    "a click": np.eye(1, 5000, 2500),
    "faint": 1e-8 * sound(5000),
    "far above full scale": 1e3 * sound(5000),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_sound_gives_finite_sound_of_the_same_shape(name: str, prior: AudioVAE, tmp_path: Path) -> None:
    wave = ODD[name].astype(np.float32)
    resynthesize_file(prior, store(tmp_path / "x.wav", wave), tmp_path / "y.wav")
    result, _ = audio.read(tmp_path / "y.wav")
    assert result.shape == wave.shape
    assert 0 < np.abs(result).max() < 100 * np.abs(wave).max()
    if name == "one silent channel":
        assert not result[1].any()


@pytest.mark.parametrize("gain", [1e-6, 1e3])
def test_a_louder_file_gives_a_louder_file(gain: float, prior: AudioVAE, tmp_path: Path) -> None:
    wave = sound(6001, 2)
    for name, factor in (("a", 1.0), ("b", gain)):
        resynthesize_file(
            prior, store(tmp_path / f"{name}.wav", np.float32(factor) * wave), tmp_path / f"{name}-out.wav"
        )
    first, second = (audio.read(tmp_path / f"{name}-out.wav")[0] for name in "ab")
    np.testing.assert_allclose(second / gain, first, rtol=0, atol=2e-5)


SAMPLE_FORMATS = [(".wav", "PCM_16"), (".wav", "PCM_24"), (".wav", "ULAW"), (".flac", "PCM_24"), (".ogg", "VORBIS")]


@pytest.mark.parametrize(("suffix", "subtype"), SAMPLE_FORMATS)
def test_the_sample_format_is_kept(suffix: str, subtype: str, prior: AudioVAE, tmp_path: Path) -> None:
    path = store(tmp_path / f"x{suffix}", sound(5000, 2), subtype=subtype)
    resynthesize_file(prior, path, tmp_path / f"y{suffix}")
    assert dataclasses.replace(audio.inspect(tmp_path / f"y{suffix}"), path=path) == audio.inspect(path)
    expected = offline(prior, audio.read(path)[0], RATE)
    tolerance = 0.1 if subtype in ("ULAW", "VORBIS") else 2e-4
    np.testing.assert_allclose(audio.read(tmp_path / f"y{suffix}")[0], expected.clip(-1, 1), rtol=0, atol=tolerance)


def test_a_file_can_be_replaced_by_its_resynthesis(prior: AudioVAE, tmp_path: Path) -> None:
    wave = sound(6001)
    path = store(tmp_path / "x.wav", wave)
    resynthesize_file(prior, path, path)
    np.testing.assert_allclose(audio.read(path)[0], offline(prior, wave, RATE), rtol=0, atol=2e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.wav"]


def test_samples_of_the_posterior_differ_from_each_other(prior: AudioVAE, tmp_path: Path) -> None:
    path = store(tmp_path / "x.wav", sound(6001))
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        resynthesize_file(prior, path, tmp_path / "y.wav", latents="sample")
        results.append((tmp_path / "y.wav").read_bytes())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("damage", ["truncated", "in the middle", "not finite", "missing"])
def test_a_source_that_cannot_be_read_leaves_no_output(damage: str, prior: AudioVAE, tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    if damage == "not finite":
        path = store(tmp_path / "x.wav", np.full((1, 5000), np.nan))
    elif damage != "missing":
        content = bytearray(store(path, sound(40000), subtype="PCM_16").read_bytes())
        half = len(content) // 2
        path.write_bytes(
            content[:half] if damage == "truncated" else content[:half] + bytes(2000) + content[half + 2000 :]
        )
    with pytest.raises(AudioError, match=r"is damaged|is truncated|NaN or infinite|no such file"):
        resynthesize_file(prior, path, tmp_path / "out" / "y.wav")
    with pytest.raises(AudioError, match=r"is damaged|is truncated|NaN or infinite|no such file"):
        encode_file(prior, path)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
def test_the_level_of_a_file_is_that_of_its_wave(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    wave = sound(n_samples, n_channels, rate)
    recording = Recording.open(prior.front, store(tmp_path / "x.wav", wave, rate))
    assert recording.level == pytest.approx(active_level(resample(wave, rate, RATE), RATE), rel=1e-4)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
@pytest.mark.parametrize("rumble", [0.0, 3.0])
def test_the_peak_of_a_file_is_that_of_what_is_heard_of_it(
    rate: int, n_channels: int, n_samples: int, rumble: float, prior: AudioVAE, tmp_path: Path
) -> None:
    low = np.sin(2 * np.pi * 8 / rate * np.arange(n_samples))
    path = store(tmp_path / "x.wav", (sound(n_samples, n_channels, rate) + rumble * low).astype(np.float32), rate)
    recording = Recording.open(dataclasses.replace(prior.front, level_rule="peak"), path)
    heard, _ = audio.read_heard(path, RATE)
    assert recording.level == pytest.approx(np.abs(heard).max(), rel=1e-3)
    waves = torch.cat([block.wave for block in recording.blocks()], dim=1)
    assert float(waves.abs().max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
def test_the_blocks_of_a_recording_put_together_are_the_spectrogram_and_the_wave_of_the_file(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    wave = sound(n_samples, n_channels, rate)
    info = audio.inspect(store(tmp_path / "x.wav", wave, rate))
    recording = Recording(prior.front, info, level=0.25)
    blocks = list(recording.blocks())
    assert len(blocks) > 2 or n_samples / rate < 0.3
    whole = torch.from_numpy(resample(wave, rate, RATE)) / 0.25
    assert recording.n_samples == whole.shape[1]
    torch.testing.assert_close(torch.cat([block.wave for block in blocks], dim=1), whole, atol=1e-6, rtol=0)
    spectrogram = torch.cat([block.spectrogram for block in blocks], dim=1)
    torch.testing.assert_close(spectrogram, prior.stft(whole), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("short_blocks")
def test_the_frames_of_a_block_stand_on_its_wave(prior: AudioVAE, tmp_path: Path) -> None:
    """Frames whose windows lie within a block of one second are those of that second alone, at the same places."""
    stft = STFT(128, 48)
    recording = Recording.open(Front(stft, RATE), store(tmp_path / "x.wav", sound(9001, 2)))
    blocks = list(recording.blocks())
    assert len(blocks) > 5
    for block in blocks[:-1]:
        n_frames = block.spectrogram.shape[1]
        assert block.wave.shape[1] == n_frames * 48
        inside = slice(2, n_frames - 2)
        torch.testing.assert_close(stft(block.wave)[:, inside], block.spectrogram[:, inside], atol=1e-5, rtol=0)
    last = blocks[-1]
    assert stft.n_frames(last.wave.shape[1]) == last.spectrogram.shape[1]


def test_frames_come_back_as_the_file_that_they_were_of(prior: AudioVAE, tmp_path: Path) -> None:
    wave = sound(9001, 2, 22050)
    path = store(tmp_path / "x.wav", wave, 22050, "PCM_24")
    recording = Recording.open(prior.front, path)
    spectrograms = (block.spectrogram for block in recording.blocks())
    writer = recording.write(tmp_path / "y.wav", spectrograms, StreamingSynthesis(prior.stft))
    result, info = audio.read(tmp_path / "y.wav")
    assert dataclasses.replace(info, path=path) == recording.info
    assert writer.peak == pytest.approx(np.abs(result).max(), abs=1e-6)
    expected = resample(resample(wave, 22050, RATE), RATE, 22050)[:, :9001]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


# Latents -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(prior: AudioVAE, tmp_path: Path) -> LatentsFile:
    return encode_file(prior, store(tmp_path / "source.wav", sound(20001, 2, 44100), 44100))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
def test_the_latents_of_a_file_are_those_of_its_wave(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    wave = sound(n_samples, n_channels, rate)
    encoded = encode_file(prior, store(tmp_path / "x.wav", wave, rate))
    at_rate = resample(wave, rate, RATE)
    level = active_level(at_rate, RATE)
    expected = prior.encode(torch.from_numpy(at_rate), level).posterior
    assert encoded.latents.shape == (n_channels, prior.stft.n_frames(at_rate.shape[1]), 8)
    assert (sorted(encoded.posterior), encoded.sequence) == (["loc", "scale"], {})
    torch.testing.assert_close(encoded.latents, expected.mean.detach(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(encoded.posterior["loc"], expected.mean.detach(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(encoded.posterior["scale"], expected.stddev.detach(), atol=1e-3, rtol=1e-3)
    assert encoded.level == pytest.approx(level, rel=1e-4)
    assert (encoded.sample_rate, encoded.n_samples, encoded.model) == (rate, n_samples, prior.model_hash())


def holds_the_same(latents: LatentsFile, others: LatentsFile) -> bool:
    """Do two files hold the same arrays, under the same names?"""
    pairs = [({"latents": latents.latents}, {"latents": others.latents})]
    pairs += [(latents.posterior, others.posterior), (latents.sequence, others.sequence)]
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in pairs
    )


def test_a_latents_file_gives_back_what_was_stored(encoded: LatentsFile, tmp_path: Path) -> None:
    encoded.save(tmp_path / "deep" / "x.npz")
    again = LatentsFile.load(tmp_path / "deep" / "x.npz")
    assert holds_the_same(again, encoded)
    names = ("level", "sample_rate", "n_samples", "model")
    assert [getattr(again, name) for name in names] == [getattr(encoded, name) for name in names]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]


def test_a_latents_file_is_plain_arrays_without_pickle(encoded: LatentsFile, prior: AudioVAE, tmp_path: Path) -> None:
    """As another program would read it."""
    encoded.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as fields:
        content = {name: fields[name] for name in fields.files}
    arrays = {name: content.pop(name) for name in ("latents", "posterior.loc", "posterior.scale")}
    assert {array.shape for array in arrays.values()} == {(2, prior.stft.n_frames(-(-20001 * 16000 // 44100)), 8)}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert {name: value.item() for name, value in content.items()} == {
        "level": encoded.level, "sample_rate": 44100, "n_samples": 20001, "n_channels": 2, "n_arrays": 3,
        "model": prior.model_hash(),
        "format_version": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), RECORDINGS)
def test_decoding_gives_sound_of_the_same_rate_length_and_channels(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    encode_file(prior, store(tmp_path / "x.wav", sound(n_samples, n_channels, rate), rate)).save(tmp_path / "x.npz")
    decode_file(prior, tmp_path / "x.npz", tmp_path / "y.wav")
    result, info = audio.read(tmp_path / "y.wav")
    assert (info.sample_rate, result.shape) == (rate, (n_channels, n_samples))


@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_decoded_sound_has_the_spectrum_of_the_model(latents: str, prior: AudioVAE, tmp_path: Path) -> None:
    """Griffin-Lim comes near to the magnitude; loudness within 2 dB."""
    encoded = encode_file(prior, store(tmp_path / "x.wav", sound(16000)))
    encoded.save(tmp_path / "x.npz")
    torch.manual_seed(0)
    decode_file(prior, tmp_path / "x.npz", tmp_path / "y.flac", latents)  # type: ignore[arg-type]
    result = torch.from_numpy(audio.read(tmp_path / "y.flac")[0])
    with torch.no_grad():
        magnitude = prior.vae.likelihood(encoded.latents).variance.sqrt() * encoded.level
    assert 20 * abs(float(torch.log10(prior.stft(result).abs().norm() / magnitude.norm()))) < 2


def test_decoding_twice_with_one_seed_gives_the_same_bytes(
    encoded: LatentsFile, prior: AudioVAE, tmp_path: Path
) -> None:
    encoded.save(tmp_path / "x.npz")
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        decode_file(prior, tmp_path / "x.npz", tmp_path / "y.wav")
        results.append((tmp_path / "y.wav").read_bytes())
    assert results[0] == results[1] != results[2]


def test_latents_of_another_model_are_refused(encoded: LatentsFile, tmp_path: Path) -> None:
    encoded.save(tmp_path / "x.npz")
    with pytest.raises(
        ModelError, match=rf"x\.npz: was encoded by another model \({encoded.model[:12]}\); give that one with --model"
    ):
        decode_file(build_prior(seed=1), tmp_path / "x.npz", tmp_path / "y.wav")
    assert not (tmp_path / "y.wav").exists()


@pytest.mark.parametrize("n_samples", [1, 20001 - 706, 20001 + 706, 2**60])
def test_latents_of_another_length_are_refused(
    n_samples: int, encoded: LatentsFile, prior: AudioVAE, tmp_path: Path
) -> None:
    dataclasses.replace(encoded, n_samples=n_samples).save(tmp_path / "x.npz")
    with pytest.raises(ModelError, match="is damaged: its latents do not fit its number of samples; encode it again"):
        decode_file(prior, tmp_path / "x.npz", tmp_path / "y.wav")


DAMAGED = "is not a latents file, or a damaged one; encode the sound again"


@pytest.mark.parametrize("kept", [0, 10, 100, 1000, -100, -1])
def test_a_truncated_latents_file_is_refused(kept: int, encoded: LatentsFile, tmp_path: Path) -> None:
    encoded.save(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:kept])
    with pytest.raises(ModelError, match=DAMAGED):
        LatentsFile.load(tmp_path / "x.npz")


def test_a_flipped_bit_in_a_latents_file_is_refused_or_without_effect(encoded: LatentsFile, tmp_path: Path) -> None:
    """Every byte of the first 100 and the last 1000 (the directory of the archive), and some between: one bit each.

    Some bits mean nothing: dates, padding.
    """
    encoded.save(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    n_refused = 0
    for place in [*range(100), *range(100, len(whole) - 1000, 97), *range(len(whole) - 1000, len(whole))]:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (tmp_path / "x.npz").write_bytes(content)
        try:
            again = LatentsFile.load(tmp_path / "x.npz")
        except ModelError:
            n_refused += 1
            continue
        assert holds_the_same(again, encoded)
        facts = {field.name for field in dataclasses.fields(encoded)} - {"latents", "posterior", "sequence"}
        assert {name: getattr(again, name) for name in facts} == {name: getattr(encoded, name) for name in facts}
    assert n_refused > 500


@pytest.mark.parametrize("method", [1, 8, 12, 14, 99])
def test_an_archive_of_an_unexpected_kind_is_refused(method: int, encoded: LatentsFile, tmp_path: Path) -> None:
    """One bit in the archive's directory can name another compression method, which the reader may not know."""
    encoded.save(tmp_path / "x.npz")
    content = bytearray((tmp_path / "x.npz").read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 10 : directory + 12] = struct.pack("<H", method)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ModelError, match=DAMAGED):
        LatentsFile.load(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["text", "one array", "pickle", "folder", "zip"])
def test_a_file_that_holds_no_latents_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    if kind == "text":
        path.write_text("not an archive")
    elif kind == "one array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    elif kind == "pickle":
        np.savez(path, latents=np.array([{"a": 1}], dtype=object), **{"posterior.loc": np.ones(1)}, format_version=2)
    elif kind == "folder":
        path.mkdir()
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "nothing")
    with pytest.raises(ModelError, match=DAMAGED):
        LatentsFile.load(path)


def test_missing_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.npz: no such file"):
        LatentsFile.load(tmp_path / "none.npz")


def forge(encoded: LatentsFile, path: Path, **changes: Any) -> Path:
    """A well-formed archive with fields changed or (None) left out."""
    fields = {
        "latents": encoded.latents.numpy(), **{f"posterior.{name}": tensor.numpy() for name,
        tensor in encoded.posterior.items()},
        "n_channels": 2, "format_version": 2, "level": encoded.level, "sample_rate": encoded.sample_rate,
        "n_samples": encoded.n_samples, "model": encoded.model, **changes,
    }  # fmt: skip
    fields = {name: value for name, value in fields.items() if value is not None}
    n_arrays = sum(name.startswith(("latents", "posterior.", "sequence.")) for name in fields)
    np.savez(path, **{"n_arrays": n_arrays, **fields})
    return path


def test_latents_of_a_newer_version_are_refused(encoded: LatentsFile, tmp_path: Path) -> None:
    path = forge(encoded, tmp_path / "x.npz", format_version=3)
    with pytest.raises(ModelError, match=r"was written by a newer audiovae \(format 3\); update audiovae"):
        LatentsFile.load(path)


def test_latents_of_an_older_version_are_refused(tmp_path: Path) -> None:
    """As that version wrote them: location and spread of every frame, nothing else."""
    arrays = {"loc": np.zeros((2, 30, 8), np.float32), "scale": np.ones((2, 30, 8), np.float32), "format_version": 1}
    np.savez(
        tmp_path / "x.npz",
        level=1.0,
        sample_rate=RATE,
        n_samples=7424,
        n_channels=2,
        model=np.array("a" * 64),
        **arrays,
    )
    with pytest.raises(ModelError, match=r"was written by an older audiovae \(format 1\); encode the sound again"):
        LatentsFile.load(tmp_path / "x.npz")


SHAPE = (2, 30, 8)  # of `encoded`
FORGED: dict[str, dict[str, Any]] = {
    "no latents": {"latents": None},
    "no posterior": {"posterior.loc": None, "posterior.scale": None},
    "no model": {"model": None},
    "fewer arrays than were written": {"n_arrays": 4},
    "no version": {"format_version": None},
    "another rank": {"latents": np.zeros(SHAPE[1:], np.float32)},
    "another rank of all": {name: np.ones(SHAPE[1:], np.float32) for name in ("latents", "posterior.loc",
    "posterior.scale")},
    "unequal numbers of frames": {"posterior.scale": np.ones((2, 29, 8), np.float32)},
    "unequal numbers of channels": {"posterior.scale": np.ones((1, 30, 8), np.float32)},
    "latents that are not finite": {"latents": np.full(SHAPE, np.nan, np.float32)},
    "a location that is not finite": {"posterior.loc": np.full(SHAPE, np.nan, np.float32)},
    "an infinite spread": {"posterior.scale": np.full(SHAPE, np.inf, np.float32)},
    "text as numbers": {"latents": np.full(SHAPE, "a")},
    "text as a spread": {"posterior.scale": np.full(SHAPE, "a")},
    "a level that is not finite": {"level": np.nan},
    "an infinite level": {"level": np.inf},
    "a negative level": {"level": -1.0},
    "a rate of zero": {"sample_rate": 0},
    "another number of dimensions": {
        name: np.ones((2, 30, 5), np.float32) for name in ("latents", "posterior.loc", "posterior.scale")
    },
    "another precision": {name: np.ones(SHAPE, np.float64) for name in ("latents", "posterior.loc", "posterior.scale")},
    "no channels": {name: np.zeros((0, 30, 8), np.float32) for name in ("latents", "posterior.loc", "posterior.scale")},
    "no channels, and says so": {
        "n_channels": 0, **{name: np.zeros((0, 30, 8), np.float32) for name in ("latents", "posterior.loc",
        "posterior.scale")}
    },
}  # fmt: skip

# What only sampling looks at: the posterior's tensors.
FORGED_POSTERIORS: dict[str, dict[str, Any]] = {
    "no location": {"posterior.loc": None},
    "no spread": {"posterior.scale": None},
    "unequal shapes": {"posterior.scale": np.ones((2, 30, 7), np.float32)},
    "a negative spread": {"posterior.scale": np.full(SHAPE, -1.0, np.float32)},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", FORGED)
def test_a_forged_latents_file_is_refused(name: str, encoded: LatentsFile, prior: AudioVAE, tmp_path: Path) -> None:
    """Well-formed, but no latents that this model could have written."""
    path = forge(encoded, tmp_path / "x.npz", **FORGED[name])
    with pytest.raises(ModelError, match=r"is not a latents file|is damaged"):
        decode_file(prior, path, tmp_path / "y.wav")
    assert not (tmp_path / "y.wav").exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", FORGED_POSTERIORS)
def test_a_forged_posterior_is_refused_where_it_is_sampled(
    name: str, encoded: LatentsFile, prior: AudioVAE, tmp_path: Path
) -> None:
    path = forge(encoded, tmp_path / "x.npz", **FORGED_POSTERIORS[name])
    with pytest.raises(ModelError, match=r"is not a latents file|is damaged"):
        decode_file(prior, path, tmp_path / "y.wav", "sample")
    assert not (tmp_path / "y.wav").exists()


def test_the_forger_forges_nothing_by_itself(encoded: LatentsFile, tmp_path: Path) -> None:
    assert encoded.latents.shape == SHAPE
    assert holds_the_same(LatentsFile.load(forge(encoded, tmp_path / "x.npz")), encoded)


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from audiovae.errors import PathError
from audiovae.files import LatentsFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
latents = LatentsFile(torch.zeros(1, 100, 8), {"scale": torch.ones(1, 100, 8)}, {}, 1.0, 16000, 25599, "a" * 64)
results = []
for limit in (10, 1000, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        latents.save(Path(sys.argv[1]) / "x.npz")
        results.append("no error")
    except PathError as error:
        results.append(str(error))
    except BaseException as error:
        results.append(repr(error))
print(json.dumps(results))
"""


def test_on_a_full_disk_saving_latents_fails_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    messages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(messages) == 3
    assert all(
        message.startswith(f"{tmp_path / 'x.npz'}: cannot be written") and "\n" not in message for message in messages
    )
    assert list(tmp_path.iterdir()) == []


# Every kind of model -------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "frames on a sphere": ("FrameVAE", {"hidden": (8,), "latent": "von-mises-fisher"}),
    "frames on a simplex": ("FrameVAE", {"hidden": (8,), "latent": "dirichlet"}),
    "an autoencoder": ("Autoencoder", {"hidden": (8,)}),
    "context": ("ContextVAE", {"width": 8, "dilations": (1, 2)}),
    "dynamics": ("DynamicVAE", {"width": 8, "prior_width": 8, "dilations": (1, 2), "prior_dilations": (1, 2)}),
    "a sequence": ("SequenceVAE", {"n_frames": 128, "width": 8, "hidden": 8, "blocks": 1}),
    "a sequence on a sphere": (
        "SequenceVAE",
        {"n_frames": 128, "width": 8, "hidden": 8, "blocks": 1, "latent": "power-spherical"},
    ),
    "a recurrence": ("RVAE", {"width": 8}),
    "teacher forcing": ("VRNN", {"width": 8, "features": 8}),
    "a latent of the sequence": ("DSAE", {"width": 8, "sequence_dim": 2, "emission": (8,)}),
}


def prior_of(kind: str) -> AudioVAE:
    """Of 4 ms frames, with weights that are not small: its spectra depend on its latents."""
    name, settings = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class, settings_class = MODELS[name]
        vae = model_class(33, settings_class(latent_dim=3, **settings))
        vae.calibrate(power(STFT(64, 64 // 2)(torch.randn(RATE))))
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return AudioVAE(STFT(64, 32), vae, RATE).eval()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_to_every_kind_of_model_what_its_wave_is(kind: str, tmp_path: Path) -> None:
    """Two channels of 126 frames: resynthesis, latents, latents from the disk, and sound of them."""
    prior = prior_of(kind)
    wave = sound(4000, 2)
    path = store(tmp_path / "x.wav", wave)
    resynthesize_file(prior, path, tmp_path / "y.wav")
    expected = offline(prior, wave, RATE)
    np.testing.assert_allclose(audio.read(tmp_path / "y.wav")[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    encode_file(prior, path).save(tmp_path / "x.npz")
    encoded = LatentsFile.load(tmp_path / "x.npz")
    with torch.no_grad():
        inference = prior.encode(torch.from_numpy(wave), active_level(wave, RATE)).inference
    torch.testing.assert_close(encoded.latents, inference.latents, atol=1e-3, rtol=1e-3)
    assert bool(encoded.sequence) == (not all(factor.per_frame for factor in inference.factors))
    for latents in ("mean", "sample"):
        decode_file(prior, tmp_path / "x.npz", tmp_path / "z.wav", latents)  # type: ignore[arg-type]
        result, info = audio.read(tmp_path / "z.wav")
        assert (info.sample_rate, result.shape) == (RATE, (2, 4000))
        assert np.isfinite(result).all()
        assert result.any()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("kind", ["context", "dynamics"])
def test_stretches_with_context_give_what_the_whole_gives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the frames at a time, and what they see of their neighbours."""
    monkeypatch.setattr(stretch, "STRETCH_FRAMES", 90)
    prior, wave = prior_of(kind), sound(9000)
    resynthesize_file(prior, store(tmp_path / "x.wav", wave), tmp_path / "y.wav")
    expected = offline(prior, wave, RATE)
    np.testing.assert_allclose(audio.read(tmp_path / "y.wav")[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("context", "n_frames"), [(0, 37), (3, 9), (3, 1), (3, 100), (3, 22), (40, 100), (2**40, 100)])
def test_stretches_keep_every_frame_once_with_its_context(
    context: int, n_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_FRAMES", 10)
    whole = torch.arange(float(n_frames)).expand(2, -1)
    for block in (1, 7, 100):
        kept = []
        for part in stretches(iter(whole.split(block, dim=1)), context):
            first, last = part.frames[0, part.kept][[0, -1]].int().tolist()
            kept.append(part.frames[:, part.kept])
            assert int(part.frames[0, 0]) == max(0, first - context) or context == 0
            assert int(part.frames[0, -1]) >= min(n_frames - 1, last + context) or context == 0
            assert part.frames.shape[1] <= 10 + 2 * context + max(block, 10) + 2 * context
        assert torch.equal(torch.cat(kept, dim=1), whole)


# Griffin-Lim in stretches --------------------------------------------------------------------------------------------


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of 40 frames, cross-faded over 4."""
    monkeypatch.setattr(phase, "_GRIFFIN_LIM_FRAMES", 40)
    monkeypatch.setattr(phase, "_CROSSFADE_FRAMES", 4)


def stream(stft: STFT, magnitude: Tensor, length: int, block: int) -> Tensor:
    synthesis = StreamingGriffinLim(stft)
    parts = [synthesis.push(part) for part in magnitude.split(block, dim=1)]
    return torch.cat([*parts, synthesis.finish(length)], dim=1)


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("block", [1, 7, 40, 41, 200])
@pytest.mark.parametrize("n_frames", [1, 2, 40, 44, 80, 81, 82, 121, 300])
def test_stretches_fit_together(n_frames: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a synthesis that gives ones everywhere, the cross-faded whole is ones everywhere, and of the right
    length."""
    monkeypatch.setattr(phase, "griffin_lim", lambda stft, magnitude, length: torch.ones(len(magnitude), length))
    stft = STFT(64, 16)
    for length in {max(1, (n_frames - 2) * 16 + 1), max(1, (n_frames - 1) * 16)}:
        if stft.n_frames(length) == n_frames:
            wave = stream(stft, torch.rand(2, n_frames, 33), length, block)
            torch.testing.assert_close(wave, torch.ones(2, length))


@pytest.mark.usefixtures("short_stretches")
def test_stretches_stand_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a synthesis that gives the number of each frame, held until the next, the whole counts up."""
    monkeypatch.setattr(
        phase,
        "griffin_lim",
        lambda stft, magnitude, length: magnitude[..., 0].repeat_interleave(stft.hop_length, -1)[:, :length],
    )
    magnitude = torch.arange(300.0)[None, :, None].expand(1, 300, 33)
    wave = stream(STFT(64, 16), magnitude, 299 * 16, 13)
    torch.testing.assert_close(wave, torch.arange(299.0).repeat_interleave(16)[None], atol=1e-3, rtol=0)


@pytest.mark.usefixtures("short_stretches")
def test_a_stretched_synthesis_is_as_loud_as_the_whole() -> None:
    torch.manual_seed(0)
    stft = STFT(256, 64)
    wave = torch.from_numpy(sound(20000))
    result = stream(stft, stft(wave).abs(), 20000, 17)
    assert result.shape == wave.shape
    assert float(result.square().mean() / wave.square().mean()) == pytest.approx(1, abs=0.3)


@pytest.mark.usefixtures("short_stretches", "short_blocks")
@pytest.mark.parametrize(("rate", "n_channels", "n_samples"), [(16000, 2, 40001), (8000, 1, 30000), (16000, 1, 1)])
def test_a_file_resynthesised_with_griffin_lim_has_its_shape(
    rate: int, n_channels: int, n_samples: int, prior: AudioVAE, tmp_path: Path
) -> None:
    path = store(tmp_path / "x.wav", sound(n_samples, n_channels, rate), rate)
    resynthesize_file(prior, path, tmp_path / "y.wav", "griffin-lim")
    result, info = audio.read(tmp_path / "y.wav")
    assert (info.sample_rate, result.shape) == (rate, (n_channels, n_samples))
    if n_samples > 1:
        reference = offline(prior, audio.read(path)[0], rate)
        assert 20 * abs(np.log10(np.linalg.norm(result) / np.linalg.norm(reference))) < 3
