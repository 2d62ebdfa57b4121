"""Many noisy files at once: side by side, in blocks, one of them broken, after a kill, and on several devices."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE, speech_like
from numpy.typing import NDArray

from audiovae import AudioVAE, audio
from audiovae.cli.main import main
from audiovae.errors import AudiovaeError
from audiovae.separation import EMSettings, Separator, blocks, enhance_file, enhancer
from audiovae.separation.files import Enhanced, NoisyFile, enhance_files, groups_by_length


def noisy(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> NDArray[np.float32]:
    """Half of full scale: `[sample, channel]`."""
    noise = 0.03 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    return (speech_like(seconds, 120 + 20 * seed, seed, rate)[:, None] + noise).astype(np.float32)


def stored(path: Path, wave: NDArray[np.floating], rate: int = RATE, subtype: str = "PCM_32") -> Path:
    """With 32 bits, so that no rounding hides a difference; the header of floats holds the time of writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second makes two blocks of the default STFT."""
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 30)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 10)


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """From one block to six; two of the same length; other rates, more channels; silence."""
    return [
        stored(tmp_path / "in" / "a.wav", noisy(1.5, 0)),
        stored(tmp_path / "in" / "b.wav", noisy(0.3, 1, 8000), 8000),
        stored(tmp_path / "in" / "c.wav", noisy(2.1, 2, 44100, 2), 44100),
        stored(tmp_path / "in" / "d.wav", np.zeros((4000, 3))),
        stored(tmp_path / "in" / "e.wav", noisy(1.5, 4, channels=2)),
    ]


def waves(folder: Path, sources: list[Path]) -> list[NDArray[np.float32]]:
    return [soundfile.read(folder / source.name, dtype="float32", always_2d=True)[0] for source in sources]


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name]


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("method", "noise"), [("peem", "slow"), ("fast", "nmf")])
def test_files_side_by_side_come_out_as_alone_in_any_order(
    prior: AudioVAE, tmp_path: Path, sounds: list[Path], method: Any, noise: Any
) -> None:
    run = enhancer(prior, method, noise, mixed_precision=False)
    for i, source in enumerate(sounds):
        enhance_file(run, source, tmp_path / "alone" / source.name, tmp_path / "alone-rest" / source.name, seed=i)
    alone, rest = waves(tmp_path / "alone", sounds), waves(tmp_path / "alone-rest", sounds)
    assert max(np.abs(wave).max() for wave in alone) > 0.1
    for name, order in (("forwards", range(5)), ("backwards", range(4, -1, -1)), ("some", (2, 0))):
        together = [
            NoisyFile(sounds[i], tmp_path / name / sounds[i].name, tmp_path / f"{name}-rest" / sounds[i].name, i)
            for i in order
        ]
        seconds: list[float] = []
        done = enhance_files(run, together, seconds.append)
        for i, result in zip(order, done, strict=True):
            assert isinstance(result, Enhanced)
            assert result.speech.path == tmp_path / name / sounds[i].name
            assert len(result.objective) == run.settings.n_iterations
        chosen = [sounds[i] for i in order]
        for expected, found in ((alone, name), (rest, f"{name}-rest")):
            for i, wave in zip(order, waves(tmp_path / found, chosen), strict=True):
                np.testing.assert_allclose(wave, expected[i], atol=1e-4)
        assert sum(seconds) == pytest.approx(sum(audio.inspect(source).seconds for source in chosen))


@pytest.mark.usefixtures("short_blocks")
def test_the_seed_of_each_file_is_its_own(prior: AudioVAE, tmp_path: Path) -> None:
    source = stored(tmp_path / "in.wav", noisy(1))
    run = enhancer(prior, "fast", "nmf", mixed_precision=False)
    enhance_files(run, [NoisyFile(source, tmp_path / f"{i}.wav", seed=seed) for i, seed in enumerate((3, 3, 5))])
    first, second, third = (soundfile.read(tmp_path / f"{i}.wav")[0] for i in range(3))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert np.abs(first - third).max() > 1e-3


def damage_nothing(sounds: list[Path]) -> None: ...


def cut_header(sounds: list[Path]) -> None:
    os.truncate(sounds[2], 20)


def cut_end(sounds: list[Path]) -> None:
    os.truncate(sounds[2], sounds[2].stat().st_size - 100)


def not_a_number(sounds: list[Path]) -> None:
    wave, rate = soundfile.read(sounds[2])
    wave[-5] = np.nan
    stored(sounds[2], wave, rate, "FLOAT")


def remove(sounds: list[Path]) -> None:
    sounds[2].unlink()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    ("damage", "target", "message"),
    [
        (cut_header, "c.wav", "c.wav: is "),
        (cut_end, "c.wav", "c.wav: is truncated"),
        (not_a_number, "c.wav", "c.wav: holds samples that are NaN"),
        (remove, "c.wav", "c.wav: no such file"),
        (damage_nothing, "c.xyz", "c.xyz: .xyz is not a sound format"),
        (damage_nothing, "taken/c.wav", "taken/c.wav: cannot be written"),
    ],
)
def test_a_file_that_fails_is_named_and_those_beside_it_are_done(
    prior: AudioVAE, tmp_path: Path, sounds: list[Path], damage: Callable[[list[Path]], None], target: str, message: str
) -> None:
    run = enhancer(prior, "fast", mixed_precision=False)
    good = [source for i, source in enumerate(sounds) if i != 2]
    for source in good:
        enhance_file(run, source, tmp_path / "alone" / source.name)
    damage(sounds)
    out = tmp_path / "out"
    out.mkdir()
    (out / "taken").write_text("a file where a folder should be")
    targets = [out / (target if i == 2 else source.name) for i, source in enumerate(sounds)]
    done = enhance_files(run, [NoisyFile(source, path) for source, path in zip(sounds, targets, strict=True)])
    assert isinstance(done[2], AudiovaeError)
    assert message in str(done[2])
    assert all(isinstance(result, Enhanced) for i, result in enumerate(done) if i != 2)
    for expected, found in zip(waves(tmp_path / "alone", good), waves(out, good), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert {path.name for path in out.iterdir()} == {"taken", *(source.name for source in good)}


@pytest.mark.usefixtures("short_blocks")
def test_a_file_that_fails_in_its_middle_leaves_nothing_and_those_beside_it_are_done(
    prior: AudioVAE, tmp_path: Path, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after its first block was written: its data are still to be read, as those of the others are."""
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 0.25)
    run = enhancer(prior, "fast", mixed_precision=False)
    enhance_file(run, sounds[0], tmp_path / "alone.wav")
    seen: list[list[Path]] = []

    def cut(seconds: float) -> None:
        seen.append(left_over(tmp_path))
        if len(seen) == 3:
            os.truncate(sounds[2], sounds[2].stat().st_size // 2)

    together = [
        NoisyFile(sounds[i], tmp_path / "out" / sounds[i].name, tmp_path / "rest" / sounds[i].name) for i in (2, 0)
    ]
    broken, whole = enhance_files(run, together, cut)
    assert {path.parent.name for path in seen[0]} == {"out", "rest"}  # its parts were begun
    assert isinstance(broken, AudiovaeError)
    assert "c.wav: is truncated" in str(broken)
    assert isinstance(whole, Enhanced)
    np.testing.assert_allclose(
        soundfile.read(tmp_path / "out" / "a.wav")[0], soundfile.read(tmp_path / "alone.wav")[0], atol=1e-4
    )
    assert [path.name for folder in ("out", "rest") for path in (tmp_path / folder).iterdir()] == ["a.wav", "a.wav"]


@pytest.mark.usefixtures("short_blocks")
def test_an_interrupt_leaves_no_half_file(prior: AudioVAE, tmp_path: Path, sounds: list[Path]) -> None:
    def interrupt(seconds: float) -> None:
        assert len(left_over(tmp_path)) == 4
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance_files(
            enhancer(prior, "fast"),
            [NoisyFile(sounds[i], tmp_path / f"{i}.wav", tmp_path / f"{i}r.wav") for i in (0, 2)],
            interrupt,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


class Sociable(Separator):
    """Its results tell how many recordings ran together, as the last bits of a real one may."""

    def __call__(self, spectrograms: Any, *rest: Any) -> Any:
        share = 1 / (1 + len(spectrograms))
        return [replace(found, images=share * found.images) for found in super().__call__(spectrograms, *rest)]


@pytest.mark.usefixtures("short_blocks")
def test_what_runs_along_writes_nothing(prior: AudioVAE, tmp_path: Path, sounds: list[Path]) -> None:
    """And makes those beside it the same to the last bit as if it wrote."""
    usual = enhancer(prior, "fast")
    run = Sociable(usual.front, usual.sources, usual.starts, settings=EMSettings(1))
    made = []
    for target in (tmp_path / "a.wav", None):
        done = enhance_files(
            run, [NoisyFile(sounds[0], target, tmp_path / "rest.wav"), NoisyFile(sounds[2], tmp_path / "c.wav")]
        )
        assert (done[0] is None) == (target is None)
        made.append((tmp_path / "c.wav").read_bytes())
        (tmp_path / "c.wav").unlink()
        assert (tmp_path / "rest.wav").exists() == (target is not None)
        (tmp_path / "rest.wav").unlink(missing_ok=True)
    assert made[0] == made[1]
    enhance_file(run, sounds[2], tmp_path / "c.wav")
    assert (tmp_path / "c.wav").read_bytes() != made[0]


def test_groups_are_of_about_one_length_and_follow_from_the_files_alone(tmp_path: Path) -> None:
    seconds = {"a": 0.2, "b": 0.9, "c": 0.2, "d": 0.5, "e": 0.1}
    sources = [stored(tmp_path / f"{name}.wav", np.zeros(round(length * RATE))) for name, length in seconds.items()]
    sources[4] = stored(tmp_path / "e.wav", np.zeros(8000), 44100)  # 0.18 s, though more samples than a
    sources.append(tmp_path / "missing.wav")
    expected = [["b", "d"], ["a", "c"], ["e", "missing"]]
    for order in (sources, sources[::-1]):
        assert [[order[i].stem for i in group] for group in groups_by_length(order, 2)] == expected
    assert [len(group) for group in groups_by_length(sources, 4)] == [4, 2]
    assert groups_by_length(sources, 1) == [[i] for i in range(6)]


# ---------------------------------------------------------------------------------------------------------------------
# Long files


def test_no_block_is_longer_than_two(
    prior: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sounds: list[Path]
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 40)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 10)
    long = stored(tmp_path / "long.wav", noisy(20))
    lengths: list[list[int]] = []

    class Spy(Separator):
        def __call__(self, spectrograms: Any, *rest: Any) -> Any:
            lengths.append([len(x) for x in spectrograms])
            return super().__call__(spectrograms, *rest)

    usual = enhancer(prior, "fast")
    run = Spy(usual.front, usual.sources, usual.starts, settings=EMSettings(1))
    enhance_files(run, [NoisyFile(path, tmp_path / "out" / path.name) for path in (sounds[0], long)])
    assert max(max(of_call) for of_call in lengths) < 80
    assert [len(of_call) for of_call in lengths[:4]] == [2, 2, 1, 1]  # a.wav has 95 frames
    assert len(lengths) == 1 + (1251 - 80) // 30 + 1


MEASURE = """
import resource, sys
from audiovae import AudioVAE
from audiovae.separation import enhancer
from audiovae.separation.files import NoisyFile, enhance_files
from dataclasses import replace
import torch
torch.set_num_threads(1)
run = enhancer(AudioVAE.from_pretrained("model"), "fast", mixed_precision=False)
run.settings = replace(run.settings, n_iterations=1)
(done,) = enhance_files(run, [NoisyFile(sys.argv[1], "out.wav", "rest.wav")])
assert done.speech.peak > 0, done
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_follow_from_the_length_of_a_file(tmp_path: Path, model_folder: Path) -> None:
    piece = noisy(30)
    peaks_mb = []
    for minutes in (3, 10):  # of fewer the first blocks are not yet all that is held
        source = stored(tmp_path / "in.wav", np.tile(piece, (2 * minutes, 1)))
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(source)], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks_mb.append(int(done.stdout))
    # Seven minutes of the spectrogram alone are 108 MB; the allocator's own spread over runs is 50.
    assert peaks_mb[1] < peaks_mb[0] + 80, peaks_mb


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, sounds: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, and `in` with five sounds, one of them deeper."""
    (tmp_path / "in" / "deep").mkdir()
    sounds[4].rename(tmp_path / "in" / "deep" / "e.wav")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMON = "--model model --method fast --noise nmf --precision 32-true"
NAMES = ["a.wav", "b.wav", "c.wav", "d.wav", "deep/e.wav"]


def audiovae(command: str) -> int:
    try:
        return main(shlex.split(f"enhance {command} {COMMON}"))
    except SystemExit as leave:
        return int(leave.code or 0)


def contents(*folders: str) -> dict[str, bytes]:
    found = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return {path.as_posix(): path.read_bytes() for path in found}


def sound(folder: str) -> dict[str, NDArray[np.float64]]:
    return {name: soundfile.read(Path(folder, name))[0] for name in NAMES}


@pytest.mark.usefixtures("short_blocks", "here")
def test_a_batch_of_any_size_makes_the_same_and_tells_it_in_the_order_of_the_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sizes = {}, []
    alone = Separator.__call__

    def spy(self: Separator, spectrograms: Any, *rest: Any) -> Any:
        sizes.append(len(spectrograms))
        return alone(self, spectrograms, *rest)

    monkeypatch.setattr(Separator, "__call__", spy)
    for options, largest in (("", 1), ("--batch 1", 1), ("--batch 3", 3), ("--batch 9", 5)):
        sizes.clear()
        assert audiovae(f"in -o out --residual rest --overwrite --json --quiet {options}") == 0
        assert max(sizes) == largest
        rows = json.loads(capsys.readouterr().out)
        assert [row["file"] for row in rows] == [f"in/{name}" for name in NAMES]
        assert [row["output"] for row in rows] == [f"out/{name}" for name in NAMES]
        made[options] = {**{f"out {name}": wave for name, wave in sound("out").items()}, **sound("rest")}
    for name, wave in made[""].items():
        np.testing.assert_array_equal(made["--batch 1"][name], wave)
        for options in ("--batch 3", "--batch 9"):
            np.testing.assert_allclose(made[options][name], wave, atol=1e-4)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_one_broken_file_of_a_batch_is_told_and_the_others_are_done(
    capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    os.truncate("in/c.wav", 1000)
    assert audiovae(f"in -o out --json --quiet --batch {batch}") == 1
    output = capsys.readouterr()
    assert output.err.startswith("audiovae: in/c.wav: is truncated")
    assert len(output.err.splitlines()) == 1
    rows = json.loads(output.out)
    assert [row["file"] for row in rows] == [f"in/{name}" for name in NAMES]
    assert [row["file"] for row in rows if "error" in row] == ["in/c.wav"]
    assert contents("out").keys() == {f"out/{name}" for name in NAMES if name != "c.wav"}


@pytest.mark.usefixtures("here")
def test_an_existing_output_points_to_resume_which_makes_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/c.wav").write_text("precious")
    assert audiovae("in -o out --quiet --batch 2") == 1
    assert (
        capsys.readouterr().err
        == "audiovae: out/c.wav: exists already; --overwrite replaces it, --resume makes only what is missing\n"
    )
    first = contents("out")
    assert len(first) == 5
    Path("out/a.wav").unlink()
    assert audiovae("in -o out --quiet --json --batch 2 --resume") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("skipped", False) for row in rows] == [False, True, True, True, True]
    assert contents("out") == first
    assert first["out/c.wav"] == b"precious"


@pytest.mark.usefixtures("here")
def test_what_a_resumed_run_cannot_keep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("in -o out --resume --overwrite") == 2
    assert "--resume keeps what --overwrite replaces" in capsys.readouterr().err
    assert not Path("out").exists()
    assert audiovae("in/a.wav -o out.wav --quiet") == 0
    assert audiovae("in/a.wav -o out.wav --residual rest.wav --resume") == 2
    assert "out.wav: exists already, but rest.wav does not; --overwrite makes both" in capsys.readouterr().err
    assert not Path("rest.wav").exists()
    Path("out.wav").unlink()
    Path("rest.wav").write_text("left behind by a run that was stopped between the two")
    assert audiovae("in/a.wav -o out.wav --residual rest.wav --resume --quiet") == 0
    assert audiovae("in/a.wav -o out2.wav --residual rest2.wav --quiet") == 0
    assert Path("rest.wav").read_bytes() == Path("rest2.wav").read_bytes()


@pytest.mark.usefixtures("here")
def test_a_page_on_each_file_is_made_where_it_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("audiovae.report.enhancement")
    assert audiovae("in/a.wav -o out.wav --report page.html --quiet") == 0
    assert "<html" in Path("page.html").read_text()
    Path("pages/deep").mkdir(parents=True)
    Path("pages/b.html").write_text("kept")
    assert audiovae("'in/[b]*.wav' 'in/**/e.wav' -o out --quiet") == 0
    assert audiovae("'in/[b]*.wav' 'in/**/e.wav' -o out --report pages --quiet --json --resume") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["report"], row["skipped"]) for row in rows] == [("pages/b.html", True), ("pages/deep/e.html", True)]
    assert "<html" in Path("pages/deep/e.html").read_text()
    assert Path("pages/b.html").read_text() == "kept"
    index = Path("pages/index.html").read_text()
    assert '<a href="deep/e.html">e.wav, enhanced</a>' in index
    assert "noise model " in index
    assert "b.html" not in index  # which is none of ours
    assert audiovae("in/b.wav -o b.wav --report page.html") == 2
    assert "page.html: exists already" in capsys.readouterr().err
    assert not Path("b.wav").exists()


@pytest.mark.usefixtures("here")
def test_outputs_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ("--residual out.wav", "out.wav: would be both speech and residual; choose another --residual"),
        ("--report out.wav", "out.wav: would be both speech and report; choose another --report"),
        ("--residual a.html --report a.html", "a.html: would be both residual and report; choose another --report"),
    ):
        assert audiovae(f"in/a.wav -o out.wav {options}") == 2
        assert message in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"in", "model"}


def test_a_long_file_shows_its_seconds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(here / "long.wav", noisy(61, rate=8000), 8000)
    assert audiovae("long.wav -o out.wav") == 0
    assert "61/61 seconds" in capsys.readouterr().err
    assert audiovae("in/a.wav -o short.wav") == 0
    assert audiovae("long.wav -o again.wav --quiet") == 0
    assert "/" not in capsys.readouterr().err  # no bar, as in 1/1
    assert audiovae("in -o out") == 0
    assert "5/5 files" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Other processes

PROGRAM = """
import os, sys, time
from dataclasses import replace
from audiovae.audio import Writer
from audiovae.cli.main import main
from audiovae.separation import Separator, blocks
blocks.BLOCK_FRAMES, blocks.OVERLAP_FRAMES = 30, 10
write = Writer.write
def write_slowly(self, wave):
    write(self, wave)
    time.sleep(float(os.environ["SLOW"]))
Writer.write = write_slowly
infer = Separator.__call__
def infer_sociably(self, spectrograms, *rest):  # what runs together must be the same, or the last bits may not be
    return [replace(found, images=found.images / (1 + len(spectrograms))) for found in infer(self, spectrograms, *rest)]
Separator.__call__ = infer_sociably
if __name__ == "__main__":
    sys.exit(main())
"""


def started(here: Path, arguments: str, slow: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with blocks of half a second, each of which may take longer to write."""
    program = here / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), "enhance", *shlex.split(f"{COMMON} {arguments}")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SLOW": str(slow), **environment},
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=150)
    finally:
        process.kill()
    return process.returncode, out, err


def test_killed_it_leaves_no_half_file_and_resumed_it_ends_the_same(here: Path) -> None:
    """Within a group of four, of which the shortest are done and the longest is still being written."""
    arguments = "in --residual {0}-rest -o {0} --batch 4 --json"
    assert finished(started(here, arguments.format("whole")))[0] == 0
    whole = contents("whole", "whole-rest")
    process = started(here, arguments.format("out"), slow=0.2)
    deadline = time.monotonic() + 120
    while not Path("out/d.wav").exists() and not Path("out/deep/e.wav").exists() and not Path("out/a.wav").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL
    half = [path for path in left_over(here) if path.suffix == ".wav"]
    assert half  # it was at it
    kept = {name: content for name, content in contents("out").items() if not Path(name).name.startswith(".")}
    assert 1 <= len(kept) < 5
    for name, content in kept.items():
        assert content == whole[name.replace("out", "whole", 1)]
    status, out, err = finished(started(here, arguments.format("out") + " --resume"))
    assert status == 0, err
    assert not left_over(here)  # what the dead left is swept
    assert sum("skipped" in row for row in json.loads(out)) == len(kept)
    assert {name.replace("out", "whole", 1): content for name, content in contents("out", "out-rest").items()} == whole


@pytest.mark.usefixtures("here")
def test_devices_and_shards_make_the_bytes_and_rows_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate("in/deep/e.wav", 1000)
    told = {}
    of_shards = "--report shards-page --shard"  # pages take most of the time
    for name, options in (
        ("one", ""), ("two", "--devices 2"), ("shards", f"{of_shards} 1/2"), ("shards", f"{of_shards} 2/2"),
    ):  # fmt: skip
        begun = f"in -o {name} --residual {name}-rest --batch 2 --json"
        assert audiovae(f"{begun} {options}") in (0, 1)
        told[name] = capsys.readouterr()
    assert main(["gather", "shards", "--json"]) == 1
    told["shards"] = capsys.readouterr()
    rows = {name: json.loads(of_name.out.replace(f'"{name}', '"')) for name, of_name in told.items()}
    assert [row.pop("report", "").endswith("a.html") for row in rows["shards"]] == [True, False, False, False, False]
    assert [row["file"] for row in rows["one"]] == [f"in/{name}" for name in NAMES]
    assert ["error" in row for row in rows["one"]] == [False] * 4 + [True]
    assert rows["one"] == rows["two"] == rows["shards"]
    assert all(of_name.err.count("in/deep/e.wav: is truncated") == 1 for of_name in told.values())
    made = {name: contents(name, f"{name}-rest") for name in told}
    sounds = {name: [made[name][path] for path in sorted(made[name]) if path.endswith(".wav")] for name in made}
    assert len(sounds["one"]) == 8
    assert sounds["one"] == sounds["two"] == sounds["shards"]
    assert os.path.exists("shards-page/index.html")


def test_devices_that_are_not_there_are_refused_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("in -o out --devices 0") == 2
    assert "devices" in capsys.readouterr().err
    assert audiovae("in -o out --devices 2 --device cpu:0") == 2
    told = "audiovae: --device cpu:0 is a single one; with --devices give --device cpu\n"
    assert capsys.readouterr().err == told
    assert audiovae("in -o out --shard 1/2 --ray") == 2
    told = "audiovae: enhance: --ray shares the work by itself; leave --shard and --devices out\n"
    assert capsys.readouterr().err == told
    assert not Path("out").exists()
