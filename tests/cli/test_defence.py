"""Whatever a user gives, and wherever it runs: one line and an exit status, never a traceback, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovae import metrics
from audiovae.cli.main import main
from audiovae.corpora.packed import PackedCorpus

RATE = 16000
TRAIN = "train {packed} -o run --training.steps 2 --training.batch_frames 64 --quiet "


def noise(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, `good.wav` of one second."""
    soundfile.write(tmp_path / "good.wav", noise(), RATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "WAVE_METRICS", {"si_sdr": metrics.METRICS["si_sdr"]})
    return tmp_path


def audiovae(command: str, **places: object) -> int:
    try:
        return main(shlex.split(command.format(**places)))
    except SystemExit as leave:
        return int(leave.code or 0)


def console(command: str) -> subprocess.CompletedProcess[str]:
    """A shell line, with {A} for the real program."""
    line = "set -o pipefail; " + command.replace("{A}", f"{sys.executable} -m audiovae")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120, env=environment
    )


# ---------------------------------------------------------------------------------------------------------------------
# Values of options.

OTHER = "does not describe a model that this version can build"
FULL = "audiovae: the standard output cannot be written (No space left on device)\n"
FULL_TOO = "audiovae: cannot be written to the end (No space left on device); check the free space\n"

REFUSED = {
    "seed below 0": ("score good.wav --seed -1", "--seed: expected int from 0 to 2^64 - 1, got -1"),
    "seed above 2^64": ("sample -o a.wav --seed 18446744073709551616", "got 18446744073709551616"),
    "seed of training": (TRAIN + "--training.seed -3", "seed must be from 0 to 2^64 - 1, got -3"),
    "endless sample": ("sample -o a.wav --seconds inf", "--seconds must be at most 1800, got inf"),
    "sample of a day": ("sample -o a.wav --seconds 86400", "--seconds must be at most 1800, got 86400"),
    "meta device": ("score good.wav --device meta", "--device meta: no such device here; use cpu or auto"),
    "numbered processor": (TRAIN + "--device cpu:7", "--device cpu:7: no such device here"),
    "a module as device": ("score good.wav --device hpu", "--device hpu: no such device here"),
    "rank": ("enhance good.wav -o out --rank 1000000000", "--rank must be at most 512, got 1000000000"),
    "label self": ("score good.wav --label self=1", "unknown label 'self'"),
    "empty report": ("evaluate good.wav --report ''", "--report: must name a file or folder, got nothing"),
    "n_fft": (TRAIN + "--stft.n_fft 1099511627776", "n_fft must be at most 65536, got 1099511627776"),
    "n_fft beyond integers": (TRAIN + f"--stft.n_fft {10**30}", "n_fft must be at most 65536"),
    "overlap": (TRAIN + "--stft.hop_length 1", "hop_length must be at least n_fft / 128 = 8, got 1"),
    "latent_dim": (TRAIN + f"--vae.latent_dim {10**12}", "latent_dim must be at most 65536, got 1000000000000"),
    "hidden": (TRAIN + f"--vae.hidden [{2**63}]", "hidden must be at most 65536"),
    "dilations": (TRAIN + "--type ContextVAE --vae.dilations [1000000]", "dilations must be at most 65536"),
    "width below zero": (TRAIN + "--type RVAE --vae.head -1", "head must not be negative, got -1"),
    "weights": (TRAIN + "--vae.hidden [60000,60000]", "has 7273 million weights, more than fit; choose less"),
    "no emission": (TRAIN + "--type DKF --vae.emission [0]", "widths must be positive"),
    "batch": (
        TRAIN + f"--training.batch_frames {2**60}",
        "batch_frames times importance_samples must be at most 262144",
    ),
    "samples of a bound": (TRAIN + "--training.importance_samples 100000", "importance_samples must be at most 262144"),
    "rate of a corpus": ("prepare . packed --sample_rate 2147483647", "sample_rate must be at most 1048576 Hz"),
    "a name that no file can have": ("score " + 300 * "n", "cannot be read (File name too long)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_would_break_what_follows_are_refused_in_one_line(
    here: Path, packed: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    command, said = REFUSED[case]
    assert audiovae(command, packed=packed) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert len(err) < 600
    assert said in err
    assert not any(Path(name).exists() for name in ("out", "a.wav", "run/config.json", "packed"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vae: [1]", "vae: expected"),
        ("training: 3", "training: expected"),
        ("type: [FrameVAE]", "type"),
        ("vae: " + 3000 * "[" + 3000 * "]", "is not a YAML file of options"),
        ("training: {{steps: " + 5000 * "9" + "}}", "is not a YAML file of options"),
        ("training: &a {{steps: *a}}", "is not a YAML file of options"),
        (
            "a: &a [l,l,l,l,l,l,l,l,l,l]\n"
            + "".join(f"{'abcdefghij'[i + 1]}: &{'abcdefghij'[i + 1]} [{','.join(['*' + 'abcdefghij'[i]] * 10)}]\n" for i in range(9))  # noqa: E501
            + "training: {{steps: *j}}\n",
            "it has too many values",
        ),
    ],
    ids=["list", "number", "type", "nested", "digits", "loop", "laughs"],
)  # fmt: skip
def test_yaml_of_another_shape_is_refused(
    here: Path, packed: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    Path("c.yaml").write_text(text.replace("{{", "{").replace("}}", "}"))
    assert audiovae(TRAIN + "--config c.yaml", packed=packed) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert len(err) < 600
    assert said in err


def test_an_empty_group_of_a_yaml_file_has_its_defaults(here: Path, packed: Path) -> None:
    Path("c.yaml").write_text("stft:\ntraining:\n  log_every: 1\nvae:\n")
    assert audiovae(TRAIN + "--config c.yaml", packed=packed) == 0
    assert json.loads(Path("run/config.json").read_text())["vae"]["settings"]["hidden"] == [512, 512, 512]


def test_yaml_is_utf_8_whatever_the_locale(here: Path, packed: Path) -> None:
    Path("c.yaml").write_text("# \u00e9\ntraining:\n  steps: 2\nvae:\n  hidden: [9]\n", encoding="utf-8")
    done = console(f"LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {{A}} train {packed} -o run --quiet --config c.yaml")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/config.json").read_text())["vae"]["settings"]["hidden"] == [9]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs.


def test_a_report_never_replaces_a_recording(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("good.wav").read_bytes()
    for command in ("evaluate . --report good.wav", "evaluate good.wav --report ./x/../good.wav"):
        Path("x").mkdir(exist_ok=True)
        assert audiovae(command + " --overwrite") == 2
        assert "is the input itself; choose another output" in capsys.readouterr().err
    soundfile.write("other.wav", noise(seed=1), RATE)
    for command in ("resynthesize good.wav -o other.wav", "enhance good.wav -o o/ --method fast --residual good.wav"):
        audiovae(command + " --overwrite --quiet")
    assert Path("good.wav").read_bytes() == before


@pytest.mark.parametrize("verb", ["resynthesize", "enhance --method fast"])
def test_outputs_below_the_input_folder_are_no_inputs_of_the_next_run(
    here: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    Path("in").mkdir()
    for name in "ab":
        soundfile.write(f"in/{name}.wav", noise(0.3), RATE)
    assert audiovae(f"{verb} in -o in/out --quiet") == 0
    capsys.readouterr()
    assert audiovae(f"{verb} in -o in/out --overwrite") == 0
    assert "left out: 2 files that stand in the output folder" in capsys.readouterr().err
    assert audiovae(f"{verb} 'in/**/*.wav' -o in/out --overwrite --quiet") == 0
    assert sorted(path.as_posix() for path in Path().rglob("*.wav")) == [
        "good.wav", "in/a.wav", "in/b.wav", "in/out/a.wav", "in/out/b.wav",
    ]  # fmt: skip
    assert audiovae(f"{verb} in/out/a.wav -o in --overwrite --quiet") == 0  # a file that is named is meant


def test_what_was_made_with_other_options_is_not_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = "enhance {} -o out --quiet --method fast"
    assert audiovae(run.format("good.wav")) == 0
    soundfile.write("more.wav", noise(seed=1), RATE)
    for other in ("--noise stationary", "--rank 4", "--seed 1", "--method peem", "--model speech-16k"):
        assert audiovae(run.format("good.wav more.wav") + f" --resume {other}") == 2
        assert "out/good.wav: was made by audiovae enhance --method fast --noise slow" in capsys.readouterr().err
        assert os.listdir("out") == ["good.wav"]
    made = Path("out/good.wav").read_bytes()
    assert audiovae(run.format("good.wav more.wav") + " --resume") == 0
    assert Path("out/good.wav").read_bytes() == made
    assert sorted(os.listdir("out")) == ["good.wav", "more.wav"]


@pytest.mark.parametrize("suffix", ["au", "w64", "nist", "voc"])
def test_what_cannot_tell_how_it_was_made_is_made_anew(
    suffix: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three outputs are there, by another method; no format has tags, so --resume takes none of them over."""
    run = "enhance {} --noise stationary --model model"
    for name in "abc":
        soundfile.write(here / f"{name}.{suffix}", 0.1 * np.random.default_rng(0).standard_normal(4000), 16000)
    files = [f"{name}.{suffix}" for name in "abc"]
    assert audiovae(run.format(" ".join(files)) + " -o expected --method fast") == 0
    assert audiovae(run.format(" ".join(files[:2])) + " -o out --method vem") == 0
    assert (here / "out" / files[0]).read_bytes() != (here / "expected" / files[0]).read_bytes()
    capsys.readouterr()
    assert audiovae(run.format(" ".join(files)) + " -o out --method fast --resume --jobs 1") == 0
    told = capsys.readouterr().err
    line = f"audiovae: out/a.{suffix} and 1 more: made anew, as the format has no tags that tell how it was made\n"
    assert told.startswith(line)
    assert told.count("made anew") == 1
    for file in files:
        assert (here / "out" / file).read_bytes() == (here / "expected" / file).read_bytes()


def test_one_unreadable_file_does_not_stop_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop.wav").symlink_to("loop.wav")
    Path("r.raw").write_bytes(bytes(range(256)) * 10)
    long = "n/" * 2500 + "x.wav"
    assert audiovae(f"resynthesize loop.wav r.raw {long} good.wav -o out --quiet") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(len(line) < 600 for line in lines)
    assert [path.name for path in Path("out").iterdir()] == ["good.wav"]


def test_scores_of_absolute_and_relative_names_stand_in_one_table(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("other.wav", noise(seed=1), RATE)
    assert audiovae(f"score good.wav {here}/other.wav --model model") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^good\.wav +[0-9]", printed, re.MULTILINE)
    assert re.search(r"^other\.wav +[0-9]", printed, re.MULTILINE)


def test_infinite_values_are_named_and_not_averaged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = noise(), noise(seed=1)
    half = np.arange(RATE) < RATE // 2
    for name, clean, estimate in (
        ("exact", x, x),
        ("apart", x * half, x * ~half),
        ("c", x, x + 0.1 * y),
        ("d", y, y + x),
    ):
        for folder, wave in (("clean", clean), ("estimate", estimate)):
            Path(folder).mkdir(exist_ok=True)
            soundfile.write(f"{folder}/{name}.wav", wave, RATE, subtype="FLOAT")
    found = [metrics.si_sdr(*(soundfile.read(f"{f}/{n}.wav")[0] for f in ("clean", "estimate"))) for n in "cd"]
    capsys.readouterr()
    assert audiovae("evaluate --clean clean --estimate estimate") == 0
    printed = capsys.readouterr().out
    assert "SI-SDR infinite, not averaged: 2 files" in printed
    assert "SI-SDR: scored on 2 of 4 files" in printed
    assert audiovae("evaluate --clean clean --estimate estimate --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["summary"]["si_sdr"]["mean"] == pytest.approx(np.mean(found))
    rows = {Path(row["file"]).stem: row for row in told["files"]}
    assert rows["exact"]["values"]["si_sdr"] is None
    assert rows["exact"]["reasons"] == {"si_sdr": "infinite"}
    assert audiovae("evaluate --clean clean --estimate estimate --noisy clean --json") == 0  # inf - inf


# ---------------------------------------------------------------------------------------------------------------------
# Files of ours that others wrote.


def rewritten(change: Callable[[dict[str, np.ndarray]], None], **options: object) -> None:
    with np.load("good.npz") as file:
        fields = {name: file[name] for name in file.files}
    change(fields)
    (np.savez_compressed if options else np.savez)("bad.npz", **fields)


def bomb() -> None:
    """Half a gigabyte of zeros in half a megabyte."""
    rewritten(lambda fields: fields.update(latents=np.zeros((1, 2**21, 64), np.float32)), compressed=True)


def claims(shape: str) -> Callable[[], None]:
    def make() -> None:
        rewritten(lambda fields: fields.pop("latents"))
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with zipfile.ZipFile("bad.npz", "a") as archive:
            archive.writestr("latents.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)

    return make


@pytest.mark.parametrize(
    "make",
    [
        bomb,
        claims("(1, 1000000000000, 1)"), claims("(1, 4611686018427387904, 8)"), claims("(1, -3, 1)"), claims("((((("),
        lambda: rewritten(lambda fields: fields.update(sample_rate=np.array(2**40))),
        lambda: rewritten(lambda fields: fields.update(level=np.array(1e300))),
        lambda: Path("bad.npz").mkdir(),
        lambda: Path("bad.npz").write_bytes(b"\x93NUMPY\x01\0\xff\xff" + 65535 * b"("),
    ],
    ids=["bomb", "4 TB", "2^65", "negative", "no header", "rate", "level", "folder", "nested"],
)  # fmt: skip
def test_latents_that_lie_are_refused_before_memory_is_taken(
    here: Path, capsys: pytest.CaptureFixture[str], make: Callable[[], None]
) -> None:
    import tracemalloc

    assert audiovae("encode good.wav -o good.npz --model model --quiet") == 0
    make()
    tracemalloc.start()
    try:
        assert audiovae("decode bad.npz -o out.wav --model model") == 2
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    err = capsys.readouterr().err
    assert "bad.npz" in err
    assert len(err.splitlines()) == 1
    assert not Path("out.wav").exists()


def test_latents_with_a_parameter_of_no_posterior_are_not_sampled(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audiovae("encode good.wav -o good.npz --model model") == 0

    def more(fields: dict[str, np.ndarray]) -> None:
        fields["posterior.extra"] = np.zeros_like(fields["latents"])
        fields["n_arrays"] = fields["n_arrays"] + 1

    rewritten(more)
    assert audiovae("decode bad.npz -o out.wav --model model --latents sample") == 2
    assert "bad.npz: is damaged: its posterior must have loc and scale" in capsys.readouterr().err


WRONG = [
    ("level", 0.0), ("level", -1.0), ("level", "x"), ("level", None), ("level", 1e300), ("scale", 0.0), ("scale", "x"),
    ("start", -5), ("start", 1.5), ("start", None), ("n_samples", 0), ("n_samples", "x"), ("split", "nope"), ("id", 3),
    ("labels", 3), ("labels", {"speaker": 3}), ("sha256", None), ("start", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_line_of_the_index_with_another_value_is_refused(
    here: Path, packed: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    index = packed / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    copy = here / "copy"
    copy.mkdir()
    (copy / "samples.int16").symlink_to(packed / "samples.int16")
    PackedCorpus(packed)
    rows[2][key] = value
    (copy / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert audiovae(TRAIN, packed=copy) == 2
    assert "copy/index.jsonl: is damaged; prepare the corpus again with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["3\n", "[]\n", "null\n", "{}\n", "[" * 100000])
def test_an_index_of_another_shape_is_refused(here: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("copy").mkdir()
    Path("copy/index.jsonl").write_text(text)
    assert audiovae(TRAIN, packed="copy") == 2
    assert "copy/index.jsonl: is damaged" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Streams and surroundings.


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("{A} info speech-16k > /dev/full", 2, FULL),
        ("{A} --help > /dev/full", 2, FULL),
        ("{A} train --help > /dev/full", 2, FULL_TOO),
        ("{A} info speech-16k | true", 0, ""),
        ("{A} info speech-16k | head -1 > /dev/null", 0, ""),
        ("{A} info nope 2> /dev/full", 2, ""),
        ("{A} info nope 2>&-", 2, ""),
        ("{A} info speech-16k <&- >&- 2>&-", 0, ""),
        ("{A} resynthesize good.wav -o closed.wav --model model --quiet >&-", 0, ""),
        ("{A} resynthesize good.wav bad.wav -o full/ --model model 2> /dev/full", 1, ""),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(here: Path, command: str, status: int, said: str) -> None:
    done = console(command)
    assert (done.returncode, done.stderr) == (status, said)
    if "closed.wav" in command or "full/" in command:
        made = "closed.wav" if "closed.wav" in command else "full/good.wav"
        assert soundfile.info(made).frames == RATE


def test_a_numbered_process_without_a_number_is_named(
    here: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "x")
    assert audiovae(TRAIN, packed=packed) == 2
    assert "the environment variable LOCAL_RANK must be a whole number, got 'x'; unset it" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["0", "1"])
def test_an_error_that_nobody_foresaw_is_one_line_and_its_place_is_shown_on_demand(here: Path, asked: str) -> None:
    program = (
        "import sys; from audiovae import audio; from audiovae.cli.main import main\n"
        "audio.inspect = lambda *given: [][1]\n"
        "sys.exit(main(['score', 'good.wav', '--model', 'model', '--quiet']))"
    )
    environment = {**os.environ, "AUDIOVAE_TRACEBACK": asked}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    line = "audiovae: good.wav: internal error: IndexError: list index out of range (details: AUDIOVAE_TRACEBACK=1)"
    assert done.returncode == 2
    assert [text for text in done.stderr.splitlines() if text.startswith("audiovae")] == [line]
    assert ("Traceback" in done.stderr) == (asked == "1")
    assert asked == "1" or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MemoryError()", "not enough memory; free some, or give less at a time or smaller sizes"),
        ("RecursionError('deep')", "internal error: RecursionError: deep (details: AUDIOVAE_TRACEBACK=1)"),
        ("OSError(28, 'No space left on device', 'x')", "x: cannot be written to the end (No space left on device)"),
        ("OSError(13, 'Permission denied', 'x')", "x: cannot be used (Permission denied); check the name"),
    ],
)
def test_the_last_defence(here: Path, error: str, said: str) -> None:
    program = (
        "import sys; from audiovae import saved; from audiovae.cli.main import main\n"
        f"def fails(): raise {error}\n"
        "saved.shipped_names = fails\nsys.exit(main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"audiovae: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_a_card_in_another_encoding_is_shown_without_escape_codes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/README.md").write_bytes(b"\x1b]0;owned\x07 \xff caf\xc3\xa9\n")
    assert audiovae("info model") == 0
    printed = capsys.readouterr().out
    assert "caf\u00e9" in printed
    assert "\x1b" not in printed
    Path("model/README.md").unlink()
    Path("model/README.md").mkdir()
    assert audiovae("info model") == 0


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("stft", "n_fft"), 10**30, "a size of 1000000000000000000000000000000, and the tensors have none above"),
        (("stft", "n_fft"), 1.5, OTHER),
        (("sample_rate",), 10**12, "sample_rate must be at most 1048576 Hz"),
        (("sample_rate",), 1.5, OTHER),
        (("vae", "settings", "labels"), "x", OTHER),
        (("vae", "settings", "hidden"), 5, OTHER),
        (("vae", "settings", "latent_dim"), True, OTHER),
    ],
)
def test_a_config_with_the_right_hash_and_absurd_sizes_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], path: tuple[str, ...], value: object, said: str
) -> None:
    from audiovae import saved

    config = json.loads(Path("model/config.json").read_text())
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    config["config_sha256"] = saved._digest_of_fields(config)
    Path("model/config.json").write_text(json.dumps(config))
    assert audiovae("info model") == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_weights_that_are_not_finite_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from audiovae import AudioVAE

    prior = AudioVAE.from_pretrained("model")
    with torch.no_grad():
        next(prior.vae.parameters()).view(-1)[0] = float("nan")
    prior.save_pretrained("broken")
    assert audiovae("resynthesize good.wav -o out --model broken") == 2
    assert "holds weights that are NaN or infinite" in capsys.readouterr().err
