"""What the command line does in pieces is what the library does with a whole file, in memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speech_like

from audiovae import AudioVAE, audio
from audiovae.evaluation import bound, score_file
from audiovae.files import encode_file, write_latents
from audiovae.metrics import NotScored, normalise

MODELS = ["speech-16k", "speech-16k-dynamic"]


def store(path: Path, rate: int, n_channels: int = 1, offset: float = 0.0) -> Path:
    waves = [speech_like(40, 110 + 30 * i, rate=rate) for i in range(n_channels)]
    around = np.zeros((n_channels, rate // 3))
    soundfile.write(path, offset + 0.2 * np.concatenate([around, np.stack(waves), around], axis=1).T, rate, "FLOAT")
    return path


@pytest.mark.parametrize(("rate", "n_channels", "offset"), [(16000, 2, 0.0), (22050, 1, 0.0), (16000, 1, 0.5)])
def test_a_file_scored_in_pieces_has_the_bound_of_the_whole(
    rate: int, n_channels: int, offset: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "x.wav", rate, n_channels, offset)
    prior = AudioVAE.from_pretrained("speech-16k")
    wave, _ = audio.read_heard(path, 16000)
    expected = bound(prior, normalise(wave, 16000))
    for held in (2**40, 0):
        monkeypatch.setattr(audio, "_HELD_SAMPLES", held)
        found = score_file(prior, path)
        assert found.keys() == expected.keys()
        assert found["bound"] == pytest.approx(expected["bound"], abs=0.5)  # the noise of z is drawn in other pieces
        assert found["kl"] == pytest.approx(expected["kl"], abs=0.1)


def test_a_silent_file_is_not_scored(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(16000), 16000)
    with pytest.raises(NotScored, match="silent"):
        score_file(AudioVAE.from_pretrained("speech-16k"), tmp_path / "x.wav")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("rate", "n_channels"), [(16000, 1), (11025, 3)])
def test_latents_written_in_pieces_are_the_file_of_the_whole(
    model: str, rate: int, n_channels: int, tmp_path: Path
) -> None:
    prior = AudioVAE.from_pretrained(model)
    path = store(tmp_path / "x.wav", rate, n_channels)
    encoded = encode_file(prior, path)
    encoded.save(tmp_path / "whole.npz")
    recording, n_frames = write_latents(prior, path, tmp_path / "pieces.npz")
    assert (tmp_path / "pieces.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert (recording.info.n_channels, n_frames) == encoded.latents.shape[:2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pieces.npz", "whole.npz", "x.wav"]


@pytest.mark.parametrize("verb", ["score", "encode"])
def test_the_memory_of_a_verb_does_not_grow_with_the_length(verb: str, tmp_path: Path) -> None:
    """At 8 more minutes the wave alone is 31 MB more, and the latents are 23."""
    code = (
        "import resource, sys, torch; torch.set_num_threads(1); from audiovae.cli.main import main\n"
        "for minutes in (1, 9):\n"
        "    status = main([word.format(minutes) for word in sys.argv[1:]])\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, status, file=sys.stderr)"
    )
    for minutes in (1, 9):
        wave = np.tile((2**13 * speech_like(60, 120)).astype(np.int16), minutes)
        soundfile.write(tmp_path / f"{minutes}.wav", wave, 16000)
    output = [] if verb == "score" else ["-o", str(tmp_path / "{}.npz")]
    command = [sys.executable, "-c", code, verb, str(tmp_path / "{}.wav"), "--quiet", *output]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr.split()
    before, status, after, again = map(int, told[-4:])
    assert status == again == 0
    assert after - before < 20 * 1024  # KiB
