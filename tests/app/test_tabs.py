"""What the tabs of the page compute, without a page."""

from __future__ import annotations

import itertools
import shlex
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiovae import AudioVAE, enhance
from audiovae.app import compare, denoise, inside, live, separate, sounds
from audiovae.app.sounds import Sound
from audiovae.audio import Wave, read, resample
from audiovae.cli import enhance as verb
from audiovae.cli.main import Parser
from audiovae.errors import AudiovaeError
from audiovae.objectives import kl_per_dimension
from audiovae.separation import enhance_file, enhancer, stream
from audiovae.stft import power

RATE = 16000
MODELS = Path(__file__).parents[1] / "data" / "models"


@pytest.fixture(scope="module")
def prior() -> AudioVAE:
    return sounds.load_prior("speech-16k-fast")


@pytest.fixture(scope="module")
def spoken() -> Wave:
    """An example, `[1, sample]`."""
    return read(denoise.EXAMPLES / "speech-in-hum.ogg")[0]


def sound(wave: Wave, rate: int = RATE) -> Sound:
    return Sound(wave, rate, "a.wav")


# Sounds


def test_three_examples_are_short_and_small() -> None:
    examples = sorted(denoise.EXAMPLES.glob("*.ogg"))
    assert [path.stem for path in examples] == ["speech-in-babble", "speech-in-hum", "speech-in-rain"]
    assert sum(path.stat().st_size for path in examples) < 200_000
    for path in examples:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (RATE, 1)
        assert 3 <= info.duration <= 4


@pytest.mark.parametrize("rate", [8000, 48000])
def test_a_sound_goes_out_as_it_came_in(tmp_path: Path, rate: int) -> None:
    wave = 7 * np.random.default_rng(0).standard_normal((2, 999)).astype(np.float32)
    path = sounds.write_sound(tmp_path, "loud one", wave, rate)
    again = sounds.read_sound(path)
    assert (again.name, again.sample_rate, soundfile.info(path).subtype) == ("loud one.wav", rate, "FLOAT")
    np.testing.assert_array_equal(again.wave, wave)


def broken(path: Path, what: str) -> Path:
    path = path / f"{what}.wav"
    wave = np.zeros(RATE, np.float32)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    if what == "text":
        path.write_text("no sound at all")
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "nan":
        soundfile.write(path, np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    elif what == "long":
        soundfile.write(path, np.zeros(RATE * 2), RATE)
    elif what == "large":
        with path.open("r+b") as file:  # its end is a hole
            file.truncate(sounds.LARGEST_MEGABYTES * 10**6 + 1)
    elif what == "wide":
        soundfile.write(path, np.zeros((9, 33)), RATE)
    return path


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("text", "text.wav: is not a sound file, or a damaged one; restore it, or convert it to WAV or FLAC"),
        ("empty", "empty.wav: is empty (0 bytes); restore it or leave it out"),
        ("truncated", "truncated.wav: is truncated: it ends before its header says; restore the whole file"),
        ("nan", "nan.wav: holds samples that are NaN or infinite; repair it or leave it out"),
        ("long", "long.wav: lasts 2.0 s, and 1.5 s are taken here; the command line takes any length"),
        ("large", "large.wav: is larger than 200 MB; the command line takes any size"),
        ("wide", "wide.wav: has 33 channels, and 32 are taken here"),
    ],
)
def test_what_cannot_be_taken_is_told_by_its_name_alone(tmp_path: Path, what: str, line: str) -> None:
    with pytest.raises(AudiovaeError) as told:
        sounds.read_sound(broken(tmp_path, what), longest_seconds=1.5)
    assert str(told.value) == line


def test_a_sound_is_asked_for() -> None:
    with pytest.raises(AudiovaeError, match="no sound yet: record one, drop a file, or take an example"):
        sounds.read_sound(None)


def test_pictures_of_long_sounds_have_no_more_columns_than_a_screen() -> None:
    values = torch.arange(2500.0).unsqueeze(1)
    together = sounds._together(values, 3)
    assert len(together) == 834
    torch.testing.assert_close(together[:2, 0], torch.tensor([1.0, 4.0]))
    assert together[-1] == 2499
    assert all("<svg" in picture for picture in sounds.pictures({"a": values, "b": values}, 0.016, RATE).values())


def test_what_works_on_something_ends_with_the_page(
    monkeypatch: pytest.MonkeyPatch, spoken: Wave, prior: AudioVAE
) -> None:
    shown: list[tuple[float, str]] = []
    monkeypatch.setattr(sounds, "ENDED", threading.Event())

    def progress(done: float, what: str) -> None:
        shown.append((done, what))
        sounds.ENDED.set()

    with pytest.raises(AudiovaeError, match="the page has ended"):
        denoise.speech_of(spoken, RATE, "fast", prior, sounds.told_by(progress, "denoising"))
    assert shown == [(pytest.approx(0.2), "denoising")]


def test_what_is_gone_is_told() -> None:
    assert sounds.still_there("found") == "found"
    with pytest.raises(AudiovaeError, match="what was found an hour ago is gone; press the button again"):
        sounds.still_there(None)


# Denoise


def test_white_noise_has_the_same_power_in_all_bands_and_pink_noise_in_all_octaves() -> None:
    shape = (2, 2**18)
    for kind, expected_db in (("white", [3.0, 3.0, 3.0]), ("pink", [0.0, 0.0, 0.0])):
        noise = denoise.made_noise(kind, shape)
        assert noise.shape == shape
        assert np.mean(np.square(noise)) == pytest.approx(1, abs=1e-3)
        spectrum = np.square(np.abs(np.fft.rfft(noise))).sum(0)
        octaves = [spectrum[2**k : 2 ** (k + 1)].sum() for k in range(12, 16)]
        np.testing.assert_allclose(10 * np.diff(np.log10(octaves)), expected_db, atol=0.2)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_noise_is_added_at_the_snr(spoken: Wave, snr_db: float) -> None:
    wave = np.concatenate([spoken, 0.5 * spoken])
    added = denoise.with_noise(wave, denoise.made_noise("pink", (1, wave.shape[1])), snr_db) - wave
    assert 10 * np.log10(np.sum(wave**2) / np.sum(added**2)) == pytest.approx(snr_db, abs=1e-3)
    np.testing.assert_array_equal(added.argmax(1), added[0].argmax())  # the one channel beside both


def test_there_is_no_snr_of_silence(spoken: Wave) -> None:
    for name, wave, noise in (("sound", 0 * spoken, spoken), ("noise", spoken, 0 * spoken)):
        with pytest.raises(AudiovaeError, match=f"the {name} is digital silence, so there is no SNR"):
            denoise.with_noise(wave, noise, 0.0)


def test_a_recorded_noise_is_fitted_to_the_sound() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 4800)).astype(np.float32)
    fitted = denoise.fitted(sound(noise, 48000), RATE, 4000)
    once = resample(noise.mean(0, keepdims=True), 48000, RATE)
    assert once.shape == (1, 1600)
    np.testing.assert_array_equal(fitted, np.concatenate([once, once, once], 1)[:, :4000])


def test_speech_is_that_of_the_library_at_any_rate_and_level(prior: AudioVAE, spoken: Wave) -> None:
    wave = 20 * resample(np.concatenate([spoken, 0.5 * spoken]), RATE, 48000)[:, :70000]
    done: list[float] = []
    speech = denoise.speech_of(wave, 48000, "fast", prior, done.append)
    np.testing.assert_array_equal(speech, enhance(wave, 48000, "fast", prior=prior))
    assert done[-1] == 1
    assert np.abs(speech).max() > 1


def test_speech_of_a_long_sound_is_that_of_a_file(
    prior: AudioVAE, spoken: Wave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoise, "_AT_ONCE_SECONDS", 1.0)
    done: list[float] = []
    speech = denoise.speech_of(spoken, RATE, "fast", prior, done.append)
    soundfile.write(tmp_path / "a.wav", spoken.T, RATE, subtype="FLOAT")
    enhance_file(enhancer(prior, "fast"), tmp_path / "a.wav", tmp_path / "b.wav")
    np.testing.assert_array_equal(speech[0], soundfile.read(tmp_path / "b.wav", dtype="float32")[0])
    assert done[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["talk.wav", "it's a talk.flac", "-o.wav", "$(date) `date` ;.ogg", 'a "b" \\.wav'])
def test_the_command_line_is_read_by_a_shell_as_it_was_meant(name: str) -> None:
    words = shlex.split(denoise.command_line(name, "fast", "my model"))
    assert words[:2] == ["audiovae", "enhance"]
    parser = Parser()
    verb.add_arguments(parser)
    options = parser.parse_args(words[2:])
    assert [Path(path) for path in options.inputs] == [Path(name)]
    assert Path(options.output) == Path(f"{Path(name).stem}-speech.wav")
    assert (options.method, options.model, options.residual) == ("fast", "my model", "residual")


def test_the_command_line_says_what_differs_alone() -> None:
    assert denoise.command_line("a.wav", "peem", None) == "audiovae enhance a.wav -o a-speech.wav --residual residual"


def test_what_became_of_a_sound_is_told(spoken: Wave) -> None:
    noise = np.roll(spoken, 5000)
    told = denoise.findings(spoken + noise, spoken, spoken)
    assert "SI-SDR re what was loaded: " in told
    assert told.endswith("inf dB after.")
    assert denoise.findings(10 * spoken, spoken, None) == "Mean power taken away: 20.0 dB."
    assert denoise.findings(0 * spoken, spoken, None) == "Digital silence."
    assert denoise.findings(spoken, 0 * spoken, None) == "No speech was found."


# Look inside


def test_what_is_seen_inside_is_what_the_prior_says(prior: AudioVAE, spoken: Wave) -> None:
    looked = inside.look_inside(prior, sound(3 * spoken))
    wave = torch.from_numpy(3 * spoken[0])
    latents = prior.encode(wave)
    torch.testing.assert_close(looked.psd * looked.level**2, prior.decode(latents))
    torch.testing.assert_close(looked.power, power(prior.stft(wave / latents.level)), rtol=1e-3, atol=1e-6)
    assert looked.bound is not None
    torch.manual_seed(0)
    observed = prior.vae.observed(looked.spectrogram)
    prior.vae.infer(observed, mean=True)
    torch.testing.assert_close(looked.bound, prior.log_likelihood(wave))
    kl = kl_per_dimension(prior.vae, looked.power)
    assert set(looked.ranked[:4]) <= set(torch.argsort(kl, descending=True)[:8].tolist())
    assert looked.kl is not None
    assert looked.kl == sorted(looked.kl, reverse=True)
    assert len(looked.ranked) == 8
    assert [inside.frame_at(looked, share) for share in (0.0, 0.5, 1.0)] == [0, 119, 238]


def test_what_is_not_moved_is_the_resynthesis_of_the_library(prior: AudioVAE, spoken: Wave) -> None:
    rumbling = spoken + 0.5 * np.sin(2 * np.pi * 20 * np.arange(spoken.shape[1]) / RATE).astype(np.float32)
    for wave in (spoken, rumbling):
        again, _ = inside.resynthesize(prior, inside.look_inside(prior, sound(wave)), {})
        np.testing.assert_allclose(again[0], prior.resynthesize(wave[0]), atol=2e-4 * np.abs(wave).max())


def test_a_latent_is_moved_in_every_frame(prior: AudioVAE, spoken: Wave) -> None:
    looked = inside.look_inside(prior, sound(spoken))
    wave, psd = inside.resynthesize(prior, looked, {3: 2.0, 5: -1.0})
    z = looked.latents.clone()
    z[:, 3] += 2
    z[:, 5] -= 1
    torch.testing.assert_close(psd, prior.psd(z))
    assert not torch.allclose(psd, looked.psd, rtol=0.1)
    assert np.abs(wave - spoken).max() > 0.01


def test_a_sample_is_the_same_each_time_and_not_the_mean(prior: AudioVAE, spoken: Wave) -> None:
    state = torch.get_rng_state()
    first, second = (inside.look_inside(prior, sound(spoken), "sample").latents for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first - inside.look_inside(prior, sound(spoken)).latents).abs().max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resynthesis_has_the_rate_and_length_of_the_sound(prior: AudioVAE, spoken: Wave) -> None:
    wave = resample(spoken, RATE, 44100)[:, :44101]
    again, _ = inside.resynthesize(prior, inside.look_inside(prior, sound(wave, 44100)), {})
    expected = resample(prior.resynthesize(resample(wave, 44100, RATE)), RATE, 44100)[:, :44101]
    np.testing.assert_allclose(again, expected, atol=1e-4)


def test_digital_silence_can_be_looked_into(prior: AudioVAE) -> None:
    looked = inside.look_inside(prior, sound(np.zeros((1, 5000), np.float32)))
    again, psd = inside.resynthesize(prior, looked, {})
    assert np.isfinite(again).all()
    assert torch.isfinite(psd).all()
    assert looked.level == 1


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("vrnn", "VRNN predicts each frame from those before; choose another prior"),
        ("label", "LabelVAE predicts labels: it has no PSD"),
        ("dynamic-labels", "a condition is missing"),
    ],
)
def test_a_prior_that_cannot_be_looked_into_says_why(spoken: Wave, model: str, line: str) -> None:
    own = AudioVAE.from_pretrained(MODELS / model)
    with pytest.raises(AudiovaeError, match=line):
        inside.look_inside(own, sound(spoken[:, :2000]))


def test_latents_that_leave_their_sphere_are_refused(spoken: Wave) -> None:
    own = AudioVAE.from_pretrained(MODELS / "frame-vmf")
    looked = inside.look_inside(own, sound(spoken[:, :2000]))
    with pytest.raises(AudiovaeError, match="the decoder expects von-mises-fisher latents, of length 1"):
        inside.resynthesize(own, looked, {0: 1.0})


# Compare


def test_between_two_sounds_lies_the_line_between_their_latents(prior: AudioVAE, spoken: Wave) -> None:
    first = inside.look_inside(prior, sound(spoken[:, :20000]))
    second = inside.look_inside(prior, sound(0.1 * spoken[:, 20000:50001]))
    for share, end in ((0.0, first), (1.0, second)):
        found = compare.between(prior, first, second, share)
        torch.testing.assert_close(found.psd, end.psd, rtol=1e-3, atol=1e-6)
        assert np.sqrt(np.mean(found.wave**2)) == pytest.approx(
            float(end.level * (end.psd.sum(1).mean() / 512 / 2 / 512 * 2).sqrt()), rel=0.25
        )
    middle = compare.between(prior, first, second, 0.5)
    assert len(middle.psd) == round((len(first.psd) + len(second.psd)) / 2)
    assert middle.wave.shape == (1, (len(middle.psd) - 1) * 256)
    same = compare.between(prior, first, first, 0.3)
    torch.testing.assert_close(same.psd, first.psd, rtol=1e-3, atol=1e-6)
    assert [row[1] for row in compare.table({"first": first, "second": second})] == ["1.25", "1.88"]


def test_latents_are_stretched_along_straight_lines() -> None:
    latents = torch.stack([torch.arange(5.0), torch.arange(5.0) ** 2], 1)
    expected = np.interp(np.linspace(0, 4, 9), np.arange(5), np.arange(5.0) ** 2)
    torch.testing.assert_close(compare.stretched(latents, 9)[:, 1].double(), torch.from_numpy(expected))
    torch.testing.assert_close(compare.stretched(latents, 5), latents)
    torch.testing.assert_close(compare.stretched(latents[:1], 2), latents[[0, 0]])


# Separate


def test_the_parts_of_a_recording_sum_to_its_first_microphone() -> None:
    room = separate.made_up_room()
    assert room.shape == (2, 60800)
    parts = separate.parts_of(room, RATE, 2, "iva")
    assert list(parts) == ["speaker 1", "speaker 2", "noise"]
    np.testing.assert_allclose(sum(parts.values()), room[:1], atol=1e-4 * np.abs(room).max())


def test_a_single_microphone_is_refused(spoken: Wave) -> None:
    with pytest.raises(AudiovaeError, match="needs at least two channels, got one"):
        separate.parts_of(spoken, RATE, 2, "iva")


# Live


def test_what_comes_back_is_that_of_the_stream(spoken: Wave) -> None:
    name, conversation = live.CONVERSATIONS.begin(RATE, 2)
    expected = stream(sounds.load_prior(live.PRIOR), lookahead=2)
    cuts = [0, 1, 700, 701, 9000, 20000]
    speech = [conversation.push(spoken[0, a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(speech), expected.push(spoken[0, :20000]), atol=1e-6)
    assert live.CONVERSATIONS.of(name) is conversation
    assert conversation.latency_seconds == expected.latency / RATE
    heard, said = conversation.last()
    np.testing.assert_array_equal(heard[0], spoken[0, :20000])
    np.testing.assert_array_equal(said[0], np.concatenate(speech))


def test_no_more_than_the_last_minute_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT_SECONDS", 0.1)
    conversation = live.Conversation(sounds.load_prior(live.PRIOR), RATE, 0)
    blocks = np.random.default_rng(0).standard_normal((20, 300)).astype(np.float32)
    for block in blocks:
        conversation.push(block)
    heard, speech = conversation.last()
    np.testing.assert_array_equal(heard[0], blocks[-6:].ravel())
    assert speech.shape == heard.shape
    assert conversation.n_heard == 6000


def test_what_a_page_cannot_ask_for() -> None:
    for rate, lookahead, line in (
        (7999, 1, "the microphone's rate must be from 8000 to 192000 Hz, got 7999"),
        ("48000", 1, "the microphone's rate must be from 8000 to 192000 Hz, got '48000'"),
        (48000, 7, r"the look-ahead must be one of \(0, 1, 2\) frames, got 7"),
    ):
        with pytest.raises(AudiovaeError, match=line):
            live.CONVERSATIONS.begin(rate, lookahead)
    first, conversation = live.CONVERSATIONS.begin(48000, 1)
    with pytest.raises(AudiovaeError, match="nothing was heard; is the microphone muted"):
        conversation.last()
    with pytest.raises(AudiovaeError, match="microphone: the wave holds 1 samples that are NaN"):
        conversation.push(np.array([0, np.nan], np.float32))
    for _ in range(4):
        live.CONVERSATIONS.begin(48000, 1)
    with pytest.raises(AudiovaeError, match="this recording is gone; start again"):
        live.CONVERSATIONS.of(first)
