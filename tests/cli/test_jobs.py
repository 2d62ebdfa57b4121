"""One job over several processes, and after one that was stopped: the rows, tables and bytes of one process."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, build_prior

from audiovae import metrics
from audiovae.cli.main import main
from audiovae.locks import locked_file

FILES = ["in/a.wav", "in/b.flac", "in/c.wav", "in/deep/d.wav"]
Told = pytest.CaptureFixture[str]


def audiovae(command: str) -> int:
    """Run one command line; the exit status, also where it leaves by SystemExit."""
    try:
        return main(shlex.split(command))
    except SystemExit as leave:
        return int(leave.code or 0)


def contents(folder: str, *suffixes: str) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and path.name.endswith(suffixes or ""))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, and four sound files, of which the second is broken."""
    os.makedirs(tmp_path / "in/deep")
    for i, name in enumerate(FILES):
        soundfile.write(tmp_path / name, 0.1 * np.random.default_rng(i).standard_normal(6000 + 1000 * i), RATE)
    os.truncate(tmp_path / "in/b.flac", 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "WAVE_METRICS", {"si_sdr": metrics.METRICS["si_sdr"]})  # the others take seconds
    return tmp_path


@pytest.mark.usefixtures("here")
def test_shards_are_gathered_to_what_one_process_makes_and_prints(capsys: Told) -> None:
    encode = "encode in --model model --quiet --json -o"
    assert audiovae(f"{encode} one") == 1
    one = capsys.readouterr()
    assert audiovae(f"{encode} many --shard 2/2") == 1
    share = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in share] == ["in/b.flac", "in/deep/d.wav"]
    assert audiovae("gather many --json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == share
    assert "audiovae: missing: in/a.wav\naudiovae: missing: in/c.wav\n" in told.err
    assert "audiovae: 2 of 4 are missing; the same command with --resume does them\n" in told.err
    assert re.search(r"real-time factor [0-9.e-]+ of each process without the start$", told.err)
    Path("many/c.npz").write_bytes(b"of a process that died before it told of it")
    assert audiovae(f"{encode} many --shard 1/2 --resume") == 0
    capsys.readouterr()
    assert audiovae("gather many --json --quiet") == 1
    many = capsys.readouterr()
    assert many.out.replace('"many/', '"one/') == one.out
    assert many.err == one.err
    assert contents("many", ".npz") == contents("one")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "verb",
    ["score in --model model --samples 2", "evaluate in --model model", "evaluate --clean in --estimate in --noisy in"],
)
def test_kept_rows_go_on_where_they_stopped_and_make_the_same_table(capsys: Told, verb: str) -> None:
    assert audiovae(f"{verb} --json --quiet") == 1
    one = capsys.readouterr()
    assert audiovae(f"{verb} -o kept --json --quiet") == 1
    assert capsys.readouterr() == one
    path = Path("kept/rows.1-of-1.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rstrip(b"\n").rfind(b"\n") + 9])  # the last row is torn
    assert audiovae(f"{verb} -o kept --json --quiet") == 2
    assert "rows.1-of-1.jsonl: exists already; --resume goes on, --overwrite starts anew" in capsys.readouterr().err
    assert audiovae(f"{verb} -o kept --json --resume") == 1
    again = capsys.readouterr()
    assert again.out == one.out
    assert "1 file of 4, 2 kept that were there" in again.err
    assert [json.loads(line).get("file") for line in path.read_text().splitlines()] == [None, *FILES[::2], FILES[3]]
    assert audiovae("gather kept --json --quiet") == 1
    assert capsys.readouterr().out == one.out
    assert audiovae(f"{verb} --label digit=3 -o kept --resume") == 2
    assert "kept/job.jsonl: is of another job: other options or other files" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_folder_that_was_begun_is_finished(capsys: Told) -> None:
    for verb, suffix in (("encode", ".npz"), ("resynthesize", ".wav")):
        command = f"{verb} in/a.wav in/c.wav in/deep --model model --quiet -o"
        assert audiovae(f"{command} one") == 0
        one = contents("one", suffix)
        assert audiovae(f"{verb} in/c.wav --model model --quiet -o two/c{suffix}") == 0
        with locked_file(Path(f"two/d{suffix}")):
            pass  # of one that is at work no more
        assert audiovae(f"{command} two --json --resume") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row.get("skipped", False) for row in rows] == [False, True, False]
        assert contents("two", suffix) == one
    build_prior(seed=1).save_pretrained("other")
    assert audiovae("encode in/c.wav --model other -o two/c.npz --resume") == 2
    assert "two/c.npz: was encoded by another model; give the same, --overwrite" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_shards_of_a_corpus_are_joined_to_the_bytes_of_one(capsys: Told) -> None:
    prepare = "prepare in {} --validation 0.3 --speeds [1.25] --json --quiet"
    assert audiovae(prepare.format("one")) == 1
    one = capsys.readouterr()
    assert audiovae(prepare.format("many") + " --shard 2/2") == 1
    capsys.readouterr()
    assert audiovae("gather many") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "audiovae: missing: a.wav\n" in told.err
    assert not os.path.exists("many/samples.int16")
    assert audiovae(prepare.format("many").replace("0.3", "0.4") + " --shard 1/2") == 2
    assert "many/job.jsonl: is of another job" in capsys.readouterr().err
    assert audiovae(prepare.format("many") + " --shard 1/2 --resume") == 0
    capsys.readouterr()
    assert audiovae("train many -o trained") == 2
    told = "audiovae: many: holds shards that are not joined yet; join them with: audiovae gather many\n"
    assert capsys.readouterr().err == told
    assert audiovae("gather many --json") == 1
    gathered = capsys.readouterr()
    assert gathered.out == one.out
    assert set(one.err.splitlines()) < set(gathered.err.splitlines())
    assert re.fullmatch(r"audiovae: many: 5 files of 7, [1-9]\.\d s of sound", gathered.err.splitlines()[-1])
    assert contents("many") == contents("one")
    assert contents("one").keys() == {"index.jsonl", "samples.int16"}


@pytest.mark.usefixtures("here")
def test_a_damaged_shard_of_a_corpus_is_named(capsys: Told) -> None:
    for i in (1, 2):
        audiovae(f"prepare in many --quiet --shard {i}/2")
    samples = bytearray(Path("many/2-of-2/samples.int16").read_bytes())
    samples[1000] ^= 1
    Path("many/2-of-2/samples.int16").write_bytes(samples)
    capsys.readouterr()
    assert audiovae("gather many --quiet") == 2
    told = "audiovae: many/2-of-2/samples.int16: is damaged in deep/d.wav; prepare this shard again with --overwrite\n"
    assert capsys.readouterr().err == told
    assert not os.path.exists("many/samples.int16")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("score in --shard 3/2", "--shard: expected I/N, from 1/N to N/N, got 3/2"),
        ("score in --shard 1/2", "score: --shard, --ray and --resume need a folder for the rows; give -o FOLDER"),
        ("score in --resume", "score: --shard, --ray and --resume need a folder for the rows; give -o FOLDER"),
        ("encode in/a.wav -o a.npz --shard 1/2", "-o a.npz: rows are kept in a folder; give one"),
        ("encode in -o out --resume --overwrite", "encode: --resume keeps what --overwrite replaces; give one of them"),
        ("evaluate in -o out --shard 1/2 --report p.html", "evaluate: --report is of all files, and --shard works on"),
        ("gather in", "in: holds no job (no job.jsonl); give the folder that --shard or --ray wrote to"),
        ("score in -o out --ray", "--ray needs ray; install it with: pip install 'audiovae[ray]'"),
        ("prepare in out --resume --overwrite", "prepare: --resume keeps what --overwrite replaces; give one of them"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_does_not_go_together_is_refused(
    capsys: Told, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    model = "" if command.split()[0] in ("gather", "prepare") else " --model model"
    assert audiovae(command + model) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not os.path.exists("out/samples.int16")
