"""The page of an enhanced recording: its sounds, pictures and numbers are those of the separation."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, build_prior, speech_like
from numpy.typing import NDArray
from PIL import Image
from test_report import Page

import audiovae
from audiovae import AudioVAE
from audiovae.audio import resample
from audiovae.errors import AudioError, PathError
from audiovae.level import active_level
from audiovae.report import plots
from audiovae.report.enhancement import write_enhancement_report
from audiovae.report.markup import exact_players
from audiovae.separation import (
    DeepSource,
    EMSettings,
    MarkovChain,
    PointEstimate,
    Separation,
    Separator,
    SlowBands,
    Stationary,
    blocks,
    files,
    first_block,
    quiet_start,
)
from audiovae.stft import power

QUANTUM = 2.0**-15  # of the sounds on the page
SAMPLED = partial(MarkovChain, n_burn=3, n_keep=8)


def enhancer_of(prior: AudioVAE, e_step: Any = PointEstimate, noise: Any = SlowBands, **settings: Any) -> Separator:
    return Separator(prior.front, [DeepSource.of(prior, e_step), noise], [quiet_start], settings=EMSettings(**settings))


@pytest.fixture(scope="module")
def alive() -> AudioVAE:
    """A prior whose spectra depend on its latents, as in no untrained one."""
    prior, generator = build_prior(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return prior


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time: none, for tests of the rest."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "")


def noisy(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    clean = speech_like(seconds, 120, rate=rate)
    return clean + 0.01 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)


@dataclass(frozen=True)
class Written:
    """A page, and what it must be the page of."""

    page: Page
    wave: NDArray[np.float32]
    level: float
    separation: Separation
    sounds: list[NDArray[np.float32]]

    @classmethod
    def of(cls, folder: Path, enhancer: Separator, wave: NDArray[np.float32], seed: int = 0) -> Written:
        """Writes noisy.wav (at the prior's rate) and its page.html, and separates the wave once more."""
        soundfile.write(folder / "noisy.wav", wave, RATE, "FLOAT")
        write_enhancement_report(folder / "page.html", first_block(enhancer, folder / "noisy.wav", seed), enhancer)
        level = active_level(wave, RATE)
        (separation,) = enhancer([enhancer.front.stft(torch.from_numpy(wave / level))], [seed], [1.0])
        speech = level * enhancer.front.stft.inverse(separation.images[0], len(wave)).numpy()
        return cls(Page(folder / "page.html"), wave, level, separation, [wave, speech, wave - speech])


@pytest.fixture(scope="module")
def written(alive: AudioVAE, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written.of(
        tmp_path_factory.mktemp("enhanced"), enhancer_of(alive, SAMPLED, SlowBands, n_iterations=3), noisy(1.5), seed=5
    )


def heard(page: Page, expected_rate: int = RATE) -> list[NDArray[np.float64]]:
    sounds = [soundfile.read(io.BytesIO(content)) for content in page.content("audio")]
    assert all(rate == expected_rate for _, rate in sounds)
    return [wave for wave, _ in sounds]


def numbers(page: Page) -> dict[str, str]:
    """The table's rows by name."""
    begin = page.text.index("duration")
    end = next(i for i in range(begin, len(page.text)) if page.text[i].startswith("Made by"))
    cells = [text for text in page.text[begin:end] if text.strip()]
    return dict(zip(cells[::2], cells[1::2], strict=True))


# Sound ---------------------------------------------------------------------------------------------------------------


def test_the_sounds_are_noisy_enhanced_and_residual_with_one_gain(written: Written) -> None:
    sounds = heard(written.page)
    gain = 0.05 / np.sqrt(np.mean(written.wave.astype(float) ** 2))
    for sound, expected in zip(sounds, written.sounds, strict=True):
        assert np.abs(sound - gain * expected).max() <= 1.01 * QUANTUM
        assert np.sqrt(np.mean(sound**2)) > 20 * QUANTUM  # so that it matters which is which
    labels = [attributes["aria-label"] for tag, attributes in written.page.tags if tag == "audio"]
    assert labels == ["noisy", "enhanced", "residual"]


def test_enhanced_and_residual_sum_to_noisy(written: Written) -> None:
    whole, speech, rest = heard(written.page)
    assert np.abs(speech + rest - whole).max() <= 2 * QUANTUM


def test_no_sound_is_cut_though_one_of_them_peaks_above_the_first() -> None:
    first = np.full(1000, 0.1, np.float32)
    second = np.where(np.arange(1000) == 500, 30.0, 0.1).astype(np.float32)
    markup = exact_players({"first": first, "second": second}, RATE)
    sources = re.findall(r'src="data:audio/flac;base64,([^"]*)"', "".join(markup.values()))
    a, b = (soundfile.read(io.BytesIO(base64.b64decode(source)))[0] for source in sources)
    assert b.max() == pytest.approx(0.99, abs=QUANTUM)
    assert a[0] == b[0] == pytest.approx(0.99 * 0.1 / 30, abs=QUANTUM)


# Numbers -------------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_separation(written: Written) -> None:
    shown, separation = numbers(written.page), written.separation
    (speech, _) = separation.sources
    assert speech.acceptance is not None
    assert speech.effective_samples is not None
    energies = [np.square(sound, dtype=float).sum() for sound in written.sounds]
    assert shown["duration"] == "1.50 s"
    assert shown["level of the active frames"] == f"{20 * math.log10(written.level):.1f} dB re full scale"
    assert shown["mean power taken away"] == f"{10 * math.log10(energies[0] / energies[1]):.1f} dB"
    assert energies[0] > 1.1 * energies[1]  # there is something to say
    assert shown["iterations"] == "3 of at most 3"
    assert shown["converged"] == "no"
    assert float(shown["acceptance rate of the last E-step"]) == pytest.approx(speech.acceptance, abs=5e-3)
    assert float(shown["effective sample size of the last E-step"]) == pytest.approx(speech.effective_samples, abs=5e-3)


@pytest.mark.usefixtures("unpainted")
def test_a_point_estimate_that_converges_says_so_and_nothing_of_samples(alive: AudioVAE, tmp_path: Path) -> None:
    found = Written.of(tmp_path, enhancer_of(alive, PointEstimate, n_iterations=9, tolerance=1e6), noisy(0.5))
    shown = numbers(found.page)
    assert found.separation.converged
    assert shown["iterations"] == "2 of at most 9"
    assert shown["converged"] == "yes"
    assert not [name for name in shown if "E-step" in name]


@pytest.mark.usefixtures("unpainted")
def test_time_is_that_of_the_inference_and_its_ratio_to_the_duration(
    alive: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    class Slow(PointEstimate):
        def draws(self, energy: Any) -> Any:
            now[0] += 1.5
            return super().draws(energy)

    monkeypatch.setattr(files, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    soundfile.write(tmp_path / "a.wav", noisy(0.5), RATE)
    slow = enhancer_of(alive, Slow, n_iterations=2)
    write_enhancement_report(tmp_path / "r.html", first_block(slow, tmp_path / "a.wav"), slow)
    shown = numbers(Page(tmp_path / "r.html"))
    assert shown["time of the inference"] == "3.00 s"
    assert shown["real-time factor"] == "6.00"


# Pictures ------------------------------------------------------------------------------------------------------------


def test_the_page_has_nine_pictures_and_needs_nothing_but_itself(written: Written) -> None:
    assert [tag for tag, _ in written.page.tags].count("svg") == 9
    pictures = [Image.open(io.BytesIO(content)) for content in written.page.content("image")]
    assert [picture.format for picture in pictures] == ["WEBP"] * 6
    for picture in pictures:
        picture.load()
    linked = [
        str(value)
        for _, attributes in written.page.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert sum(link.startswith("data:") for link in linked) == 9
    assert all(link.startswith(("data:", "#")) for link in linked)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is drawn from here on."""
    drawn: list[Any] = []
    save = plots._svg
    monkeypatch.setattr(plots, "_svg", lambda figure: (drawn.append(figure), save(figure))[1])
    return drawn


def test_the_pictures_show_the_separation(alive: AudioVAE, tmp_path: Path, figures: list[Any]) -> None:
    found = Written.of(tmp_path, enhancer_of(alive, PointEstimate, n_iterations=3), noisy(0.5))
    separation, mixture = found.separation, found.separation.images.sum(0)
    *five, wiener, shown_activity, shown_gain, trace = (figure.axes[0] for figure in figures)
    expected = [
        power(mixture),
        power(separation.images[0]),
        power(separation.images[1]),
        separation.psds[0],
        separation.psds[1],
    ]
    loudest = max(float(values.max()) for values in expected)
    for axis, values in zip(five, expected, strict=True):
        (drawn,) = axis.images
        assert (
            np.abs(
                drawn.get_array() - 10 * np.log10(np.maximum(values.squeeze(-1).double().numpy() / loudest, 1e-8)).T
            ).max()
            < 1e-2
        )
        assert drawn.get_clim() == (-80, 0)  # one scale
    assert np.allclose(wiener.images[0].get_array(), separation.wiener.squeeze(-1).numpy().T, atol=1e-4)
    assert wiener.images[0].get_clim() == (0, 1)
    activity = separation.psds[0].sum(-1) / separation.psds.sum((0, -1))
    assert activity.std() > 0.01
    for axis, curve in ((shown_activity, activity), (shown_gain, torch.zeros(len(activity)))):
        times, drawn = axis.lines[0].get_data()
        assert np.allclose(drawn, curve.numpy(), atol=1e-4)
        assert np.allclose(times, np.arange(len(activity)) * 256 / RATE)  # where the windows have their middles
        assert axis.get_xlim() == five[0].get_xlim() == pytest.approx((0, (len(activity) - 1) * 256 / RATE))
    assert five[0].images[0].get_extent()[:2] == pytest.approx((-128 / RATE, (len(activity) - 0.5) * 256 / RATE))
    for axis in (*five, wiener, shown_activity, shown_gain):
        assert axis.get_xlabel() == "time (s)"
    iterations, values = trace.lines[0].get_data()
    assert list(iterations) == [1, 2, 3]
    assert np.allclose(values, separation.objective.numpy())
    assert "lower is better; stopped at the last of 3 iterations" in found.page.text


def test_a_gain_is_drawn_in_decibels(alive: AudioVAE, tmp_path: Path, figures: list[Any]) -> None:
    soundfile.write(tmp_path / "noisy.wav", noisy(0.1), RATE)
    quick = enhancer_of(alive, PointEstimate, Stationary, n_iterations=1)
    first = first_block(quick, tmp_path / "noisy.wav")
    n_frames = len(first.spectrogram)
    gain = torch.logspace(-3, 2, n_frames)
    source = replace(first.separation.sources[0], gain=gain)
    separation = replace(first.separation, sources=(source, *first.separation.sources[1:]))
    write_enhancement_report(tmp_path / "r.html", replace(first, separation=separation), quick)
    axis = figures[7].axes[0]
    assert axis.get_ylabel() == "gain (dB)"
    assert np.allclose(axis.lines[0].get_ydata(), np.linspace(-30, 20, n_frames), atol=1e-3)
    low, high = axis.get_ylim()
    assert low < -30 < 20 < high


def test_what_made_it_is_named_with_the_version(alive: AudioVAE, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noisy.wav", noisy(0.1), RATE)
    quick = enhancer_of(alive, PointEstimate, Stationary, n_iterations=1)
    made = {"method": "peem", "prior": "my <prior>", "noise model": "slow, rank 8"}
    write_enhancement_report(tmp_path / "r.html", first_block(quick, tmp_path / "noisy.wav"), quick, made=made)
    text = " ".join(Page(tmp_path / "r.html").text)
    assert "Method peem; prior my <prior>; noise model slow, rank 8." in text
    assert f"Made by audiovae {audiovae.__version__}." in text


# Files ---------------------------------------------------------------------------------------------------------------


def write(folder: Path, prior: AudioVAE, wave: NDArray[Any], rate: int) -> tuple[Page, str]:
    soundfile.write(folder / "a.wav", wave, rate, "FLOAT")
    quick = enhancer_of(prior, PointEstimate, Stationary, n_iterations=2)
    write_enhancement_report(folder / "r.html", first_block(quick, folder / "a.wav"), quick)
    page = Page(folder / "r.html")
    return page, " ".join(page.text)


@pytest.mark.usefixtures("unpainted")
def test_two_channels_are_heard_and_named_at_the_rate_of_the_prior(alive: AudioVAE, tmp_path: Path) -> None:
    rate = 8000
    first = noisy(1.0, rate)
    page, text = write(tmp_path, alive, np.stack([first, np.flip(first)], axis=1), rate)
    sound = heard(page)[0]
    assert sound.shape == (RATE, 2)
    for channel, expected in zip(sound.T, (first, np.flip(first)), strict=True):
        assert np.corrcoef(channel, resample(expected.copy(), rate, RATE))[0, 1] > 0.9999
    assert "Its 2 channels share one gain" in text
    assert numbers(page)["channels"] == "2, 2 heard"
    assert f"rate of 16000 Hz; the file has {rate} Hz" in text


@pytest.mark.parametrize("rate", [44100, 48000])
def test_a_file_of_a_higher_rate_is_heard_and_shown_whole(
    alive: AudioVAE, tmp_path: Path, rate: int, figures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = noisy(3.0, rate)
    page, text = write(tmp_path, alive, wave, rate)
    files.enhance_file(
        enhancer_of(alive, PointEstimate, Stationary, n_iterations=2), tmp_path / "a.wav", tmp_path / "o.wav"
    )
    sounds = heard(page, rate)
    gain = 0.05 / np.sqrt(np.mean(wave.astype(float) ** 2))
    for sound, expected in zip(sounds, (wave, soundfile.read(tmp_path / "o.wav")[0]), strict=False):
        assert np.abs(sound - gain * expected).max() <= 4 * QUANTUM
    assert np.abs(sounds[1] + sounds[2] - sounds[0]).max() <= 2 * QUANTUM
    assert f"spectrograms have its rate of {rate} Hz; the model's variances reach 8000 Hz" in text
    highest = [figure.axes[0].get_ylim()[1] for figure in figures[:6]]
    assert highest == pytest.approx([rate / 2000] * 3 + [8.0] * 3)

    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 20)
    page, text = write(tmp_path, alive, wave, rate)
    sounds = heard(page, rate)
    assert 0.85 * rate < len(sounds[0]) == len(sounds[1]) <= 0.944 * rate + 1
    assert np.corrcoef(sounds[0], wave[: len(sounds[0])])[0, 1] > 0.9999
    assert "Its first 0.944 s of 3.00 s are shown" in text


@pytest.mark.usefixtures("unpainted")
def test_of_many_channels_two_are_heard(alive: AudioVAE, tmp_path: Path) -> None:
    page, _ = write(tmp_path, alive, noisy(0.3)[:, None] * np.array([1.0, 0.5, 2.0]), RATE)
    assert all(sound.shape[1] == 2 for sound in heard(page))
    assert numbers(page)["channels"] == "3, 2 heard"


def test_a_plain_short_file_is_shown_without_remarks(written: Written) -> None:
    assert "Only" not in " ".join(written.page.text)
    assert "Shown at" not in " ".join(written.page.text)


@pytest.mark.usefixtures("unpainted")
def test_of_a_long_file_the_beginning_is_shown(
    alive: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was inferred when the file was enhanced, not once more by itself."""
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 60)
    monkeypatch.setattr(blocks, "OVERLAP_FRAMES", 20)
    wave = noisy(3.0)
    soundfile.write(tmp_path / "a.wav", wave, RATE, "FLOAT")
    quick = enhancer_of(alive, n_iterations=2)
    (done,) = files.enhance_files(quick, [files.NoisyFile(tmp_path / "a.wav", tmp_path / "o.wav", keep_first=True)])
    assert isinstance(done, files.Enhanced)
    assert done.first is not None
    write_enhancement_report(tmp_path / "r.html", done.first, quick)
    page = Page(tmp_path / "r.html")
    noisy_sound, enhanced, _ = heard(page)
    n_samples = 59 * 256
    assert len(noisy_sound) == n_samples
    assert np.corrcoef(noisy_sound, wave[:n_samples])[0, 1] > 0.9999
    written = soundfile.read(tmp_path / "o.wav")[0]
    unfaded = slice(0, 35 * 256)
    assert np.corrcoef(enhanced[unfaded], written[unfaded])[0, 1] > 0.9999
    assert "Its first 0.944 s of 3.00 s are shown" in " ".join(page.text)
    again = first_block(quick, tmp_path / "a.wav")
    assert torch.allclose(again.separation.images, done.first.separation.images, atol=1e-4)


def test_silence_has_a_page(alive: AudioVAE, tmp_path: Path) -> None:
    page, text = write(tmp_path, alive, np.zeros(RATE), RATE)
    assert all((sound == 0).all() and len(sound) == RATE for sound in heard(page))
    assert (
        numbers(page)["level of the active frames"] == numbers(page)["mean power taken away"] == "none: digital silence"
    )
    assert not re.search(r"\b(nan|inf)\b", text)
    assert [tag for tag, _ in page.tags].count("svg") == 9


@pytest.mark.parametrize(
    "wave", [np.full(1, 0.5), np.full(4000, 0.3), 1e-7 * noisy(0.3)], ids=["one sample", "constant", "faint"]
)
def test_odd_recordings_have_a_page(alive: AudioVAE, tmp_path: Path, wave: NDArray[Any]) -> None:
    page, text = write(tmp_path, alive, wave, RATE)
    whole, speech, rest = heard(page)
    assert 0 < np.abs(whole).max() < 1
    assert np.abs(speech + rest - whole).max() <= 2 * QUANTUM
    assert not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.usefixtures("unpainted")
def test_an_odd_name_is_escaped_and_a_title_replaces_it(alive: AudioVAE, tmp_path: Path) -> None:
    source = tmp_path / "a <b>&\"quoted\" 'n' ü.wav"
    soundfile.write(source, noisy(0.2), RATE)
    quick = enhancer_of(alive, PointEstimate, n_iterations=1)
    first = first_block(quick, source)
    write_enhancement_report(tmp_path / "r.html", first, quick)
    page = Page(tmp_path / "r.html")
    assert page.text.count(f"{source.name}, enhanced") == 2  # title and heading
    assert f"{source}." in page.text
    assert "b" not in {tag for tag, _ in page.tags}
    write_enhancement_report(tmp_path / "r.html", first, quick, title="One < two")
    assert Page(tmp_path / "r.html").text.count("One < two") == 2


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("target", ["file.txt/report.html", "folder"])
def test_a_page_that_cannot_be_written_is_named(alive: AudioVAE, tmp_path: Path, target: str) -> None:
    soundfile.write(tmp_path / "a.wav", noisy(0.2), RATE)
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    quick = enhancer_of(alive, PointEstimate, n_iterations=1)
    with pytest.raises(PathError, match=rf"{target}: cannot be written"):
        write_enhancement_report(tmp_path / target, first_block(quick, tmp_path / "a.wav"), quick)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_source_is_named(alive: AudioVAE, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        first_block(enhancer_of(alive, PointEstimate), tmp_path / "none.wav")
