"""The command line as a user meets it: real files in a temporary folder, exit statuses, and what stands on which
stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_prior
from fake_hub import FakeHub, fake_hub, point_at
from published import checkpoint_of

from audiovae import AudioVAE, ComplexNormal, PackedCorpus, metrics
from audiovae.cli.main import VERBS, main
from audiovae.evaluation import bound
from audiovae.level import active_level
from audiovae.settings import MODEL_SETTINGS

RATE = 16000
COMMON = {
    "prepare": "--jobs", "train": "--device --seed", "encode": "--model --device --jobs",
    "decode": "--model --device --seed --jobs", "resynthesize": "--model --device --seed --jobs",
    "enhance": "--model --device --seed --jobs", "separate": "--model --device --seed --jobs",
    "sample": "--model --device --seed", "score": "--model --device --seed --jobs",
    "evaluate": "--model --device --seed --jobs", "info": "--model", "import": "", "push": "", "gather": "",
    "export": "", "app": "--model",
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def noise(seconds: float = 1.0, channels: int = 1, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))


def audiovae(command: str, **places: object) -> int:
    """Run one command line; the exit status, also where it leaves by SystemExit."""
    try:
        return main(shlex.split(command.format(**places)))
    except SystemExit as leave:
        return int(leave.code or 0)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, `good.wav` of one second."""
    soundfile.write(tmp_path / "good.wav", noise(), RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def only_si_sdr(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of perception take seconds."""
    monkeypatch.setattr(metrics, "WAVE_METRICS", {"si_sdr": metrics.METRICS["si_sdr"]})


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: exit status 2, one line that names the file or option and the remedy, nothing written.


def sound(name: str, wave: np.ndarray | None = None, rate: int = RATE, **options: Any) -> Callable[[], None]:
    return lambda: soundfile.write(name, noise() if wave is None else wave, rate, **options)


def cut(name: str, **options: Any) -> Callable[[], None]:
    """Half of a sound file."""

    def make() -> None:
        soundfile.write(name, noise(2.0), RATE, **options)
        os.truncate(name, os.path.getsize(name) // 2)

    return make


def text(name: str, content: str = "This is not sound.\n" * 40) -> Callable[[], None]:
    return lambda: Path(name).write_text(content) and None


def flip_bit() -> None:
    content = bytearray(Path("model/model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    Path("model/model.safetensors").write_bytes(content)


def change_config(**fields: Any) -> Callable[[], None]:
    def make() -> None:
        config = json.loads(Path("model/config.json").read_text())
        Path("model/config.json").write_text(json.dumps({**config, **fields}))

    return make


def remove(name: str) -> Callable[[], None]:
    return lambda: os.remove(name)


def folder(*names: str) -> Callable[[], None]:
    return lambda: [os.makedirs(name) for name in names] and None


def latents(name: str = "a.npz", **fields: Any) -> Callable[[], None]:
    """A latents file of good.wav, with other fields put into it."""

    def make() -> None:
        assert main(["encode", "good.wav", "-o", name, "--model", "model"]) == 0
        with np.load(name) as found:
            whole = {**found, **fields}
        np.savez(name, **whole)

    return make


def latents_of_a_future_zip() -> None:
    """One byte of the file's own directory: the version of ZIP that is needed to extract the first member."""
    latents()()
    content = bytearray(Path("a.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 0xFF
    Path("a.npz").write_bytes(content)


def cut_latents() -> None:
    latents()()
    os.truncate("a.npz", os.path.getsize("a.npz") // 2)


def two_of_one_name() -> None:
    folder("a", "b")()
    sound("a/x.wav")()
    sound("b/x.wav")()


def two_of_one_stem() -> None:
    folder("in")()
    sound("in/x.wav")()
    sound("in/x.flac")()


def estimates(*waves: tuple[str, np.ndarray, int]) -> Callable[[], None]:
    def make() -> None:
        folder("clean", "estimate")()
        for name, wave, rate in waves:
            sound(name, wave, rate)()

    return make


def nothing() -> None:
    pass


TRAIN = (
    "train {packed} -o run --vae.latent_dim 2 --vae.hidden [4] --stft.n_fft 256 --stft.hop_length 64 "
    "--training.steps 2 "
)
WHOLE = "restore the whole file"

BAD: dict[str, tuple[Callable[[], None], str, str]] = {  # what is wrong: (how it is made, the command, what is said)
    # sound files
    "missing": (nothing, "resynthesize none.wav -o out {m}", r"none\.wav: no such file"),
    "missing, scored": (nothing, "score none.wav {m}", r"none\.wav: no such file"),
    "missing, encoded": (nothing, "encode none.wav -o out {m}", r"none\.wav: no such file"),
    "empty": (
        text("e.wav", ""),
        "resynthesize e.wav -o out {m}",
        r"e\.wav: is empty \(0 bytes\); restore it or leave it out",
    ),
    "truncated WAV": (cut("t.wav"), "resynthesize t.wav -o out {m}", rf"t\.wav: is truncated: .*; {WHOLE}"),
    "truncated WAV, 24 bits": (
        cut("t.wav", subtype="PCM_24"),
        "score t.wav {m}",
        rf"t\.wav: is truncated: .*; {WHOLE}",
    ),
    "truncated RF64": (cut("t.wav", format="RF64"), "encode t.wav -o out {m}", rf"t\.wav: is truncated: .*; {WHOLE}"),
    "truncated AIFF": (cut("t.aiff"), "resynthesize t.aiff -o out {m}", rf"t\.aiff: is truncated: .*; {WHOLE}"),
    "truncated MP3": (cut("t.mp3"), "resynthesize t.mp3 -o out {m}", rf"t\.mp3: is truncated: .*; {WHOLE}"),
    "truncated OGG": (cut("t.ogg"), "resynthesize t.ogg -o out {m}", rf"t\.ogg: is truncated: .*; {WHOLE}"),
    "truncated Opus": (
        cut("t.opus", format="OGG", subtype="OPUS"),
        "encode t.opus -o out {m}",
        rf"t\.opus: is truncated: .*; {WHOLE}",
    ),
    "truncated FLAC": (
        cut("t.flac"),
        "resynthesize t.flac -o out {m}",
        rf"t\.flac: is (truncated|damaged): .*; {WHOLE}",
    ),
    "truncated FLAC, evaluated": (
        cut("t.flac"),
        "evaluate t.flac {m}",
        rf"t\.flac: is (truncated|damaged): .*; {WHOLE}",
    ),
    "text as WAV": (
        text("t.wav"),
        "resynthesize t.wav -o out {m}",
        r"t\.wav: is not a sound file, or a damaged one; .*convert it",
    ),
    "text as FLAC": (
        text("t.flac"),
        "encode t.flac -o out {m}",
        r"t\.flac: is not a sound file, or a damaged one; .*convert it",
    ),
    "text as MP3": (text("t.mp3"), "score t.mp3 {m}", r"t\.mp3: is not a sound file, or a damaged one; .*convert it"),
    "header only": (
        sound("h.wav", np.zeros((0, 1))),
        "resynthesize h.wav -o out {m}",
        r"h\.wav: has a header but no samples; restore",
    ),
    "NaN": (
        sound("n.wav", np.r_[noise()[:, 0], np.nan], subtype="FLOAT"),
        "resynthesize n.wav -o out {m}",
        r"n\.wav: holds .* NaN or inf",
    ),
    "infinite": (
        sound("n.wav", np.r_[noise()[:, 0], -np.inf], subtype="FLOAT"),
        "encode n.wav -o out {m}",
        r"n\.wav: holds .* NaN or inf",
    ),
    "late NaN": (
        sound("n.wav", np.r_[noise(25)[:, 0], np.nan], subtype="FLOAT"),
        "resynthesize n.wav -o out {m}",
        r"n\.wav: holds .*leave it",
    ),
    "foreign": (
        text("f.m4a"),
        "resynthesize f.m4a -o out {m}",
        r"f\.m4a: \.m4a files cannot be read; convert it to WAV or FLAC",
    ),
    "folder without sound": (
        folder("empty"),
        "resynthesize empty -o out {m}",
        r"empty: is a folder without any file to work on \(\.",
    ),
    "pattern without a match": (nothing, "score 'no*.wav' {m}", r"no\*\.wav: no file matches this pattern"),
    # targets
    "existing output": (
        text("out.wav"),
        "resynthesize good.wav -o out.wav {m}",
        r"out\.wav: exists already; --overwrite replaces it",
    ),
    "output into the folder of its input": (
        nothing,
        "resynthesize good.wav -o ./ {m}",
        r"good\.wav: is the input itself; choose another",
    ),
    "existing latents": (
        text("out.npz"),
        "encode good.wav -o out.npz {m}",
        r"out\.npz: exists already; --overwrite replaces it",
    ),
    "existing decoded": (
        latents(),
        "decode a.npz -o good.wav {m}",
        r"good\.wav: exists already; --overwrite replaces it",
    ),
    "existing sample": (nothing, "sample -o good.wav {m}", r"good\.wav: exists already; --overwrite replaces it"),
    "existing report": (
        text("r.html"),
        "evaluate good.wav --report r.html {m}",
        r"r\.html: exists already; --overwrite replaces it",
    ),
    "existing model": (
        nothing,
        TRAIN.replace("-o run", "-o model"),
        r"model: holds a model already; --overwrite replaces it",
    ),
    "output over its input": (
        nothing,
        "resynthesize good.wav -o good.wav --overwrite {m}",
        r"good\.wav: is the input itself; choose another",
    ),
    "target below a file": (
        nothing,
        "resynthesize good.wav -o good.wav/o.wav {m}",
        r"good\.wav/o\.wav: cannot be written .*check the folder",
    ),
    "latents below a file": (
        nothing,
        "encode good.wav -o good.wav/o.npz {m}",
        r"good\.wav/o\.npz: cannot be written .*check the folder",
    ),
    "sample below a file": (
        nothing,
        "sample -o good.wav/o.wav {m}",
        r"good\.wav/o\.wav: cannot be written .*check the folder",
    ),
    "report below a file": (
        nothing,
        "evaluate good.wav --report good.wav/r.html {m}",
        r"good\.wav/r\.html: cannot be written .*check",
    ),
    "corpus below a file": (
        nothing,
        "prepare {corpus} good.wav/packed",
        r"good\.wav/packed: cannot be written .*check the folder",
    ),
    "model below a file": (
        nothing,
        TRAIN.replace("-o run", "-o good.wav/run"),
        r"good\.wav/run.*: cannot be written .*check the folder",
    ),
    "target of no known format": (
        nothing,
        "resynthesize good.wav -o out.xyz {m}",
        r"out\.xyz: \.xyz is not a sound format .*use \.wav or \.flac",
    ),
    "sample of no known format": (
        nothing,
        "sample -o out.xyz {m}",
        r"out\.xyz: \.xyz is not a sound format .*use \.wav or \.flac",
    ),
    "target that cannot hold the rate": (
        sound("a.wav", rate=44100),
        "resynthesize a.wav -o a.opus {m}",
        r"a\.opus: .*44100 Hz.*another suffix",
    ),
    "two inputs of one name": (
        two_of_one_name,
        "resynthesize a/x.wav b/x.wav -o out {m}",
        r"out/x\.wav: would be the output of both a/x\.wav and b/x",
    ),
    "two inputs of one stem": (
        two_of_one_stem,
        "encode in -o out {m}",
        r"out/x\.npz: would be the output of both in/x\.flac and in/x\.wav; give",
    ),
    "one input twice": (
        nothing,
        "resynthesize good.wav ./good.wav -o out {m}",
        r"good\.wav: is named twice; name each file once",
    ),
    # options
    "unknown verb": (nothing, "evalute good.wav", r"unknown verb 'evalute'; did you mean 'evaluate'\?"),
    "unknown verb, far": (nothing, "xyzzy", r"unknown verb 'xyzzy'; known are prepare, train"),
    "unknown option": (
        nothing,
        "resynthesize good.wav -o out --phaze original",
        r"'--phaze'; did you mean '--phase'\?",
    ),
    "unknown option of a group": (
        nothing,
        TRAIN + "--training.stepz 3",
        r"'--training\.stepz'; did you mean '--training\.steps'\?",
    ),
    "shortened option": (nothing, "score good.wav {m} --samp 3", r"'--samp'; did you mean '--samples'\?"),
    "shortened option of prepare": (
        nothing,
        "prepare {corpus} out --sample_rat 8000",
        r"'--sample_rat'; did you mean '--sample_rate'\?",
    ),
    "unknown choice": (nothing, "resynthesize good.wav -o out --phase originel", r"phase.*originel.*original"),
    "option without a value": (nothing, "resynthesize good.wav {m} -o", r"-o.*expected"),
    "no input": (
        nothing,
        "resynthesize -o out {m}",
        r"resynthesize: required: F; audiovae resynthesize --help explains",
    ),
    "no output": (nothing, "resynthesize good.wav {m}", r"resynthesize: required: -o OUT;"),
    "seed of letters": (nothing, "score good.wav {m} --seed x", r"seed: expected int"),
    "no jobs": (nothing, "score good.wav {m} --jobs 0", r"--jobs: expected a whole number above 0, got 0$"),
    "negative seconds": (
        nothing,
        "sample -o out.wav {m} --seconds -1",
        r"--seconds: expected a number above 0, got -1$",
    ),
    "no importance samples": (
        nothing,
        "score good.wav {m} --samples 0",
        r"--samples: expected a whole number above 0, got 0$",
    ),
    "unknown device": (
        nothing,
        "score good.wav {m} --device nonsense",
        r"--device nonsense: no such device here; use cpu or auto",
    ),
    "unknown device in training": (nothing, TRAIN + "--device nonsense", r"nonsense.*(cpu|auto)"),
    "unknown precision": (
        nothing,
        TRAIN + "--training.precision nonsense",
        r"precision: expected .*32-true.*got nonsense",
    ),
    "no steps": (nothing, TRAIN + "--training.steps 0", r"train: steps must be positive, got 0"),
    "no hidden units": (
        nothing,
        TRAIN + "--vae.hidden [0]",
        r"train: layers must have positive widths.*, got \[129, 0, 4\]",
    ),
    "number for a list": (nothing, TRAIN + "--vae.hidden 3", r"vae\.hidden: expected a list such as \[1, 2\]"),
    "too long a hop": (
        nothing,
        TRAIN + "--stft.hop_length 200",
        r"train: hop_length must be from 1 to n_fft // 2 = 128, got 200",
    ),
    "batch of broken segments": (
        nothing,
        TRAIN + "--training.batch_frames 100",
        r"batch_frames \(100\) must be a multiple of segment_frames \(16\)",
    ),
    # configuration files
    "missing YAML": (nothing, TRAIN + "--config none.yaml", r"config.*none\.yaml"),
    "unknown YAML key": (
        text("c.yaml", "training:\n  stepz: 3\n"),
        TRAIN + "--config c.yaml",
        r"'training\.stepz'; did you mean 'training\.steps'\?",
    ),
    "unknown YAML group": (
        text("c.yaml", "trainin:\n  steps: 3\n"),
        TRAIN + "--config c.yaml",
        r"'trainin(\.steps)?'; did you mean 'training",
    ),
    "value of a wrong type in YAML": (
        text("c.yaml", "training:\n  steps: many\n"),
        TRAIN + "--config c.yaml",
        r"training\.steps: expected int.*many",
    ),
    "broken YAML, joined": (text("c.yaml", "training: [1\n"), TRAIN + "--config=c.yaml", r"c\.yaml"),
    "binary YAML, joined": (sound("c.yaml", format="WAV"), TRAIN + "--config=c.yaml", r"c\.yaml"),
    "broken YAML": (text("c.yaml", "training: [1\n"), TRAIN + "--config c.yaml", r"c\.yaml"),
    "binary YAML": (sound("c.yaml", format="WAV"), TRAIN + "--config c.yaml", r"c\.yaml"),
    # models
    "no such model": (
        nothing,
        "score good.wav --model nowhere",
        r"nowhere: no such model; give a model folder or one of: .*speech-16k|did you",
    ),
    "no such model, in two jobs": (
        nothing,
        "score good.wav {corpus} --model nowhere --jobs 2",
        r"nowhere: no such model",
    ),
    "model name with a slip": (nothing, "info speech-16", r"speech-16: no such model; did you mean 'speech-16k'\?"),
    "model that is a file": (nothing, "score good.wav --model good.wav", r"good\.wav: .*(model|folder)"),
    "flipped bit": (
        flip_bit,
        "score good.wav {m}",
        r"model/model\.safetensors: is damaged: its SHA-256 .*; copy or train the model again",
    ),
    "flipped bit, informed": (flip_bit, "info model", r"model/model\.safetensors: is damaged"),
    "missing config": (
        remove("model/config.json"),
        "score good.wav {m}",
        r"model: is not a model folder: it has no config\.json",
    ),
    "missing tensors": (
        remove("model/model.safetensors"),
        "sample -o out.wav {m}",
        r"model\.safetensors: is missing; copy the whole model",
    ),
    "newer config": (
        change_config(format_version=99),
        "score good.wav {m}",
        r"config\.json: was saved by a newer audiovae \(format 99.*; update",
    ),
    "changed config": (
        change_config(sample_rate=8000),
        "score good.wav {m}",
        r"config\.json: is damaged: its fields .*; copy or train",
    ),
    "text as config": (
        text("model/config.json"),
        "score good.wav {m}",
        r"config\.json: is damaged or not from audiovae; copy or train",
    ),
    # latents
    "latents of another model": (
        latents(model="0" * 64),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: was encoded by another model .*--model",
    ),
    "missing latents": (nothing, "decode none.npz -o out.wav {m}", r"none\.npz: no such file"),
    "truncated latents": (
        cut_latents,
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is not a latents file, or a damaged one; encode",
    ),
    "latents with a damaged directory": (
        latents_of_a_future_zip,
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is not a latents file, or a dam",
    ),
    "sound as latents": (
        nothing,
        "decode good.wav -o out.wav {m}",
        r"good\.wav: is not a latents file, or a damaged one; encode the sound",
    ),
    "newer latents": (
        latents(format_version=9),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: was written by a newer audiovae \(format 9\); update",
    ),
    "latents of another length": (
        latents(n_samples=99),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is damaged: .*; encode it again",
    ),
    "latents without a rate": (
        latents(sample_rate=0),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is (not|damaged).*; encode",
    ),
    "latents of a negative rate": (
        latents(sample_rate=-8),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is (not|damaged).*; encode",
    ),
    "latents of no level": (
        latents(level=np.nan),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is (not|damaged).*; encode",
    ),
    "latents of a wrong size": (
        latents(**{name: np.ones((1, 64, 3), "f") for name in ("latents", "posterior.loc", "posterior.scale")}),
        "decode a.npz -o out.wav {m}",
        r"a\.npz: is (not|damaged).*; encode",
    ),
    "folder without latents": (
        folder("empty"),
        "decode empty -o out {m}",
        r"empty: is a folder without any file to work on \(\.npz",
    ),
    # corpora
    "missing corpus": (nothing, "prepare nowhere packed", r"nowhere: no such folder"),
    "file as corpus": (nothing, "prepare good.wav packed", r"good\.wav: is a file; give the folder that holds it"),
    "corpus without sound": (
        folder("empty"),
        "prepare empty packed",
        r"empty: holds no sound file that can be used \(WAV, FLAC",
    ),
    "unknown layout": (
        nothing,
        "prepare {corpus} packed --layout libri",
        r"unknown layout 'libri'; known are auto, folder, librispeech",
    ),
    "unknown speaker": (
        text("s.txt", "nobody"),
        "prepare {corpus} packed --validation_speakers s.txt",
        r"nobody: is named as a validation .*no such speaker",
    ),
    "missing speaker file": (
        nothing,
        "prepare {corpus} packed --test_speakers s.txt",
        r"s\.txt: cannot be read; give a text file with one speaker",
    ),
    "rate of zero": (nothing, "prepare {corpus} packed --sample_rate 0", r"sample_rate.*0"),
    "negative rate": (nothing, "prepare {corpus} packed --sample_rate -16000", r"sample_rate.*-16000"),
    "speed of zero": (nothing, "prepare {corpus} packed --speeds [0]", r"speeds.*0"),
    "share above one": (nothing, "prepare {corpus} packed --validation 2", r"validation.*2"),
    "unknown download": (
        nothing,
        "prepare audio packed --download LIBRISPEACH",
        r"LIBRISPEACH: not a corpus that can be fetched; did you mean LIBRISPEECH\?",
    ),
    "part of a corpus without parts": (
        nothing,
        "prepare audio packed --download LJSPEECH:a",
        r"LJSPEECH has no parts; give LJSPEECH alone",
    ),
    "folder that is not packed": (
        folder("empty"),
        TRAIN.replace("{packed}", "empty"),
        r"empty: is not a packed corpus .*: audiovae prepare FOLDER",
    ),
    "missing packed corpus": (
        nothing,
        TRAIN.replace("{packed}", "none"),
        r"none: is not a packed corpus .*: audiovae prepare FOLDER",
    ),
    "other validation corpus": (
        nothing,
        TRAIN + "--validation none",
        r"none: is not a packed corpus .*: audiovae prepare FOLDER",
    ),
    # comparisons
    "nothing to evaluate": (nothing, "evaluate {m}", r"evaluate: give sound files, or --clean DIR --estimate DIR"),
    "half of a comparison": (
        folder("clean"),
        "evaluate --clean clean",
        r"evaluate: --clean and --estimate belong together",
    ),
    "comparison of files": (
        nothing,
        "evaluate good.wav --clean . --estimate .",
        r"evaluate: with --clean and --estimate no other files",
    ),
    "missing clean folder": (
        folder("estimate"),
        "evaluate --clean clean --estimate estimate",
        r"clean: no such (file|folder)",
    ),
    "missing estimate": (
        estimates(("clean/a.wav", noise(), RATE)),
        "evaluate --clean clean --estimate estimate",
        r"estimate/a\.wav: no such file",
    ),
    "estimate of another length": (
        estimates(("clean/a.wav", noise(), RATE), ("estimate/a.wav", noise(0.9), RATE)),
        "evaluate --clean clean --estimate estimate",
        r"estimate/a\.wav: has another number of samples \(14400\) than the clean file \(16000\)",
    ),
    "estimate of another rate": (
        estimates(("clean/a.wav", noise(), RATE), ("estimate/a.wav", noise(), 8000)),
        "evaluate --clean clean --estimate estimate",
        r"estimate/a\.wav: has another sample rate \(8000\) than the clean file \(16000\)",
    ),
    "estimate of other channels": (
        estimates(("clean/a.wav", noise(), RATE), ("estimate/a.wav", noise(1, 2), RATE)),
        "evaluate --clean clean --estimate estimate",
        r"estimate/a\.wav: has another channel count \(2\) than the clean file \(1\)",
    ),
}


@pytest.mark.usefixtures("only_si_sdr")
@pytest.mark.parametrize("row", BAD)
def test_bad_input_is_refused_with_one_line_and_leaves_nothing(
    here: Path, packed: Path, toy_corpus_folder: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    make, command, message = BAD[row]
    make()
    capsys.readouterr()
    before = contents(here)
    status = audiovae(command, packed=packed, corpus=toy_corpus_folder, m="--model model")
    output = capsys.readouterr()
    assert status == 2
    assert len(output.err.splitlines()) == 1, output.err
    assert output.err.startswith("audiovae")
    assert "Traceback" not in output.err
    assert re.search(message, output.err), output.err
    assert output.out == ""
    assert contents(here) == before


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Within the block, no file may grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [100, 4096])
@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("resynthesize good.wav -o out.wav --model model", "out.wav"),
        ("resynthesize good.wav -o out.flac --model model", "out.flac"),
        ("enhance good.wav -o out.wav --model model --method fast", "out.wav"),
        ("encode good.wav -o out.npz --model model", "out.npz"),
        ("sample -o out.wav --seconds 1 --model model", "out.wav"),
        ("prepare {corpus} out --quiet", "out"),
    ],
)
def test_a_full_target_is_reported_and_leaves_nothing(
    here: Path, toy_corpus_folder: Path, capsys: pytest.CaptureFixture[str], command: str, target: str, room: int
) -> None:
    with full_disk(room):
        status = audiovae(command, corpus=toy_corpus_folder)
    output = capsys.readouterr()
    assert status == 2
    assert len(output.err.splitlines()) == 1, output.err
    assert f"{target}: cannot be written" in output.err
    assert "space" in output.err
    assert not [path for path in here.glob("out*") if path.is_file()]
    assert not list(here.rglob("*.partial*"))


# ---------------------------------------------------------------------------------------------------------------------
# Odd input: finite sound of the same rate, length and channels


def spoken(seconds: float, rate: int = RATE, channels: int = 1, gain: float = 1.0) -> np.ndarray:
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * np.arange(round(seconds * rate)) / rate)
    return gain * envelope[:, None] * noise(seconds, channels, rate)


ODD: dict[str, tuple[np.ndarray, int, str, str]] = {  # (wave, rate, suffix, sample format)
    "silence": (np.zeros((8000, 1)), RATE, ".wav", "PCM_16"),
    "a single sample": (np.full((1, 1), 0.5), RATE, ".wav", "PCM_16"),
    "a single sample of silence": (np.zeros((1, 1)), RATE, ".wav", "FLOAT"),
    "two samples at another rate": (np.full((2, 2), 0.5), 44100, ".flac", "PCM_16"),
    "less than a hop": (spoken(0.01), RATE, ".wav", "PCM_16"),
    "DC": (np.full((8000, 1), 0.3), RATE, ".wav", "PCM_16"),
    "full scale, clipped": (np.sign(spoken(0.5)), RATE, ".wav", "PCM_16"),
    "full scale, clipped, mu-law": (np.sign(spoken(0.5, 8000)), 8000, ".wav", "ULAW"),
    "1e-8": (spoken(0.5, gain=1e-7), RATE, ".wav", "FLOAT"),
    "far above full scale": (spoken(0.5, gain=1e5), RATE, ".wav", "FLOAT"),
    "one channel silent": (np.c_[spoken(0.5), np.zeros(8000)], RATE, ".wav", "PCM_16"),
    "silence around": (np.r_[np.zeros((9000, 1)), spoken(0.2), np.zeros((9000, 1))], RATE, ".wav", "PCM_16"),
    "1 kHz": (spoken(1, 1000), 1000, ".wav", "PCM_16"),
    "8 kHz": (spoken(0.5, 8000), 8000, ".wav", "PCM_16"),
    "11.025 kHz": (spoken(0.5, 11025), 11025, ".flac", "PCM_16"),
    "44.1 kHz": (spoken(0.5, 44100, 2), 44100, ".wav", "PCM_16"),
    "192 kHz": (spoken(0.3, 192000), 192000, ".wav", "PCM_24"),
    "8 channels": (spoken(0.3, RATE, 8), RATE, ".wav", "PCM_16"),
    "8 bits": (spoken(0.3), RATE, ".wav", "PCM_U8"),
    "24 bits": (spoken(0.3), RATE, ".wav", "PCM_24"),
    "32 bits": (spoken(0.3), RATE, ".wav", "PCM_32"),
    "float": (spoken(0.3), RATE, ".wav", "FLOAT"),
    "double": (spoken(0.3), RATE, ".wav", "DOUBLE"),
    "mu-law": (spoken(0.5, 8000), 8000, ".wav", "ULAW"),
    "A-law": (spoken(0.5, 8000), 8000, ".wav", "ALAW"),
    "ADPCM": (spoken(0.5, 8000), 8000, ".wav", "IMA_ADPCM"),
    "24-bit FLAC": (spoken(0.3, 48000, 3), 48000, ".flac", "PCM_24"),
    "OGG": (spoken(0.5, 44100, 2), 44100, ".ogg", "VORBIS"),
    "Opus": (spoken(0.5, 48000), 48000, ".opus", "OPUS"),
    "MP3": (spoken(0.5, 44100, 2), 44100, ".mp3", "MPEG_LAYER_III"),
    "AIFF": (spoken(0.3), RATE, ".aiff", "PCM_16"),
    "NIST": (spoken(0.3), RATE, ".sph", "PCM_16"),
    "RF64": (spoken(0.3), RATE, ".rf64", "PCM_16"),
    "W64": (spoken(0.3), RATE, ".w64", "PCM_16"),
    "longer than the blocks of every pass": (spoken(70, 8000), 8000, ".flac", "PCM_16"),
}  # fmt: skip
CONTAINERS = {".opus": "OGG", ".sph": "NIST"}


@pytest.mark.parametrize("row", ODD)
def test_odd_input_gives_finite_sound_of_the_same_rate_length_and_channels(
    here: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    wave, rate, suffix, subtype = ODD[row]
    soundfile.write(f"odd{suffix}", wave, rate, subtype, format=CONTAINERS.get(suffix, suffix[1:].upper()))
    given, sound_given = soundfile.info(f"odd{suffix}"), soundfile.read(f"odd{suffix}")[0]
    assert audiovae(f"resynthesize odd{suffix} -o out --model model --quiet") == 0
    assert audiovae(f"encode odd{suffix} -o z.npz --model model --quiet") == 0
    assert audiovae(f"decode z.npz -o out/decoded{suffix} --model model --quiet") == 0
    assert "Traceback" not in capsys.readouterr().err
    assert audiovae(f"score odd{suffix} --model model --json") == 0
    (scored,) = strict_json(capsys.readouterr().out)["files"]
    assert all(np.isfinite(value) for value in scored["values"].values())
    assert scored["values"].keys() - {"silent_frames"} == (set() if scored["reasons"] else {"nll", "kl", "bound"})
    assert bool(scored["reasons"]) == (not sound_given.any())
    for name in ("odd", "decoded"):
        found, sound_found = soundfile.info(f"out/{name}{suffix}"), soundfile.read(f"out/{name}{suffix}")[0]
        assert (found.samplerate, found.frames, found.channels) == (given.samplerate, given.frames, given.channels)
        assert np.isfinite(sound_found).all()
        if not sound_given.any():
            assert not sound_found.any()
    resynthesis = soundfile.info(f"out/odd{suffix}")
    assert (resynthesis.format, resynthesis.subtype) == (
        given.format,
        "PCM_16" if "ADPCM" in given.subtype else given.subtype,
    )


def test_rumble_that_counts_as_noise_is_said_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 25 Hz, twice and half as loud as the rest."""
    wave, _ = soundfile.read("good.wav", dtype="float32")
    rumble = np.sin(2 * np.pi * 25 * np.arange(len(wave)) / RATE).astype(np.float32)
    loudness = active_level(wave, RATE) * 2**0.5
    for name, gain in (("loud.wav", 2), ("faint.wav", 0.5)):
        soundfile.write(name, wave + gain * loudness * rumble, RATE, subtype="FLOAT")
        assert audiovae(f"enhance {name} -o out-{name} --model model --method fast --json") == 0
        output = capsys.readouterr()
        said = "loud.wav: what lies below 50 Hz is 6 dB above the level of the rest, and was counted as noise"
        assert (said in output.err) == (gain == 2)
        (row,) = strict_json(output.out)
        assert row.get("rumble_db", 0) == pytest.approx(6 if gain == 2 else 0, abs=0.5)


def test_clipped_peaks_are_reported_with_their_excess(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("loud.wav", np.sign(spoken(0.5)), RATE)
    assert audiovae("resynthesize loud.wav -o out.wav --model model --json") == 0
    output = capsys.readouterr()
    (row,) = strict_json(output.out)
    assert row["clipped"]
    assert (
        f"out.wav: peaks {20 * np.log10(row['peak']):.1f} dB above full scale were clipped; a float WAV keeps them"
        in output.err
    )
    assert np.abs(soundfile.read("out.wav")[0]).max() > 0.9999
    assert audiovae("resynthesize loud.wav -o out.flac --model model --json") == 0
    soundfile.write("float.wav", np.sign(spoken(0.5)), RATE, "FLOAT")
    capsys.readouterr()
    assert audiovae("resynthesize float.wav -o kept.wav --model model --json") == 0
    output = capsys.readouterr()
    assert not strict_json(output.out)[0]["clipped"]
    assert "clipped" not in output.err
    assert np.abs(soundfile.read("kept.wav")[0]).max() == pytest.approx(strict_json(output.out)[0]["peak"], rel=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "ULAW", "ALAW"])
def test_what_exceeds_full_scale_is_cut_at_it_in_every_sample_format(here: Path, subtype: str) -> None:
    soundfile.write("loud.wav", np.sign(spoken(0.5, 8000)), 8000, subtype)
    assert audiovae("resynthesize loud.wav -o out.wav --model model --quiet") == 0
    soundfile.write("float.wav", soundfile.read("loud.wav")[0], 8000, "FLOAT")
    assert audiovae("resynthesize float.wav -o whole.wav --model model --quiet") == 0
    whole = soundfile.read("whole.wav")[0]
    assert np.abs(whole).max() > 1.5
    assert (
        np.abs(soundfile.read("out.wav")[0] - whole.clip(-1, 1)).max() < 0.035
    )  # half a step of eight bits, at the top of the A-law


# ---------------------------------------------------------------------------------------------------------------------
# Many inputs


@pytest.fixture
def tree(here: Path) -> Path:
    """in/one.wav, in/deep/er/two.flac, in/deep/three.wav, and what is not to be found."""
    os.makedirs("in/deep/er")
    os.makedirs("in/.hidden")
    for i, name in enumerate(("one.wav", "deep/er/two.flac", "deep/three.wav", ".hidden/four.wav", "deep/.five.wav")):
        soundfile.write(f"in/{name}", noise(0.3, seed=i), RATE)
    Path("in/notes.txt").write_text("not sound")
    return here


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("in", {"one.wav", "deep/er/two.flac", "deep/three.wav"}),
        ("in/", {"one.wav", "deep/er/two.flac", "deep/three.wav"}),
        ("'in/**/*.wav'", {"one.wav", "deep/three.wav"}),
        ("'in/*/*.wav'", {"deep/three.wav"}),
        ("'in/deep/*.wa?'", {"three.wav"}),
        ("in/deep in/one.wav", {"er/two.flac", "three.wav", "one.wav"}),
        ("in/one.wav", {"one.wav"}),
    ],
)
def test_outputs_mirror_the_input_tree(tree: Path, inputs: str, outputs: set[str]) -> None:
    assert audiovae(f"resynthesize {inputs} -o out --model model --quiet") == 0
    assert contents(tree / "out").keys() == outputs
    assert audiovae(f"encode {inputs} -o z --model model --quiet") == 0
    assert contents(tree / "z").keys() == {str(Path(name).with_suffix(".npz")) for name in outputs}
    assert audiovae("decode z -o back --model model --quiet") == 0
    assert contents(tree / "back").keys() == {str(Path(name).with_suffix(".wav")) for name in outputs}


def test_a_name_with_brackets_is_a_file_and_not_a_pattern(here: Path) -> None:
    shutil.copy("good.wav", "take[1].wav")
    assert audiovae("resynthesize 'take[1].wav' -o out --model model --quiet") == 0
    assert contents(here / "out").keys() == {"take[1].wav"}


@contextmanager
def plain_failures(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A failure within the block is reported in ASCII: file names that are no Unicode cannot pass between test
    processes.
    """
    try:
        yield
    except Exception as error:
        raise pytest.fail.Exception(ascii((error, *capsys.readouterr())), pytrace=False) from None
    capsys.readouterr()


def test_names_of_any_bytes_are_worked_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.makedirs("odd")
    shutil.copy("good.wav", b"odd/caf\xe9.wav")
    shutil.copy("good.wav", "odd/日本 <&>\n.wav")
    with plain_failures(capsys):
        assert audiovae("resynthesize odd -o out --model model --json") == 0
        assert set(os.listdir(b"out")) == {b"caf\xe9.wav", "日本 <&>\n.wav".encode()}
        assert audiovae("score odd --model model") == 0


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("resynthesize in -o out --model model", ["deep/three.wav", "one.wav"]),
        ("encode in -o out --model model", ["deep/three.npz", "one.npz"]),
        ("encode in -o out --model model --jobs 2", ["deep/three.npz", "one.npz"]),
        ("score in --model model", []),
    ],
)
def test_one_bad_file_of_a_batch_is_named_and_the_others_are_done(
    tree: Path, capsys: pytest.CaptureFixture[str], command: str, made: list[str]
) -> None:
    os.truncate("in/deep/er/two.flac", 1000)
    assert audiovae(f"{command} --json --quiet") == 1
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert "in/deep/er/two.flac: is" in output.err
    assert "Traceback" not in output.err
    rows = strict_json(output.out)
    rows = rows["files"] if isinstance(rows, dict) else rows
    assert [row["file"] for row in rows if "error" in row] == ["in/deep/er/two.flac"]
    assert [row["file"] for row in rows if "error" not in row] == ["in/one.wav", "in/deep/three.wav"]
    assert sorted(contents(tree / "out")) == made


def test_a_batch_of_which_nothing_could_be_done_exits_with_2(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one.wav", "deep/er/two.flac", "deep/three.wav"):
        os.truncate(f"in/{name}", 10)
    assert audiovae("score in --model model --quiet") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 3
    assert output.out == ""


def test_an_existing_output_of_a_batch_is_kept_and_the_others_are_done(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.makedirs("out")
    Path("out/one.wav").write_text("precious")
    assert audiovae("resynthesize in -o out --model model --quiet") == 1
    assert (
        capsys.readouterr().err
        == "audiovae: out/one.wav: exists already; --overwrite replaces it, --resume makes only what is missing\n"
    )
    assert Path("out/one.wav").read_text() == "precious"
    assert Path("out/deep/three.wav").exists()
    assert audiovae("resynthesize in -o out --model model --quiet --overwrite") == 0
    assert soundfile.info("out/one.wav").frames == 4800


def test_a_sampled_result_follows_from_the_seed_and_not_from_the_jobs(tree: Path) -> None:
    made = {}
    for name, options in (
        ("a", "--seed 3"),
        ("b", "--seed 3"),
        ("c", "--seed 3 --jobs 2"),
        ("d", "--seed 4"),
        ("e", "--seed 3"),
    ):
        inputs = "in/deep in/one.wav" if name == "e" else "in/one.wav in/deep"
        assert audiovae(f"resynthesize {inputs} -o {name} --latents sample --model model --quiet {options}") == 0
        made[name] = contents(tree / name)
    assert made["a"] == made["b"] == made["c"] == made["e"]  # nor from the order
    assert all(made["d"][name] != digest for name, digest in made["a"].items())


def test_a_drawn_sound_follows_from_the_seed(here: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert audiovae(f"sample -o {name}.wav --seconds 0.37 --seed {seed} --model model --quiet") == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes() != Path("c.wav").read_bytes()
    info = soundfile.info("a.wav")
    assert (info.samplerate, info.frames, info.channels) == (RATE, 5920, 1)
    os.makedirs("folder")
    assert audiovae("sample -o folder --seconds 0.1 --model model --quiet") == 0
    assert contents(here / "folder").keys() == {"sample.wav"}


# ---------------------------------------------------------------------------------------------------------------------
# What is printed

EVERY_VERB = {
    "prepare": "prepare {corpus} out",
    "train": "train {packed} -o out --vae.latent_dim 2 --vae.hidden [4] --stft.n_fft 256 --stft.hop_length 64 "
    "--training.steps 60 --training.batch_frames 32 --training.learning_rate 0.05",
    "import": "import dvae model.pt config.ini -o out",
    "encode": "encode good.wav -o out --model model",
    "decode": "decode z.npz -o out.wav --model model",
    "resynthesize": "resynthesize good.wav -o out --model model",
    "enhance": "enhance good.wav -o out --model model --method fast",
    "separate": "separate two.wav -o out --method iva",
    "sample": "sample -o out.wav --seconds 0.2 --model model",
    "score": "score good.wav --model model",
    "evaluate": "evaluate good.wav --model model",
    "info": "info model",
    "push": "push model owner/name",
    "export": "export model -o out",
    "gather": "gather kept",
    "app": "app --no-browser",
}


def test_every_verb_has_a_command_here() -> None:
    assert EVERY_VERB.keys() == VERBS.keys()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_seed_of_the_command_line_overrides_that_of_the_configuration(here: Path, packed: Path, seed: int) -> None:
    Path("c.yaml").write_text("training:\n  seed: 5\n")
    assert audiovae(TRAIN + f"--config c.yaml --seed {seed} --quiet", packed=packed) == 0
    assert json.loads(Path("run/training/run.json").read_text())["settings"]["seed"] == seed


@pytest.mark.usefixtures("only_si_sdr")
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "app"])  # which goes on until it is told to end
def test_json_is_json_and_quiet_is_quiet(
    here: Path,
    packed: Path,
    toy_corpus_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    verb: str,
) -> None:
    if verb == "decode":
        latents("z.npz")()
    if verb == "separate":
        soundfile.write("two.wav", np.hstack([noise(), noise()[::-1]]), RATE)
    if verb == "import":
        checkpoint_of("VAE", here)
    if verb == "gather":
        assert audiovae("score good.wav -o kept --model model") == 0
    if verb == "export":
        pytest.importorskip("onnxscript")
    if verb == "push":
        pytest.importorskip("huggingface_hub")
        point_at(request.getfixturevalue("hub"), here / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "secret")
    capsys.readouterr()
    command = EVERY_VERB[verb].format(corpus=toy_corpus_folder, packed=packed)
    assert audiovae(f"{command} --json") == 0
    result = strict_json(capsys.readouterr().out)
    assert result
    for made in (here / "out", here / "out.wav"):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    assert audiovae(f"{command} --quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_quiet_leaves_errors_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("loud.wav", np.sign(spoken(0.5)), RATE)
    assert audiovae("resynthesize loud.wav -o out.wav --model model --quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_common_options_that_make_a_difference_to_it_and_no_others(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert audiovae(f"{verb} --help") == 0
    helped = capsys.readouterr().out
    assert not re.search(r"<function|Positive(Int|Float)", helped)
    listed = set(helped.replace(",", " ").replace("[", " ").split())
    taken = {"--json", "--quiet", *COMMON[verb].split()}
    assert listed & {"--model", "--device", "--seed", "--jobs", "--json", "--quiet"} == taken


def test_the_general_help_lists_every_verb_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("--help") == 0
    helped = capsys.readouterr().out
    assert all(f"\n  {verb} " in helped for verb in VERBS)
    assert "Exit status: 0 all done, 1 some of several files failed, 2" in helped
    assert audiovae("") == 2
    assert capsys.readouterr().out == helped


def test_help_is_a_verb_too(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, meant in (("help", "--help"), ("help score", "score --help")):
        assert audiovae(asked) == 0
        told = capsys.readouterr().out
        assert audiovae(meant) == 0
        assert capsys.readouterr().out == told
    assert audiovae("help scoer") == 2
    assert capsys.readouterr().err == "audiovae: unknown verb 'scoer'; did you mean 'score'?\n"


def test_evaluate_computes_the_metrics_that_are_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from audiovae.cli.evaluate import METRICS

    assert (*METRICS,) == (*metrics.WAVE_METRICS,)
    for given in ("si_sdr", "estoi si_sdr"):
        assert audiovae(f"evaluate good.wav --model model --json --metrics {given}") == 0
        result = strict_json(capsys.readouterr().out)
        scored = {*result["files"][0]["values"], *result["files"][0]["reasons"]} & {*METRICS}
        assert scored == {*given.split()}
    assert audiovae("evaluate --clean good.wav --estimate good.wav --json --metrics pesq") == 0
    assert "si_sdr" not in strict_json(capsys.readouterr().out)["files"][0]["values"]
    assert audiovae("evaluate good.wav --model model --metrics loudness") == 2
    assert "loudness" in capsys.readouterr().err


def test_help_tells_types_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no public way to name them: jsonargparse 4.53.0 asks `_get_type_str`, which another may not."""
    assert audiovae("sample --help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(type: number above 0, default: 5.0)" in text
    assert "of everything random (default: 0)" in text
    assert "PositiveFloat" not in text
    assert audiovae("evaluate --help") == 0  # which takes files, or folders to compare
    assert "(required)" not in capsys.readouterr().out


def test_the_last_line_says_where_how_many_how_long_and_what_was_resampled(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("low.wav", noise(2.0, rate=8000), 8000)
    Path("bad.wav").write_text("text")
    assert audiovae("resynthesize good.wav low.wav bad.wav -o out --model model") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    told = re.fullmatch(
        r"audiovae: out: 2 files of 3, 3\.0 s of sound in ([0-9.]+) s, real-time factor ([0-9.e-]+) without the start, "
        r"1 resampled from 8000 to 16000 Hz",
        last,
    )
    assert told, last
    assert 0 < 3 * float(told[2]) <= 1.1 * float(told[1]) + 0.1
    assert audiovae("sample -o s.wav --seconds 1.5 --model model") == 0
    assert re.fullmatch(r"audiovae: s\.wav: 1 file, 1\.5 s of sound in [0-9.]+ s\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (99.94, "99.9 s"), (125.2, "2 min 5 s"), (36061.0, "10 h 1 min")]
)
def test_durations_are_told_as_one_reads_them(seconds: float, said: str) -> None:
    from audiovae.cli.summary import duration

    assert duration(seconds) == said


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_fit_the_terminal_and_break_no_name(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiovae.cli.progress import print_table

    monkeypatch.setenv("COLUMNS", str(width))
    names = ["speech-16k-dynamic", "mean of 2 ± 95 %"]
    cells = [[f"{1000 + i}.{k} ± 470.4" for i in range(6)] for k in range(2)]
    print_table(["prior", *(f"metric {i}" for i in range(6))], [[n, *c] for n, c in zip(names, cells, strict=True)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    blocks = sum(line.startswith("prior ") for line in lines)
    assert blocks == {40: 6, 60: 3, 80: 2, 200: 1}[width]
    for name, row in zip(names, cells, strict=True):
        of_name = " ".join(line.removeprefix(name) for line in lines if line.startswith(f"{name} "))
        assert re.findall(r"[0-9.]+ ± [0-9.]+", of_name) == row


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert audiovae("--version") == 0
    assert capsys.readouterr().out == f"audiovae {version('audiovae')}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "audiovae", "info"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "shipped models: " in done.stdout
    refused = subprocess.run(
        [sys.executable, "-m", "audiovae", "inform"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "audiovae: unknown verb 'inform'; did you mean 'info'?\n"


def test_no_help_loads_what_takes_long() -> None:
    program = """
import sys
from audiovae.cli.main import VERBS, main
for arguments in (["--help"], *([verb, "--help"] for verb in VERBS)):
    try:
        main(arguments)
    except SystemExit:
        pass
    loaded = {"torch", "scipy", "librosa", "lightning_fabric", "matplotlib", "tensorboard", "rich"} & set(sys.modules)
    assert not loaded, (arguments, loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: audiovae resynthesize" in done.stdout


def test_an_interrupt_is_one_line_and_130(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiovae.cli import info

    def interrupt(options: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupt)
    assert audiovae("info model") == 130
    assert capsys.readouterr().err == "audiovae: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(here: Path) -> None:
    program = "import sys; from audiovae.cli.main import main; sys.exit(main(['info', 'model']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


# ---------------------------------------------------------------------------------------------------------------------
# What the verbs tell


def test_info_tells_sizes_weights_and_hash(here: Path, prior: AudioVAE, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("info model --json") == 0
    facts = strict_json(capsys.readouterr().out)
    assert facts["hash"] == json.loads(Path("model/config.json").read_text())["config_sha256"]
    assert facts["weights"] == sum(parameter.numel() for parameter in prior.vae.parameters())
    assert (facts["latent_dim"], facts["hidden"], facts["sample_rate"], facts["n_fft"]) == (8, [32], RATE, 1024)
    assert audiovae("info model") == 0
    told = capsys.readouterr().out
    assert facts["hash"] in told
    assert f"{facts['weights']:,}" in told
    assert "{}" not in told  # it has no labels


def test_info_shows_the_model_of_the_common_option_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, latent_dim in (("info --model model", 8), ("info --model speech-16k", 64)):
        assert audiovae(f"{command} --json") == 0
        assert strict_json(capsys.readouterr().out).get("latent_dim") == latent_dim


def test_info_lists_the_shipped_models_and_shows_their_cards(capsys: pytest.CaptureFixture[str]) -> None:
    from audiovae.saved import shipped_names

    assert audiovae("info --json") == 0
    assert strict_json(capsys.readouterr().out) == {
        "shipped": shipped_names(),
        "separators": ["rooms-16k-neural"],
        "default": "speech-16k",
    }
    for name in shipped_names():
        assert audiovae(f"info {name}") == 0
        card = capsys.readouterr().out
        assert card.startswith("model  ")
        assert "16000 Hz" in card
        assert "CC BY 4.0" in card
        assert "(251 recordings with their hashes: audiovae info" in card
        assert not re.search(r"\| [0-9a-f]{64} \|", card)
    assert audiovae("info speech-16k --hashes") == 0
    assert len(re.findall(r"\| [0-9a-f]{64} \|", capsys.readouterr().out)) == 251


def test_score_gives_the_bound_of_the_normalised_wave_and_its_mean_over_files(
    tree: Path, prior: AudioVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("in/silent.wav", np.zeros(8000), RATE)
    assert audiovae("score in --samples 3 --model model --json") == 0
    result = strict_json(capsys.readouterr().out)
    rows = {Path(row["file"]).name: row for row in result["files"]}
    assert rows["silent.wav"]["reasons"] == {"bound": "silent"}
    assert rows["silent.wav"]["values"] == {}
    wave = soundfile.read("in/one.wav", dtype="float32")[0]
    expected = bound(prior, metrics.normalise(wave[None], RATE))
    assert rows["one.wav"]["values"]["kl"] == pytest.approx(expected["kl"], rel=1e-5)
    bounds = [row["values"]["bound"] for row in rows.values() if row["values"]]
    assert result["summary"]["bound"] == {
        "mean": pytest.approx(np.mean(bounds)),
        "half_width": pytest.approx(4.303 * np.std(bounds, ddof=1) / np.sqrt(3), rel=1e-3),  # t(0.975, 2)
        "n_files": 3,
        "unit": "nats per frame",
    }
    assert all(row["values"]["iw_bound"] < row["values"]["bound"] for row in rows.values() if row["values"])
    assert audiovae("score in --model model") == 0
    table = capsys.readouterr().out
    assert "mean of" in table
    assert "silent" in table
    assert "in/silent.wav" in table


def test_a_single_file_has_no_interval(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("score good.wav --model model --json") == 0
    assert strict_json(capsys.readouterr().out)["summary"]["kl"]["half_width"] is None


@pytest.mark.usefixtures("only_si_sdr")
def test_evaluate_compares_files_of_equal_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (name, other, snr_db) in enumerate((("a.wav", "a.wav", 10), ("deep/b.wav", "deep/b.flac", 20))):
        clean, added = noise(0.6, 2, seed=i), noise(0.6, 2, seed=10 + i)
        for c in (0, 1):  # noise that is orthogonal to the clean sound has SI-SDR = SNR
            added[:, c] -= clean[:, c] * (added[:, c] @ clean[:, c]) / (clean[:, c] @ clean[:, c])
            added[:, c] *= 10 ** (-snr_db / 20) * np.linalg.norm(clean[:, c]) / np.linalg.norm(added[:, c])
        for side, path, wave in (("clean", name, clean), ("estimate", other, clean + added)):
            os.makedirs(os.path.dirname(f"{side}/{path}"), exist_ok=True)
            soundfile.write(f"{side}/{path}", wave, RATE, "PCM_24")
    assert audiovae("evaluate --clean clean --estimate estimate --json") == 0
    result = strict_json(capsys.readouterr().out)
    assert [row["values"]["si_sdr"] for row in result["files"]] == [
        pytest.approx(10, abs=1e-2),
        pytest.approx(20, abs=1e-2),
    ]
    assert result["summary"]["si_sdr"]["mean"] == pytest.approx(15, abs=1e-2)
    for row in result["files"]:  # half the noise: 6 dB
        soft = soundfile.read(row["file"])[0]
        half = soft + 0.5 * (
            soundfile.read(row["file"].replace("clean/", "estimate/").replace("b.wav", "b.flac"))[0] - soft
        )
        path = row["file"].replace("clean/", "half/")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        soundfile.write(path, half, RATE, "PCM_24")
    assert audiovae("evaluate --clean clean --estimate half --noisy estimate --json") == 0
    assert strict_json(capsys.readouterr().out)["summary"]["si_sdr_gain"]["mean"] == pytest.approx(
        20 * np.log10(2), abs=1e-2
    )
    assert audiovae("evaluate good.wav --noisy estimate") == 2
    assert "--noisy belongs to --clean and --estimate" in capsys.readouterr().err
    assert audiovae("evaluate --clean clean/a.wav --estimate estimate/a.wav --json") == 0
    assert strict_json(capsys.readouterr().out)["files"][0]["values"]["si_sdr"] == pytest.approx(10, abs=1e-2)


@pytest.mark.usefixtures("only_si_sdr")
def test_comparing_files_with_themselves_is_perfect_and_no_warning(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audiovae("evaluate --clean in --estimate in --quiet --json") == 0
    output = capsys.readouterr()
    assert output.err == ""
    result = strict_json(output.out)  # infinity is no JSON
    assert len(result["files"]) == 3
    assert audiovae("evaluate --clean in --estimate in") == 0
    assert "inf" in capsys.readouterr().out


@pytest.mark.usefixtures("only_si_sdr")
def test_brackets_in_a_folder_name_are_no_markup(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("a", "b"):
        os.makedirs(f"{side}[/x]")
        soundfile.write(f"{side}[/x]/[bold]1.wav", noise(0.3, seed=ord(side)), RATE)
    assert audiovae("evaluate --clean 'a[/x]' --estimate 'b[/x]'") == 0
    printed = capsys.readouterr().out
    assert "b[/x] against a[/x]" in printed
    assert "[bold]1.wav" in printed


@pytest.mark.usefixtures("only_si_sdr")
def test_evaluate_scores_the_resynthesis_and_writes_its_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("s.wav", np.zeros(9000), RATE)
    assert audiovae("evaluate good.wav s.wav --model model --json --report r.html") == 0
    result = strict_json(capsys.readouterr().out)
    good, silent = result["files"]
    assert good["values"]["bound"] == pytest.approx(good["values"]["nll"] + good["values"]["kl"])
    assert silent["reasons"]["si_sdr"] == "silent"
    assert result["summary"]["bound"]["n_files"] == 1
    page = Path("r.html").read_text()
    assert "good.wav" in page
    assert "data:audio/mpeg" in page
    assert audiovae("resynthesize good.wav -o again.wav --model model --quiet") == 0
    y = soundfile.read("good.wav")[0]
    assert good["values"]["si_sdr"] == pytest.approx(
        metrics.si_sdr(y, soundfile.read("again.wav")[0]), abs=0.3
    )  # which is not trimmed


def test_prepare_says_what_a_newcomer_would_not_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits of 8 kHz by the first takes alone, which are the corpus's test split."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000)
    (tmp_path / "mine").mkdir()
    for name in ("1_ann_0.wav", "2_bob_0.wav"):
        soundfile.write(tmp_path / "mine" / name, wave, 8000)
    assert audiovae(f"prepare {tmp_path}/mine {tmp_path}/packed") == 0
    output = capsys.readouterr()
    assert "files of 8000 Hz hold nothing above 4000 Hz" in output.err
    assert "test or validation split of free-spoken-digits, by their names; --layout folder --overwrite" in output.err
    assert output.out.splitlines()[4].split() == ["test", "2", "2", "0.0"]
    given = "--layout folder --overwrite --sample_rate 8000 --validation 0.5"
    assert audiovae(f"prepare {tmp_path}/mine {tmp_path}/packed {given}") == 0
    output = capsys.readouterr()
    assert "nothing" not in output.err
    assert output.out.splitlines()[2].split() == ["train", "1", "-", "0.0"]  # whose voices, nobody tells


def test_prepare_reports_what_it_left_out_and_exits_with_1(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/deep/bad.wav").write_text("text")
    assert audiovae("prepare in packed --json") == 1
    output = capsys.readouterr()
    assert "audiovae: in/deep/bad.wav: left out: is not a sound file" in output.err
    result = strict_json(output.out)
    assert result["new"] == 3
    assert [file["id"] for file in result["left_out"]] == ["deep/bad.wav"]
    recordings, speakers = (
        {row["split"]: row[what] for row in result["splits"]} for what in ("recordings", "speakers")
    )
    assert speakers == {"train": 1, "validation": 1, "test": 0}  # "one.wav", a voice of its own, and "deep"
    assert sorted(recordings.values()) == [0, 1, 2]
    assert audiovae("prepare in packed") == 1
    table = capsys.readouterr().out
    assert "layout: folder; new recordings: 0; left out: 1" in table


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of model

SMALL = (
    "--stft.n_fft 256 --stft.hop_length 64 --training.steps 2 --training.batch_frames 32 --training.segment_frames 8 "
    "--vae.latent_dim 2 "
)
KINDS = {
    "FrameVAE": "--vae.hidden [4] --vae.latent dirichlet --vae.likelihood complex-student-t",
    "Autoencoder": "--vae.hidden [4]",
    "ContextVAE": "--vae.width 4 --vae.dilations [1,2] --training.importance_samples 3 --labels digit",
    "DynamicVAE": "--vae.width 4 --vae.prior_width 4 --training.free_bits 0.1 --labels speaker digit",
    "SequenceVAE": "--vae.width 4 --vae.hidden 4 --vae.n_frames 128 --labels digit",
    "LabelVAE": "--vae.width 4 --labels digit",
    "RVAE": "--vae.width 4 --vae.causal false --training.beta_warmup 0.5 --training.beta_cycles 2",
    "DKF": "--vae.width 4 --vae.features 4 --vae.emission [4]",
    "STORN": "--vae.width 4 --vae.features 4",
    "VRNN": "--vae.width 4 --vae.features 4",
    "SRNN": "--vae.width 4 --vae.features 4 --vae.own_past true --training.scheduled_sampling [0.2,0.8]",
    "DSAE": "--vae.width 4 --vae.sequence_dim 2 --vae.emission [4]",
}


@pytest.fixture
def short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    from audiovae.training import loop

    monkeypatch.setattr(loop, "VALIDATION_FRAMES", 64)
    monkeypatch.setattr(loop, "CALIBRATION_FRAMES", 256)


def test_every_kind_of_model_is_trained_here() -> None:
    assert KINDS.keys() == MODEL_SETTINGS.keys()


@pytest.mark.usefixtures("short_validation")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_trained_shown_and_used(
    here: Path, digits: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert audiovae(f"train {digits} -o run --type {kind} {SMALL} {KINDS[kind]} --json") == 0
    assert strict_json(capsys.readouterr().out)["steps"] == 2
    saved = json.loads(Path("run/config.json").read_text())["vae"]
    assert saved["type"] == kind
    classes = {"digit": ["0", "1"], "speaker": ["ann", "bob"]}
    labels = KINDS[kind].partition("--labels ")[2].split()
    assert list(saved["settings"]["labels"].items()) == [(name, classes[name]) for name in labels]
    assert audiovae("info run") == 0
    assert kind in capsys.readouterr().out
    soundfile.write("short.wav", noise(0.4), RATE)
    given = "--label " + " ".join(f"{name}={classes[name][1]}" for name in labels) if labels else ""
    if kind == "LabelVAE":
        assert audiovae(f"resynthesize short.wav -o y.wav --model run {given}") == 2
        assert "LabelVAE predicts labels: it has no PSD" in capsys.readouterr().err
        assert not Path("y.wav").exists()
        return
    assert audiovae(f"resynthesize short.wav -o y.wav --model run --quiet {given}") == 0
    assert audiovae(f"encode short.wav -o z.npz --model run --quiet {given}") == 0
    assert audiovae(f"score short.wav --model run {given} --json") == 0
    score = strict_json(capsys.readouterr().out)
    assert ("n/a" in json.dumps(score)) == (kind == "Autoencoder")
    assert audiovae(f"sample -o drawn.wav --seconds 0.4 --model run --quiet {given}") == (
        2 if kind == "Autoencoder" else 0
    )
    for name in ("y.wav", *([] if kind == "Autoencoder" else ["drawn.wav"])):
        wave, rate = soundfile.read(name)
        assert (rate, len(wave)) == (RATE, 6400)
        assert np.isfinite(wave).all()
        assert wave.any()


@pytest.mark.usefixtures("short_validation")
def test_a_configuration_in_yaml_names_the_kind_and_its_sizes(here: Path, digits: Path) -> None:
    text("c.yaml", "type: RVAE\nvae:\n  width: 6\n  head: 3\n  latent_dim: 2\n")()
    assert audiovae(f"train {digits} -o run --config c.yaml {SMALL} --vae.head 5 --quiet") == 0
    settings = json.loads(Path("run/config.json").read_text())["vae"]
    assert (settings["type"], settings["settings"]["width"], settings["settings"]["head"]) == ("RVAE", 6, 5)
    assert audiovae(f"train {digits} -o other --type=DKF --vae.features 4 {SMALL} --quiet") == 0
    assert json.loads(Path("other/config.json").read_text())["vae"]["type"] == "DKF"


@pytest.fixture
def conditional_model(here: Path) -> AudioVAE:
    """In the folder `conditional`: its spectra depend much on its labels."""
    prior = build_prior(labels={"digit": ("0", "1"), "speaker": ("ann", "bob")})
    with torch.no_grad():
        for parameter in prior.vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    prior.save_pretrained("conditional")
    return prior


@pytest.mark.usefixtures("only_si_sdr")
@pytest.mark.parametrize(
    "command",
    [
        "sample -o y.wav --seconds 0.2 --overwrite", "resynthesize good.wav -o y.wav --overwrite", "encode good.wav -o "
        "y.npz --overwrite",
        "decode z.npz -o y.wav --overwrite",
        "score good.wav --json", "evaluate good.wav --json",
    ],
)  # fmt: skip
def test_labels_say_what_the_sound_is(
    conditional_model: AudioVAE, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert audiovae("encode good.wav -o z.npz --model conditional --label digit=0 speaker=ann --quiet") == 0
    results = []
    for given in ("digit=0 speaker=ann", "speaker=ann digit=0", "digit=1 speaker=ann", "digit=0 speaker=bob"):
        capsys.readouterr()
        assert audiovae(f"{command} --model conditional --label {given}") == 0
        written = [Path(name).read_bytes() for name in ("y.wav", "y.npz") if Path(name).exists()]
        results.append(written or [capsys.readouterr().out])
    assert results[0] == results[1]
    assert len({str(result) for result in results}) == 3


def test_a_sample_of_a_label_is_that_of_python(conditional_model: AudioVAE) -> None:
    assert (
        audiovae("sample -o y.wav --seconds 0.2 --seed 3 --model conditional --label digit=1 speaker=bob --quiet") == 0
    )
    torch.manual_seed(3)
    with torch.no_grad():
        condition = conditional_model.condition(digit="1", speaker="bob")
        psd = conditional_model.sample(conditional_model.stft.n_frames(3200), condition)
        expected = 0.05 * conditional_model.stft.inverse(ComplexNormal(psd).sample(), 3200)
    found = soundfile.read("y.wav")[0]
    assert np.abs(found - expected.numpy().clip(-1, 1)).max() < 1e-3 * max(1, np.abs(found).max())


NO_LABELS = r"this model is conditioned on digit \(0, 1\) and speaker \(ann, bob\)"


@pytest.mark.usefixtures("conditional_model")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample -o y.wav --model conditional", rf"the label 'digit' is missing; {NO_LABELS}|a condition is missing"),
        ("resynthesize good.wav -o y.wav --model conditional", r"label 'digit' is missing|a condition is missing"),
        (
            "encode good.wav -o y.npz --model conditional --label digit=0",
            rf"the label 'speaker' is missing; {NO_LABELS}",
        ),
        ("sample -o y.wav --model conditional --label digit=7 speaker=ann", "digit '7' is unknown; known are 0, 1"),
        (
            "sample -o y.wav --model conditional --label digits=1 speaker=ann",
            r"unknown label 'digits'; did you mean 'digit'\?",
        ),
        ("sample -o y.wav --model conditional --label digit", "--label digit: give it as NAME=CLASS"),
        ("score good.wav --model model --label digit=1", "unknown label 'digit'; this model has no labels"),
    ],
)
def test_labels_that_a_model_does_not_know_are_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    before = contents(here)
    assert audiovae(command) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert re.search(message, output.err), output.err
    assert contents(here) == before


@pytest.mark.parametrize(("kind", "offered"), [
    ("RVAE", {"likelihood"}), ("DynamicVAE", {"likelihood"}), ("LabelVAE", set()), ("Autoencoder", {"likelihood"}),
    ("FrameVAE", {"latent", "dirichlet_concentration", "likelihood"}),
])  # fmt: skip
def test_the_help_of_a_type_offers_what_it_takes(
    kind: str, offered: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what only some models take; the point of an autoencoder is no choice, and labels have an option of their
    own."""
    with pytest.raises(SystemExit):
        main(["train", "--type", kind, "--help"])
    options = set(re.findall(r"--vae\.(\w+)", capsys.readouterr().out))
    assert "latent_dim" in options
    assert options & {"latent", "dirichlet_concentration", "likelihood", "labels"} == offered


WRONG_KINDS = [
    ("--type FlowVAE", r"--type.*FlowVAE"),
    ("--type RVAE --vae.hidden [4]", r"unknown option or key '--vae\.hidden'"),
    ("--labels word", r"has no label 'word'; it has digit, speaker"),
    ("--type LabelVAE", r"a LabelVAE predicts exactly one label, got none; name one of the corpus"),
    ("--type LabelVAE --labels digit speaker", r"a LabelVAE predicts exactly one label, got \['digit', 'speaker'\]"),
    ("--type DKF --labels digit", r"train: DKF takes no labels: .*; FrameVAE, ContextVAE, DynamicVAE, SequenceVAE, "
    r"LabelVAE do"),
    ("--type DKF --vae.latent dirichlet", r"vae\.latent"),
    ("--type Autoencoder --labels digit", r"train: Autoencoder takes no labels"),
    ("--type FrameVAE --vae.latent cauchy", r"vae\.latent: expected .*gaussian.*got cauchy"),
    ("--type FrameVAE --training.scheduled_sampling [0.2,0.8]",
    r"scheduled_sampling is for models that feed on past.* not FrameVAE"),
    ("--type RVAE --training.importance_samples 4", r"importance_samples above 1 needs .* RVAE"),
    ("--type Autoencoder --training.importance_samples 4", r"importance"),
    ("--training.importance_samples 4 --training.free_bits 1",
    r"train: importance_samples above 1 .* without beta_warmup or free_bits"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG_KINDS)
def test_a_model_that_cannot_be_trained_is_refused_in_one_line(
    here: Path, digits: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    before = contents(here)
    assert audiovae(f"train {digits} -o run --training.steps 2 --stft.n_fft 256 --stft.hop_length 64 {options}") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert re.search(message, output.err), output.err
    assert contents(here) == before


FINE_TUNE = "train {packed} -o run --training.steps 2 "


@pytest.mark.parametrize("place", ["option", "YAML"])
def test_a_model_is_fine_tuned_with_its_own_sizes(here: Path, packed: Path, prior: AudioVAE, place: str) -> None:
    Path("c.yaml").write_text("init: model\nvae: {latent_dim: 8}\n")  # what agrees is no contradiction
    how = "--init=model" if place == "option" else "--config c.yaml"
    assert audiovae(FINE_TUNE + how + " --training.batch_frames 64 --training.learning_rate 1e-4", packed=packed) == 0
    tuned = AudioVAE.from_pretrained("run")
    assert tuned.config() == prior.config()
    moved = max(float((tuned.state_dict()[name] - before).abs().max()) for name, before in prior.state_dict().items())
    assert 0 < moved < 1e-3
    assert torch.equal(tuned.vae.log_power.mean, prior.vae.log_power.mean)
    assert "fine-tuned from model" in Path("run/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--type RVAE", "train: --type RVAE contradicts model, which has FrameVAE; leave it out to fine-tune that"),
        ("--vae.hidden [64]", r"train: --vae\.hidden \[64\] contradicts model, which has \[32\]"),
        ("--stft.n_fft 512", r"train: --stft\.n_fft 512 contradicts model, which has 1024"),
        ("--labels speaker", r"train: --labels \['speaker'\] contradicts model, which has \[\]"),
        ("--vae.width 4", r"unknown option or key '--vae\.width'"),
        ("--init speech-16", r"speech-16: no such model; did you mean 'speech-16k'"),
    ],
)
def test_what_contradicts_the_model_that_is_fine_tuned_is_refused_by_name(
    here: Path, packed: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    begin = "" if "--init" in options else "--init model "
    assert audiovae(FINE_TUNE + begin + options, packed=packed) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert re.search(message, output.err), output.err
    assert not Path("run").exists()


def test_a_label_that_only_held_out_recordings_have_is_named(
    here: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The speakers of the toy corpus are split: a model conditioned on them cannot be validated."""
    assert audiovae(TRAIN + "--labels speaker", packed=packed) == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert re.search(r"speaker 'speaker\d' is unknown; known are speaker", output.err)
    assert not Path("run").exists()


def test_a_table_of_labels_is_an_option_of_prepare(here: Path, toy_corpus_folder: Path) -> None:
    ids = sorted(path.relative_to(toy_corpus_folder).as_posix() for path in toy_corpus_folder.rglob("*.wav"))
    text("labels.csv", "file,take\n" + "".join(f"{id_},{Path(id_).stem}\n" for id_ in ids))()
    assert audiovae("prepare {corpus} out --labels labels.csv --quiet", corpus=toy_corpus_folder) == 0
    assert PackedCorpus("out").classes("take") == ("0", "1")
