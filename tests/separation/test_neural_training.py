"""Training of neural FCA on mixtures: the command line, interruptions, two processes, what is left. Takes 40 s."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import bank_of, dynamic_prior

from audiovae import AudioVAE, PackedCorpus, TrainingError, power, spectrogram_level
from audiovae.cli.main import main
from audiovae.corpora.mixtures import MixtureCorpus, MixtureSampler, RoomBank
from audiovae.objectives import Objective
from audiovae.separation import NeuralSeparator, build_separator
from audiovae.settings import MixtureSettings, NeuralSettings, TrainingSettings
from audiovae.training import loop
from audiovae.training.checkpoint import load_checkpoint
from audiovae.training.loop import Fitted, fit, learning_rate

SIZES = NeuralSettings(width=8, dilations=(1,), stages=2, updates=1)
SETTINGS = TrainingSettings(
    steps=6, batch_frames=64, segment_frames=32, learning_rate=0.01, validate_every=3, log_every=1, beta_cycles=2,
    beta_warmup=0.5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MIXTURE_FRAMES", 128)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bank_of(tmp_path_factory.mktemp("rooms")).folder


def mixed(packed: Path, rooms: Path) -> MixtureCorpus:
    return MixtureCorpus(PackedCorpus(packed), RoomBank(rooms), MixtureSettings(n_channels=2))


def model_of(**settings: Any) -> NeuralSeparator:
    torch.manual_seed(0)
    return build_separator(dynamic_prior(), replace(SIZES, **settings))


def run(packed: Path, rooms: Path, folder: Path, settings: TrainingSettings = SETTINGS, **options: Any) -> Fitted:
    corpus = mixed(packed, rooms)
    return fit(model_of(), corpus, corpus, folder, settings, **options)


def status(command: str) -> int:
    try:
        return main(shlex.split(command))
    except SystemExit as leave:
        return int(leave.code or 0)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "training/trace.csv")}


def losses(folder: Path) -> list[float]:
    with open(folder / "training" / "trace.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_run_that_is_interrupted_ends_as_one_that_is_not(packed: Path, rooms: Path, tmp_path: Path) -> None:
    whole = run(packed, rooms, tmp_path / "whole")
    assert whole.steps == 6

    def stop(now: Any) -> None:
        if now.step == 5:  # two steps after the last checkpoint
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(packed, rooms, tmp_path / "parts", progress=stop)
    again = run(packed, rooms, tmp_path / "parts")
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert again.elbo == whole.elbo


def test_training_raises_the_bound_and_leaves_a_separator_that_loads(packed: Path, rooms: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    corpus, bounds = mixed(packed, rooms), list[float]()
    settings = replace(
        SETTINGS, steps=24, validate_every=8, log_every=12, beta_cycles=1, beta_warmup=0.0, averaging=0.5
    )
    fit(
        model_of(train_prior=True),
        corpus,
        corpus,
        tmp_path / "model",
        settings,
        progress=lambda now: bounds.append(now.elbo) if now.elbo is not None else None,
    )
    assert bounds[-1] > bounds[0] + 10
    loaded = NeuralSeparator.from_pretrained(tmp_path / "model")
    assert loaded.settings == replace(SIZES, train_prior=True)
    board = EventAccumulator(str(tmp_path / "model" / "training"))
    board.Reload()
    assert {f"validation/{name}" for name in ("mixture", "source 1", "source 2", "noise")} <= {*board.Tags()["audio"]}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mixtures of 2 speakers at 2 microphones in 9 simulated rooms" in card
    assert "# A 16000 Hz separator\n" in card


def test_a_run_in_other_rooms_is_not_continued(packed: Path, rooms: Path, tmp_path: Path) -> None:
    run(packed, rooms, tmp_path / "model", replace(SETTINGS, steps=3))
    other = bank_of(tmp_path / "other", seed=5).folder
    with pytest.raises(TrainingError, match="holds a run on other data"):
        run(packed, other, tmp_path / "model", replace(SETTINGS, steps=3))


@pytest.mark.xdist_group("two_processes")
def test_two_processes_take_the_steps_of_one_with_both_batches(packed: Path, rooms: Path, tmp_path: Path) -> None:
    """Over gloo: the same weights as one process has that sees the batch and the noise of both at every step."""
    dynamic_prior().save_pretrained(tmp_path / "prior")
    n_steps, folder = 3, tmp_path / "model"
    command = (
        f"train {packed} -o {folder} --init {tmp_path / 'prior'} --rooms {rooms} --mixtures.n_channels 2 --devices 2 "
        "--separator.width 8 --separator.dilations [1] --separator.updates 1 --training.batch_frames 256 "
        f"--training.segment_frames 128 --training.steps {n_steps} --training.validate_every {n_steps} --quiet"
    )
    program = shutil.which("audiovae", path=str(Path(sys.executable).parent))
    assert program is not None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [program, *shlex.split(command)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    state = load_checkpoint(folder / "training")
    assert state is not None

    settings = TrainingSettings(steps=n_steps, validate_every=n_steps)
    torch.manual_seed(0)
    model = build_separator(AudioVAE.from_pretrained(tmp_path / "prior"), SIZES)
    sampler = MixtureSampler(mixed(packed, rooms), "train", model.segment_samples(128), torch.device("cpu"))
    adam = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    for step in range(n_steps):
        adam.param_groups[0]["lr"] = learning_rate(settings, step)
        adam.zero_grad()
        for rank in range(2):
            observed = model.observe(sampler.draw(2, 0, step, rank)[0])
            loop._seed(0, step, rank)
            (model.loss(observed, None, Objective(1.0))[0] / 2).backward()
        torch.nn.utils.clip_grad_norm_([w for w in model.parameters() if w.grad is not None], settings.clip_norm)
        adam.step()
    found = state["model"]
    for name, weight in model.named_parameters():
        assert torch.allclose(found[name], weight, rtol=1e-3, atol=1e-5), name


def test_the_command_line_trains_a_separator_and_says_what_is_missing(
    packed: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = (
        "--separator.width 8 --separator.dilations [1] --separator.updates 1 --mixtures.n_channels 2 "
        "--training.batch_frames 32 --training.segment_frames 32 --training.steps 2"
    )
    scratch = (
        f"--rooms {rooms} --stft.n_fft 256 --stft.hop_length 64 --vae.hidden [8] --vae.latent_dim 4 "
        f"--separator.start none --separator.encoder own --separator.train_prior true {sizes}"
    )

    def train(options: str) -> int:
        return status(f"train {packed} -o {tmp_path / 'model'} {options}")

    assert train(f"{scratch} --json --quiet") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    loaded = NeuralSeparator.from_pretrained(tmp_path / "model")
    assert loaded.prior.kind == "FrameVAE"
    assert float(loaded.prior.vae.log_power.mean.abs().max()) > 0  # calibrated on mixtures
    for options, message in (
        (f"--rooms {rooms} {sizes}", "a new prior knows nothing yet: give --init, or --separator.train_prior true"),
        ("--separator.width 8", "--separator.width is of a separator: give its --rooms too, or leave it out"),
        ("--mixtures.n_channels 2", "--mixtures.n_channels is of a separator: give its --rooms too"),
        (f"{scratch} --mixtures.n_sources 1", "--mixtures.n_sources is 1 and --separator.n_sources 2"),
        (f"--rooms {tmp_path} {sizes} --separator.train_prior true", "is no finished bank of rooms"),
        (f"{scratch} --training.free_bits 0.1 --overwrite", "free_bits is not for a separator that is learnt"),
    ):
        assert train(options) != 0, options
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_saved_separator_is_trained_on(
    packed: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = model_of(start="none", encoder="own", train_prior=True)
    begun.save_pretrained(tmp_path / "begun", "# A separator\n")
    common = (
        f"{packed} -o {tmp_path / 'again'} --init {tmp_path / 'begun'} --mixtures.n_channels 2 --quiet "
        "--training.batch_frames 32 --training.segment_frames 32 --training.steps 2 --training.learning_rate 1e-12"
    )
    assert main(shlex.split(f"train {common} --rooms {rooms}")) == 0
    again = NeuralSeparator.from_pretrained(tmp_path / "again")
    assert again.config() == begun.config()
    for name, weight in begun.state_dict().items():
        assert torch.allclose(again.state_dict()[name], weight, atol=1e-6), name
    assert "# A separator" in (tmp_path / "again" / "README.md").read_text()
    for options, message in (
        (common, "is a separator, which is learnt from mixtures: give --rooms too"),
        (f"{common} --rooms {rooms} --separator.width 9", "--separator.width 9 contradicts"),
        (f"{packed} -o {tmp_path / 'x'} --init rooms-16k-neural", "rooms-16k-neural is a separator"),
    ):
        assert status(f"train {options}") == 2, options
        assert message in " ".join(capsys.readouterr().err.split())


def test_only_what_is_learnt_moves_of_a_separator_that_was_loaded(packed: Path, rooms: Path, tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path / "begun")
    begun, model = (NeuralSeparator.from_pretrained(tmp_path / "begun") for _ in range(2))
    corpus = mixed(packed, rooms)
    fit(model, corpus, corpus, tmp_path / "again", replace(SETTINGS, steps=2, validate_every=2))
    moved = {name for name, weight in begun.state_dict().items() if not torch.equal(weight, model.state_dict()[name])}
    assert "network.stages.0.head.weight" in moved
    assert all(name.startswith("network.") for name in moved)


def test_a_separator_is_trained_in_double_precision(packed: Path, rooms: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("32-true", "64-true")}
    for precision, folder in folders.items():
        run(packed, rooms, folder, replace(SETTINGS, steps=2, validate_every=2, precision=precision))
    single, double = map(losses, folders.values())
    assert single == pytest.approx(double, rel=1e-2)


def test_other_numbers_of_sources_are_learnt_where_they_do_not_begin_alike(
    packed: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for start, encoder in (("iva", "prior"), ("none", "own")):
        model_of(start=start, encoder=encoder).save_pretrained(tmp_path / start)
    Path(tmp_path / "empty.yaml").write_text("separator:\ntraining:\n  steps: 1\n")
    common = f"train {packed} --rooms {rooms} --quiet --training.batch_frames 32 --training.segment_frames 32"
    one = "--mixtures.n_sources 1 --separator.n_sources 1 --training.steps 1"
    assert status(f"{common} -o {tmp_path / 'one'} --init {tmp_path / 'iva'} {one}") == 0
    assert NeuralSeparator.from_pretrained(tmp_path / "one").settings == replace(SIZES, n_sources=1)
    three = "--mixtures.n_sources 3 --separator.n_sources 3 --mixtures.n_channels 2"
    for options, message in (
        (f"--init {tmp_path / 'none'} {one}", "--separator.n_sources 1 contradicts"),
        (f"--init {tmp_path / 'iva'} --mixtures.n_sources 1", "--mixtures.n_sources is 1 and --separator.n_sources 2"),
        (f"--config {tmp_path / 'empty.yaml'}", "a new prior knows nothing yet"),
        ("--level peak --separator.train_prior true", "a source in a mixture has no peak to divide by"),
        (
            f"--init {tmp_path / 'iva'} {three}",
            "needs a microphone for each of 3 sources, and --mixtures.n_channels is 2",
        ),
        (f"--init {tmp_path / 'iva'} --training.precision bf16-mixed", "precision bf16-mixed is not for a separator"),
    ):
        assert status(f"{common} -o {tmp_path / 'x'} {options}") == 2, options
        assert message in " ".join(capsys.readouterr().err.split()), options


def test_a_draw_has_the_channels_that_are_asked_for(packed: Path, rooms: Path) -> None:
    model = model_of()
    sampler = MixtureSampler(mixed(packed, rooms), "train", model.segment_samples(32), torch.device("cpu"))
    observed = model.observe(sampler.draw(2, 0, 0)[0])
    assert observed.shape == (2, 32, 129, 4)  # two microphones and two starts
    each = [spectrogram_level(power(x[..., :2]).mean(-1), model.prior.stft.window, 16000) for x in observed]
    assert torch.allclose(torch.stack(each), torch.ones(2), rtol=1e-4)  # at unit level
