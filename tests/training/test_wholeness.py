# ruff: noqa: F811 - fixtures
"""What was interrupted goes on, and what was damaged is noticed: checkpoints, models and packed corpora."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import results, run, stop_at, undrawn, uninterrupted  # noqa: F401 - the last two are fixtures

from audiovae.corpora.packed import PackedCorpus
from audiovae.corpora.prepare import prepare
from audiovae.errors import CorpusError, Terminated, TrainingError
from audiovae.locks import LockedError, locked_folder
from audiovae.settings import PrepareSettings
from audiovae.training.checkpoint import NEWEST, PREVIOUS, load_checkpoint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 13])
def test_interrupted_at_any_step_it_leaves_a_checkpoint_of_it_and_ends_the_same(
    packed: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    from audiovae.training import loop

    at, rate = [0], loop.learning_rate

    def interrupting(settings: Any, now: int) -> float:
        at[0] = now
        if now == step:
            signal.raise_signal(number)
        return rate(settings, now)

    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(loop, "learning_rate", interrupting)
            with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
                run(packed, tmp_path / "model")
    finally:
        signal.signal(signal.SIGTERM, before)
    state = load_checkpoint(tmp_path / "model" / "training")
    assert state is not None
    assert step <= state["step"] == at[0] + 1 <= step + 2  # the step that was begun, and at most one more
    run(packed, tmp_path / "model")
    assert results(tmp_path / "model") == results(uninterrupted)


def test_a_thread_trains_without_signals(packed: Path, uninterrupted: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=run, args=(packed, tmp_path / "model"))
    thread.start()
    thread.join()
    assert results(tmp_path / "model") == results(uninterrupted)


def test_a_flipped_bit_of_a_checkpoint_is_noticed_wherever_it_is(
    packed: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    stop_at(packed, folder, 12)  # checkpoints of steps 5 and 10
    newest = folder / "training" / NEWEST
    whole = newest.read_bytes()
    assert torch.load(newest, weights_only=True)["step"] == 10  # still an archive of PyTorch's
    for place in [0, len(whole) - 1, len(whole) - 65, *random.Random(0).sample(range(len(whole)), 20)]:
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        caplog.clear()
        state = load_checkpoint(folder / "training")
        assert state is not None
        assert state["step"] == 5, f"byte {place}"
        assert "checkpoint.pt is damaged; training goes on from the one before, of step 5" in caplog.text
    run(packed, folder)
    assert results(folder) == results(uninterrupted)


def test_a_checkpoint_with_another_content_is_refused(packed: Path, tmp_path: Path) -> None:
    from audiovae.training.checkpoint import save_checkpoint

    folder = tmp_path / "model"
    stop_at(packed, folder, 12)
    state = load_checkpoint(folder / "training")
    assert state is not None
    (folder / "training" / PREVIOUS).unlink()
    for change in (
        {"step": "x"},
        {"step": 10**9},
        {"trace": ["x"]},
        {"optimizer": {}},
        {"average": state["average"][:-1]},
    ):
        save_checkpoint(folder / "training", {**state, **change})
        with pytest.raises(TrainingError, match=r"its checkpoint is not of this run .*; --overwrite starts anew"):
            run(packed, folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"settings": []}', '{"format": 3}', "[" * 100_000])
def test_a_record_of_another_shape_is_refused(packed: Path, uninterrupted: Path, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "model")
    (folder / "training" / "run.json").write_text(content)
    with pytest.raises(TrainingError, match=r"run\.json: is damaged; --overwrite starts anew"):
        run(packed, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_finished_run_whose_model_was_damaged_writes_it_again_and_says_so(
    packed: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "model")
    with caplog.at_level(logging.WARNING, "audiovae"):
        run(packed, folder)
    assert caplog.text == ""
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    run(packed, folder)
    assert "damaged: written again from the checkpoint" in caplog.text
    assert results(folder) == results(uninterrupted)
    assert path.read_bytes() == content


def test_two_runs_cannot_share_a_folder(packed: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "model"), pytest.raises(LockedError, match="has been at work on it since"):
        run(packed, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Packed corpora


def flip(path: Path, place: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])


def test_a_flipped_bit_of_a_recording_is_noticed_before_training(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    corpus = PackedCorpus(folder)
    heard = corpus.split("train")[1]
    flip(folder / "samples.int16", 2 * heard.start + 101)
    with pytest.raises(CorpusError, match=rf"samples\.int16: is damaged in {heard.id}; prepare it again"):
        run(folder, tmp_path / "model")
    others = [u for u in PackedCorpus(folder).utterances if u != heard]
    corpus.verify(others)
    with pytest.raises(CorpusError, match=heard.id):
        corpus.verify()


def test_of_a_large_corpus_what_is_drawn_is_verified(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    monkeypatch.setattr("audiovae.corpora.packed.SMALL_BYTES", 0)
    verified: set[str] = set()
    verify = PackedCorpus.verify
    monkeypatch.setattr(PackedCorpus, "verify", lambda c, us=None: verified.update(u.id for u in us) or verify(c, us))
    run(folder, tmp_path / "model")
    assert {u.id for u in PackedCorpus(folder).split("train")} <= verified
    flip(folder / "samples.int16", 2 * PackedCorpus(folder).split("train")[0].start + 11)
    with pytest.raises(CorpusError, match=r"is damaged in"):
        run(folder, tmp_path / "other")


def test_a_flipped_bit_of_an_index_is_noticed_wherever_it_is(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    for place in [0, len(whole) - 1, len(whole) - 5, *random.Random(0).sample(range(len(whole)), 60)]:
        flip(index, place)
        with pytest.raises(CorpusError, match=r"damaged|newer|too old|older"):
            PackedCorpus(folder)
        index.write_bytes(whole)
    lines = whole.splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(CorpusError, match=r"index\.jsonl: is damaged"):
        PackedCorpus(folder)


WRONG: list[tuple[str, Any]] = [
    *[("level", value) for value in (0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300, "x", None)],
    *[("scale", value) for value in (0.0, -1.0, float("nan"), float("inf"), 1e300, "x", None)],
    *[("start", value) for value in (-5, 1.5, "x", None, True)],
    *[("n_samples", value) for value in (-5, 0, 1.5, "x", None)],
    *[("split", value) for value in ("nope", None, 3)],
    *[("labels", value) for value in (None, [], "x", {"a": 3})],
    *[("id", value) for value in (None, 3, [])],
    ("speaker", None),
    ("sha256", 3),
    ("extra", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_entry_that_nothing_wrote_is_refused_though_its_digest_is_right(
    packed: Path, tmp_path: Path, name: str, value: Any
) -> None:
    from audiovae.corpora.packed import _digest_line

    folder = shutil.copytree(packed, tmp_path / "packed")
    header, first, *lines = (folder / "index.jsonl").read_text().splitlines()[:-1]
    edited = json.dumps({**json.loads(first), name: value})
    content = "".join(f"{line}\n" for line in (header, edited, *lines)).encode()
    (folder / "index.jsonl").write_bytes(content + _digest_line(content))
    with pytest.raises(CorpusError, match=r"index\.jsonl: is damaged"):
        PackedCorpus(folder)


def test_prepare_adds_nothing_to_damaged_samples(toy_corpus_folder: Path, packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    flip(folder / "samples.int16", 999)
    before = (folder / "index.jsonl").read_bytes()
    with pytest.raises(CorpusError, match=r"samples\.int16: is damaged in .*; prepare it again with --overwrite"):
        prepare(toy_corpus_folder, folder, PrepareSettings(validation=0.25))
    assert (folder / "index.jsonl").read_bytes() == before
    prepare(toy_corpus_folder, folder, PrepareSettings(validation=0.25), overwrite=True)
    assert (folder / "samples.int16").read_bytes() == (packed / "samples.int16").read_bytes()


def test_a_folder_is_prepared_by_one_process(toy_corpus_folder: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "packed"), pytest.raises(LockedError, match="has been at work on it since"):
        prepare(toy_corpus_folder, tmp_path / "packed")
    prepare(toy_corpus_folder, tmp_path / "packed")
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == ["index.jsonl", "samples.int16"]
