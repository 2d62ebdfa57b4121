"""Speech out of noise: the methods by name, and sound files whose parts sum to the whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, build_prior
from mixtures import NOISES, noisy, speech_and_noise, untrained, white
from numpy.typing import NDArray
from torch import Tensor

from audiovae import STFT, AudioVAE
from audiovae.audio import resample
from audiovae.cli.main import main
from audiovae.level import active_level
from audiovae.metrics import si_sdr
from audiovae.models import DynamicVAE
from audiovae.separation import (
    METHODS,
    Finding,
    PointEstimate,
    Separation,
    Separator,
    blocks,
    enhance_file,
    enhancer,
    methods,
)
from audiovae.settings import DynamicVAESettings, MethodName, NoiseName
from audiovae.stft import power

METHODS_TESTED = {"peem": 3.0, "fast": 1.0}  # dB that a method must gain at 5 dB

# Methods -------------------------------------------------------------------------------------------------------------


def context_prior() -> AudioVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(64, 16)
        sizes = DynamicVAESettings(latent_dim=4, width=16, dilations=(1, 2), prior_width=8, prior_dilations=(1,))
        vae = DynamicVAE(stft.n_freqs, sizes)
        vae.calibrate(power(stft(torch.randn(RATE))))
        for parameter in vae.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return AudioVAE(stft, vae, RATE).eval()


def recordings(prior: AudioVAE, *n_samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    waves = [torch.randn(n, generator=generator) * torch.linspace(0.2, 1, n) for n in n_samples]
    return [prior.stft(wave) for wave in waves]


@pytest.mark.parametrize("prior", [build_prior(), context_prior()], ids=["frame-wise", "context"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_members_and_images_sum_to_the_mixture(prior: AudioVAE, method: str) -> None:
    """Sampled methods too: random numbers belong to a recording."""
    xs = recordings(prior, 3000, 5000, 4000)
    separate = enhancer(prior, method, mixed_precision=False)
    separate.settings = replace(separate.settings, n_iterations=2)
    together = separate(xs, seeds=[5, 6, 7])
    for x, seed, one in zip(xs, [5, 6, 7], together, strict=True):
        alone = separate([x], seeds=[seed])[0]
        tolerance = 1e-4 * float(x.abs().max())
        torch.testing.assert_close(one.images, alone.images, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.images.sum(0), x, rtol=0, atol=1e-6 * float(x.abs().max()))
        torch.testing.assert_close(one.objective, alone.objective, rtol=1e-4, atol=1e-3)
        assert ((one.wiener >= 0) & (one.wiener <= 1)).all()


def test_a_seed_repeats_a_result_and_another_one_does_not() -> None:
    prior = build_prior()
    (x,) = recordings(prior, 8000)
    separate = enhancer(prior, "mcem", "nmf", mixed_precision=False)
    separate.settings = replace(separate.settings, n_iterations=2)
    first, again, other = (separate([x], seeds=[seed])[0].wiener for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_named_method_stops_when_it_is_done(frame: AudioVAE) -> None:
    (found,) = enhancer(frame, "peem", mixed_precision=False)([frame.stft(torch.full((1,), 0.5))])
    assert found.converged
    assert len(found.objective) < METHODS["peem"].n_iterations


@pytest.mark.parametrize("method", ["peem", "fast"])
def test_a_method_brings_its_own_prior(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = AudioVAE.from_pretrained

    def spy(name: Any, *rest: Any) -> AudioVAE:
        asked.append(name)
        return load(name, *rest)

    monkeypatch.setattr(AudioVAE, "from_pretrained", spy)
    stored(tmp_path / "in.wav", noisy(0.3)[:, None].numpy(), RATE, "PCM_16")
    assert main(["enhance", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--method", method]) == 0
    assert asked == [{"peem": "speech-16k-separation", "fast": "speech-16k-fast"}[method]]


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_are_refused_with_the_known_ones(prior: AudioVAE) -> None:
    with pytest.raises(ValueError, match=r"method must be one of peem, .*fast, got 'pem'"):
        enhancer(prior, "pem")
    with pytest.raises(ValueError, match="noise must be one of slow, nmf, stationary, got 'pink'"):
        enhancer(prior, noise="pink")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank and bump_frames must be at least 1, got 0 and 16"):
        enhancer(prior, rank=0)([prior.stft(white(2000))])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_by_its_name(dynamic: AudioVAE, method: str) -> None:
    x = dynamic.stft(noisy(0.3))
    results = []
    for mixed_precision in (False, True):
        separate = enhancer(dynamic, method, mixed_precision=mixed_precision)
        separate.settings = replace(separate.settings, n_iterations=4)
        results += separate([x])
    found, mixed = results
    assert (found.images.sum(0) - x).abs().max() <= 1e-6 * x.abs().max()
    assert mixed.wiener.dtype == mixed.psds.dtype == torch.float32
    assert (mixed.wiener - found.wiener).abs().mean() < 0.05


# Real speech ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> AudioVAE:
    return AudioVAE.from_pretrained("speech-16k")


def in_noise(clean: Tensor, colour: str, snr_db: float = 5.0) -> Tensor:
    spectrum = torch.fft.rfft(white(len(clean), 7))
    if colour == "pink":
        spectrum = spectrum / torch.arange(1, len(spectrum) + 1).sqrt()
    noise = torch.fft.irfft(spectrum, len(clean))
    return clean + noise * clean.square().mean().sqrt() / noise.square().mean().sqrt() * 10 ** (-snr_db / 20)


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("method", METHODS_TESTED)
def test_speech_comes_out_of_noise(shipped: AudioVAE, speech: Tensor, method: str, colour: str) -> None:
    mixture = in_noise(speech, colour)
    (found,) = enhancer(shipped, method, mixed_precision=False)([shipped.stft(mixture)])
    enhanced = shipped.stft.inverse(found.images[0], len(speech))
    before, after = (si_sdr(speech.numpy(), wave.numpy()) for wave in (mixture, enhanced))
    assert before == pytest.approx(5, abs=0.2)
    assert after - before > METHODS_TESTED[method]


GAINS_DB = {"peem": 4.0, "vem": 3.0, "mcem": 3.0, "langevin": 3.0, "mala": 3.0, "fast": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_real_speech_comes_out_of_steady_noise(speech: Tensor, method: str) -> None:
    prior = AudioVAE.from_pretrained(METHODS[method].prior)
    clean = speech[RATE : 2 * RATE]
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(3)) * clean.std() * 10 ** (-5 / 20)
    noisy = clean + noise
    result = enhancer(prior, method, mixed_precision=False)([prior.stft(noisy)])[0]
    estimate = prior.stft.inverse(result.images[0], len(clean))
    gain = si_sdr(clean.numpy(), estimate.numpy()) - si_sdr(clean.numpy(), noisy.numpy())
    assert gain > GAINS_DB[method]


# Files ---------------------------------------------------------------------------------------------------------------


class Fixed(Separator):
    """Stands for inference: gains that are known, one for each call, constant over a block."""

    def __init__(self, prior: AudioVAE, gains: list[float]) -> None:
        usual = speech_and_noise(prior, PointEstimate)
        super().__init__(usual.front, usual.sources, usual.starts)
        self.gains = gains
        self.states: list[Any] = []
        self.lengths: list[int] = []

    def __call__(
        self, mixtures: Sequence[Tensor], seeds: Any = None, levels: Any = None, states: Any = None, waves: Any = None
    ) -> list[Separation]:
        (x,) = mixtures
        gain = self.gains[min(len(self.states), len(self.gains) - 1)]
        self.states.append(states[0])
        self.lengths.append(len(x))
        state = torch.full((x.shape[1],), float(len(self.states)))
        findings = Finding(), Finding(state=state)
        return [
            Separation(
                torch.stack([gain * x, x - gain * x]), torch.ones(2, *x.shape[:2]), torch.ones(2), False, findings
            )
        ]


def stored(path: Path, wave: NDArray[np.floating], rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def two_channels(seconds: float, rate: int) -> NDArray[np.float64]:
    left, right = (0.3 * noisy(seconds, seed).numpy() for seed in range(2))
    wave = resample(np.stack([left, left + 0.2 * right]), RATE, rate)
    return wave.T.astype(np.float64)


SOUNDS: dict[str, tuple[Callable[[], NDArray[np.floating]], int, str]] = {
    "silence": (lambda: np.zeros((RATE, 1)), RATE, "PCM_16"),
    "clipped a little": (lambda: (2 * noisy(1)[:, None].numpy()).clip(-1, 1), RATE, "PCM_16"),
    "clipped": (lambda: (20 * noisy(1)[:, None].numpy()).clip(-1, 1), RATE, "PCM_16"),
    "8 kHz": (lambda: resample(0.3 * noisy(1)[None].numpy(), RATE, 8000).T, 8000, "PCM_16"),
    "48 kHz, 24 bits, stereo": (lambda: two_channels(1, 48000), 48000, "PCM_24"),
    "float": (lambda: two_channels(1, 44100), 44100, "FLOAT"),
    "a single sample": (lambda: np.full((1, 1), 0.5), RATE, "PCM_16"),
    "odd length": (lambda: 0.3 * noisy(1)[:8191, None].numpy(), 11025, "PCM_16"),
}  # fmt: skip
STEP = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 2.0**-22}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("method", ["peem", "fast"])
def test_speech_and_residual_of_a_file_are_like_it_and_sum_to_it(
    frame: AudioVAE, tmp_path: Path, name: str, method: str
) -> None:
    make, rate, subtype = SOUNDS[name]
    source = stored(tmp_path / "in.wav", make(), rate, subtype)
    done = enhance_file(enhancer(frame, method), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    given, of_source = soundfile.info(source), soundfile.read(source)[0]
    parts = []
    for path in (tmp_path / "out.wav", tmp_path / "rest.wav"):
        info = soundfile.info(path)
        parts.append(soundfile.read(path)[0])
        assert (info.samplerate, info.frames, info.channels) == (given.samplerate, given.frames, given.channels)
        assert (info.format, info.subtype) == (given.format, given.subtype)
        assert np.isfinite(parts[-1]).all()
    assert done.residual is not None
    held = (
        np.abs(parts[1]) < 1 - 2 * STEP[subtype]
    )  # elsewhere the residual itself is beyond full scale, and said to be
    assert held.all() or (name.startswith("clipped") and done.residual.clips)
    assert held.mean() > 0.97
    assert np.abs(parts[0] + parts[1] - of_source)[held].max() <= STEP[subtype] * (1 + 1e-6)
    assert 1 < len(done.objective) <= METHODS[method].n_iterations
    assert np.isfinite(done.objective).all()
    if not of_source.any():
        assert not parts[0].any()


def test_speech_and_residual_of_a_clipped_file_sum_to_it_where_the_speech_is_beyond_full_scale(
    frame: AudioVAE, tmp_path: Path
) -> None:
    """A gain of one, through the resampler: it overshoots what was clipped."""
    wave = np.sign(np.sin(2 * np.pi * 440 * np.arange(44100) / 44100))[:, None]
    source = stored(tmp_path / "in.wav", wave, 44100)
    done = enhance_file(Fixed(frame, [1.0]), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    assert done.speech.peak > 1.01
    parts = [soundfile.read(tmp_path / f"{part}.wav")[0] for part in ("out", "rest")]
    assert np.abs(sum(parts) - soundfile.read(source)[0]).max() <= 2.0**-15 * (1 + 1e-6)


def test_the_channels_share_one_gain(frame: AudioVAE, tmp_path: Path) -> None:
    """That of their mean power: of each channel's own there would be two."""
    wave = two_channels(1, RATE).astype(np.float32)
    wave[:, 1] *= 0.1
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = enhancer(frame, mixed_precision=False)
    enhance_file(run, source, tmp_path / "out.wav")
    channels = frame.stft(torch.from_numpy(wave.T.copy()))
    level = active_level(wave.T, RATE)
    (shared,) = run([power(channels).mean(0).sqrt().to(channels.dtype)], [0], [level])
    expected = frame.stft.inverse(shared.wiener * channels, len(wave)).numpy()
    found = soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T
    for i in range(2):
        assert si_sdr(expected[i], found[i]) > 40
        assert np.std(found[i]) == pytest.approx(np.std(expected[i]), rel=1e-2)
    enhance_file(
        run, stored(tmp_path / "both.wav", wave[:, [0, 0]] * [[1.0, 0.125]], RATE, "FLOAT"), tmp_path / "ratio.wav"
    )
    left, right = soundfile.read(tmp_path / "ratio.wav")[0].T
    np.testing.assert_allclose(right, 0.125 * left, atol=1e-6)
    assert left.std() > 1e-3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 20)


@pytest.mark.usefixtures("short")
def test_blocks_of_one_gain_leave_no_seam(frame: AudioVAE, tmp_path: Path) -> None:
    wave = 0.3 * noisy(4).numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = Fixed(frame, [0.3])
    enhance_file(run, source, tmp_path / "out.wav")
    assert len(run.lengths) > 3
    assert min(run.lengths) >= 60
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], 0.3 * wave, atol=1e-5)


@pytest.mark.usefixtures("short")
def test_the_gain_of_one_block_fades_into_the_next_along_a_line(frame: AudioVAE, tmp_path: Path) -> None:
    """And the state at the end of one is where the next one's begins."""
    wave = 0.3 * noisy(4).numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = Fixed(frame, [0.2, 0.8, 0.1, 0.9, 0.5])
    enhance_file(run, source, tmp_path / "out.wav")
    x = frame.stft(torch.from_numpy(wave))
    gains = torch.zeros(len(x))
    for i, n_frames in enumerate(run.lengths):
        start = 40 * i
        for t in range(n_frames):
            share = min(t / 19, 1.0) if i else 1.0
            gains[start + t] += share * (run.gains[min(i, 4)] - gains[start + t])
    assert start + n_frames == len(x)
    expected = frame.stft.inverse(gains[:, None] * x, len(wave)).numpy()
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], expected, atol=1e-5)
    assert run.states[0] is None
    for i, (speech, noise) in enumerate(run.states[1:], start=1):
        assert speech is None
        assert (noise == i).all()


def test_a_long_file_in_blocks_is_nearly_that_at_once(
    shipped: AudioVAE, speech: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = 0.5 * in_noise(speech, "white").numpy()
    source = stored(tmp_path / "in.wav", wave, RATE, "FLOAT")
    run = enhancer(shipped, mixed_precision=False)
    enhance_file(run, source, tmp_path / "whole.wav")
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 20)
    enhance_file(run, source, tmp_path / "blocks.wav")
    whole, in_blocks = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("whole", "blocks"))
    assert np.isfinite(in_blocks).all()
    assert si_sdr(whole, in_blocks) > 12
    assert si_sdr(speech.numpy(), in_blocks) > si_sdr(speech.numpy(), wave) + 3


@pytest.mark.parametrize("gain", [1.0, 0.4])
def test_what_lies_above_the_highest_frequency_of_the_prior_is_residual(
    frame: AudioVAE, tmp_path: Path, gain: float
) -> None:
    time = np.arange(48000) / 48000
    low, high = 0.3 * np.sin(2 * np.pi * 1000 * time), 0.2 * np.sin(2 * np.pi * 12000 * time)
    source = stored(tmp_path / "in.wav", low + high, 48000, "FLOAT")
    enhance_file(Fixed(frame, [gain]), source, tmp_path / "out.wav", tmp_path / "rest.wav")
    middle = slice(4800, -4800)  # the tones begin and end with a click
    out, rest = (soundfile.read(tmp_path / f"{name}.wav")[0][middle] for name in ("out", "rest"))
    np.testing.assert_allclose(out, gain * low[middle], atol=2e-3)
    np.testing.assert_allclose(rest, (1 - gain) * low[middle] + high[middle], atol=2e-3)


def test_the_seed_of_a_file_makes_its_result(frame: AudioVAE, tmp_path: Path) -> None:
    source = stored(tmp_path / "in.wav", 0.3 * noisy(0.5).numpy())
    made = []
    for seed in (1, 1, 2):
        enhance_file(enhancer(frame, "fast", "nmf"), source, tmp_path / "out.wav", seed=seed)
        made.append((tmp_path / "out.wav").read_bytes())
    assert made[0] == made[1] != made[2]


# Command line --------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model`, `in/a.wav` and `in/b.wav`."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        stored(tmp_path / "in" / f"{name}.wav", 0.3 * noisy(0.4, seed).numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def audiovae(command: str) -> int:
    try:
        return main(command.split())
    except SystemExit as leave:
        return int(leave.code or 0)


def assert_sum(*names: str) -> None:
    out, rest, given = (soundfile.read(name)[0] for name in names)
    assert np.abs(out + rest - given).max() <= 2.0**-15 * (1 + 1e-6)


def test_the_command_writes_speech_and_residual(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audiovae("enhance in -o out --residual rest --method fast --model model --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["file"], row["output"], row["residual"]) for row in rows] == [
        (f"in/{name}.wav", f"out/{name}.wav", f"rest/{name}.wav") for name in "ab"
    ]
    assert all(len(row["objective"]) == 4 for row in rows)
    for name in "ab":
        assert_sum(f"out/{name}.wav", f"rest/{name}.wav", f"in/{name}.wav")
    assert audiovae("enhance in/a.wav -o one.wav --residual two.wav --method fast --model model --quiet") == 0
    assert Path("one.wav").read_bytes() == Path("out/a.wav").read_bytes()
    assert Path("two.wav").read_bytes() == Path("rest/a.wav").read_bytes()


def test_the_options_of_the_command_are_those_of_python(here: Path, prior: AudioVAE) -> None:
    options = "--method peem --noise nmf --rank 3 --seed 4 --precision 32-true"
    assert audiovae(f"enhance in/a.wav -o cli.wav {options} --model model --quiet") == 0
    enhance_file(enhancer(prior, "peem", "nmf", 3, mixed_precision=False), "in/a.wav", "python.wav", seed=4)
    enhance_file(enhancer(prior, "peem", "nmf", 8, mixed_precision=False), "in/a.wav", "other.wav", seed=4)
    cli, python, other = (soundfile.read(f"{name}.wav")[0] for name in ("cli", "python", "other"))
    assert np.array_equal(cli, python)  # the command's file also says in its tags how it was made
    assert not np.array_equal(cli, other)


def test_every_name_of_a_method_has_its_options() -> None:
    assert tuple(METHODS) == get_args(MethodName)
    assert tuple(NOISES) == tuple(methods.NOISES) == get_args(NoiseName)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method pem", "peem"),
        ("--noise pink", "slow"),
        ("--rank 0", "rank"),
        ("--precision 16", "bf16-mixed"),
        ("--residual kept.wav", "kept.wav: exists already; --overwrite replaces it"),
        ("--residual out.wav", "out.wav"),
        ("--residual in/a.wav", "is the input itself"),
        ("--residual rest.xyz", "rest.xyz"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    Path("kept.wav").write_text("precious")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert audiovae(f"enhance in/a.wav -o out.wav --model model {options}") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1, output.err
    assert message in output.err
    if options == "--method pem":
        assert all(name in output.err for name in METHODS)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_an_existing_residual_is_replaced_where_that_is_asked_for(here: Path) -> None:
    Path("kept.wav").write_text("precious")
    assert (
        audiovae("enhance in/a.wav -o out.wav --residual kept.wav --overwrite --method fast --model model --quiet") == 0
    )
    assert_sum("out.wav", "kept.wav", "in/a.wav")


def test_the_residuals_of_several_files_go_into_a_folder_of_any_name(here: Path) -> None:
    """As their speech does."""
    assert audiovae("enhance in -o out.v1 --residual rest.v1 --method fast --model model --quiet") == 0
    for name in "ab":
        assert_sum(f"out.v1/{name}.wav", f"rest.v1/{name}.wav", f"in/{name}.wav")


def test_a_prior_that_cannot_be_used_is_refused_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained("VRNN").save_pretrained("vrnn")
    capsys.readouterr()
    assert audiovae("enhance in/a.wav -o out.wav --model vrnn") == 2
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 1
    assert "VRNN needs past clean speech" in output.err
    assert not Path("out.wav").exists()
