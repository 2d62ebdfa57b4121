"""Held notes: what stands in a sound font, loops that go on, and how long tones last; and the recipe on a tiny twin."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import load_script

import audiovae
from audiovae.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE, RATE = ROOT / "recipes/other_sounds", 16000
LOOP_START, LOOP_END, ODD = 3200, 6400, 7  # samples; a chunk of odd size is padded


tones = load_script(RECIPE / "tones.py")


def note(pitch_hz: float, brightness: float) -> np.ndarray:
    """`[sample]`: 0.4 s of harmonics over faint noise in 16 bits; the tone repeats after 0.2 s at multiples of 5 Hz."""
    time = np.arange(LOOP_END) / RATE
    wave = sum(brightness**k * np.sin(2 * np.pi * k * pitch_hz * time) for k in range(1, 9))
    noise = np.random.default_rng(round(pitch_hz)).standard_normal(len(time))
    return np.round(8000 * wave / np.abs(wave).max() + 20 * noise).astype("<i2")


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def sound_font(path: Path, recordings: dict[str, tuple[np.ndarray, int]]) -> Path:
    """Of sounds and kinds by name; before every sound stand ten samples of no recording."""
    sound, headers = b"", b""
    for name, (wave, kind) in recordings.items():
        sound += b"\1\1" * 10
        start = len(sound) // 2
        sound += wave.tobytes()
        places = (start, start + len(wave), start + LOOP_START, start + LOOP_END)
        headers += struct.pack("<20s5IBbHH", name.encode(), *places, RATE, 60, 0, 0, kind)
    info = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"x" * ODD))
    data, tables = chunk(b"LIST", b"sdta" + chunk(b"smpl", sound)), chunk(b"LIST", b"pdta" + chunk(b"shdr", headers))
    path.write_bytes(chunk(b"RIFF", b"sfbk" + info + data + tables))
    return path


def test_notes_go_on_from_the_recording_as_a_sampler_plays_them(tmp_path: Path) -> None:
    wave = note(220, 0.5)
    recordings = {"Cello F#3(L)": (wave, 4), "Cello F#3(R)": (-wave, 2), "tp_c4": (wave, 1), "Std Kick": (wave, 1)}
    tones.main(["notes", str(sound_font(tmp_path / "font.sf2", recordings)), "-o", str(tmp_path / "notes")])
    written = sorted(path.relative_to(tmp_path / "notes").as_posix() for path in tmp_path.rglob("*.wav"))
    assert written == ["cello/Fs3.wav", "trumpet/c4.wav"]
    found, rate = soundfile.read(tmp_path / "notes/cello/Fs3.wav", dtype="int16")
    assert (rate, len(found)) == (RATE, 2 * RATE)
    np.testing.assert_array_equal(found[:LOOP_END], wave)
    steady = found[LOOP_START : -RATE // 20].astype(int)
    np.testing.assert_array_equal(steady[LOOP_END - LOOP_START :], steady[: LOOP_START - LOOP_END])
    assert found[-1] == 0


def test_a_file_that_is_no_sound_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "font.sf2").write_bytes(chunk(b"RIFF", b"WAVE" + chunk(b"data", b"abcd")))
    with pytest.raises(ValueError, match=r"font\.sf2 is no sound font with 16-bit recordings"):
        tones.notes(tmp_path / "font.sf2", tmp_path / "notes")


def test_a_tone_lasts_and_noise_does_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", np.tile(note(220, 0.5), 5) / 2**15, RATE)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).standard_normal(2 * RATE) / 10, RATE)
    assert min(tones.lasting(tmp_path / "tone.wav")) > 0.99
    assert max(np.abs(tones.lasting(tmp_path / "noise.wav")[1:])) < 0.1  # 0.1 s apart, windows share samples


def test_the_recipe_runs_on_a_tiny_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps suffice for notes that were heard in training to come back."""
    held_out = {name: (note(220, 0.5), 1) for name in ("Soprano C4", "Viola C4", "Cello C4", "Oboe C4", "tp_c4")}
    heard = {f"Violin {i}": (note(200 + 25 * i, 0.6), 1) for i in range(6)}
    recordings = {**held_out, "English Horn C4": (note(220, 0.5), 1), **heard}
    tones.main(["notes", str(sound_font(tmp_path / "font.sf2", recordings)), "-o", str(tmp_path / "notes")])
    splits = [f"--{split}_speakers={RECIPE / f'{split}_instruments.txt'}" for split in ("validation", "test")]
    assert main(["prepare", str(tmp_path / "notes"), str(tmp_path / "packed"), *splits, "--quiet"]) == 0
    corpus = audiovae.PackedCorpus(tmp_path / "packed")
    assert {utterance.speaker for utterance in corpus.split("train")} == {"violin"}
    train = ["train", str(tmp_path / "packed"), "-o", str(tmp_path / "model"), "--config", str(RECIPE / "frame.yaml")]
    small = (
        ["hidden=[64]", "latent_dim=8"],
        ["steps=150", "validate_every=150", "batch_frames=128", "precision=32-true"],
    )
    options = [
        f"--{group}.{option}" for group, options in zip(("vae", "training"), small, strict=True) for option in options
    ]
    assert main([*train, *options, "--quiet"]) == 0
    prior = audiovae.AudioVAE.from_pretrained(tmp_path / "model")
    assert prior.stft.n_fft == 2048
    mean, sampled, kl = tones.score(prior, tmp_path / "notes/violin")
    assert mean > 6
    assert mean > sampled
    assert kl > 0
    capsys.readouterr()
    tones.main(["score", str(tmp_path / "model"), "--notes", str(tmp_path / "notes/violin")])
    assert f"| {mean:.1f} / " in capsys.readouterr().out
