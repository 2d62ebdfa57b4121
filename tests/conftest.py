"""What the tests share: checked shapes, one thread, real and synthetic sound, and a small prior."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType

from jaxtyping import config, install_import_hook

install_import_hook(
    "audiovae", "beartype.beartype"
)  # before any import of the package: shapes in signatures are checked

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

import audiovae  # noqa: E402

torch.set_num_threads(1)

RATE = 16000
CHECKED_SECONDS = 0.1  # of processor time


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Shapes are checked at the beginning of each test: all of it would take half as long again."""
    config.update("jaxtyping_disable", False)
    signal.signal(signal.SIGVTALRM, lambda *_: config.update("jaxtyping_disable", True))
    signal.setitimer(signal.ITIMER_VIRTUAL, CHECKED_SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        config.update("jaxtyping_disable", False)


def load_script(path: Path) -> ModuleType:
    """A file of recipes or benchmarks, which are no packages."""
    name = f"script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checked() -> None:
    """Shapes are checked to the end of the test."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked: for a wrong argument that the package refuses by itself, as a user sees it."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real recordings; tests that need it are skipped where it is absent."""
    folder = Path(
        os.environ.get("AUDIOVAE_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    ).resolve()
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}; AUDIOVAE_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def speech_file(data: Path) -> Path:
    """One real utterance at 16 kHz."""
    found = sorted((data / "librispeech-mini").rglob("*.flac"))
    if not found:
        pytest.skip(f"no LibriSpeech utterance below {data}")
    return found[0]


@pytest.fixture(scope="session")
def speech(speech_file: Path) -> torch.Tensor:
    """Four seconds of a real utterance at 16 kHz."""
    return torch.from_numpy(soundfile.read(speech_file, dtype="float32", frames=4 * RATE)[0])


def build_prior(seed: int = 0, **settings: object) -> audiovae.AudioVAE:
    """A small untrained prior, its input standardised with the spectrum of white noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stft = audiovae.STFT()
        vae = audiovae.FrameVAE(
            stft.n_freqs, audiovae.FrameVAESettings(**{"hidden": (32,), "latent_dim": 8, **settings})
        )
        spectrogram = stft(torch.randn(4 * RATE))
        vae.calibrate(spectrogram.real.square() + spectrogram.imag.square())
        return audiovae.AudioVAE(stft, vae, RATE).eval()


@pytest.fixture(scope="session")
def prior() -> audiovae.AudioVAE:
    """See `build_prior`; shared by all tests, so none may change it."""
    return build_prior()


@pytest.fixture
def model_folder(prior: audiovae.AudioVAE, tmp_path: Path) -> Path:
    """The prior, saved."""
    folder = tmp_path / "model"
    prior.save_pretrained(folder)
    return folder


def speech_like(seconds: float, pitch_hz: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Bursts of a harmonic tone with two formants, 0.3 s each, with pauses of 0.1 s of faint noise between them."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = pitch_hz * (1 + 0.05 * np.sin(2 * np.pi * 3 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants_hz = generator.uniform((300, 900), (800, 2500))
    tone = np.zeros_like(time)
    for harmonic in range(1, int(min(4000, 0.45 * rate) / pitch_hz)):
        gain = sum(1 / (1 + ((harmonic * pitch_hz - formant) / 150) ** 2) for formant in formants_hz)
        tone += gain * np.sin(harmonic * phase)
    syllable = (time + 0.05) % 0.4
    envelope = np.where(syllable < 0.3, np.sin(np.pi * np.minimum(syllable, 0.3) / 0.3) ** 2, 0)
    wave = 0.3 * envelope * tone / np.abs(tone).max() + 1e-3 * generator.standard_normal(len(time))
    return wave.astype(np.float32)


def make_tone_folder(
    folder: Path, n_speakers: int = 8, n_files: int = 2, seconds: float = 1.5, rate: int = RATE, suffix: str = ".wav"
) -> Path:
    """Fill a folder with one sub-folder per speaker, each with its own pitch: `speaker3/1.wav`."""
    for speaker in range(n_speakers):
        place = folder / f"speaker{speaker}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(n_files):
            wave = speech_like(seconds + 0.1 * number, 90 * 1.12**speaker, seed=1000 * speaker + number, rate=rate)
            soundfile.write(place / f"{number}{suffix}", wave, rate)
    return folder


@pytest.fixture(scope="session")
def tone_folder() -> Callable[..., Path]:
    """See `make_tone_folder`."""
    return make_tone_folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two digits by two voices, named as free-spoken-digits, packed: labels, and every voice in every split; read
    only."""
    folder = tmp_path_factory.mktemp("digits") / "recordings"
    folder.mkdir()
    for digit in range(2):
        for voice, speaker in enumerate(("ann", "bob")):
            for index in (0, 5, 8, 9):
                wave = speech_like(0.4 + 0.1 * digit, 100 * (1 + voice), seed=100 * digit + 10 * voice + index)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", wave, RATE)
    target = folder.parent / "packed"
    audiovae.prepare(folder, target)
    return target


@pytest.fixture(scope="session")
def toy_corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight speakers with two files of about 1.5 s each; read only."""
    return make_tone_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def packed(toy_corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus, packed; read only."""
    target = tmp_path_factory.mktemp("packed") / "corpus"
    audiovae.prepare(toy_corpus_folder, target, audiovae.PrepareSettings(validation=0.25))
    return target


@pytest.fixture(scope="session")
def frame() -> audiovae.AudioVAE:
    """See `mixtures.frame_prior`; read only."""
    from mixtures import frame_prior

    return frame_prior()


@pytest.fixture(scope="session")
def dynamic() -> audiovae.AudioVAE:
    """See `mixtures.dynamic_prior`; read only."""
    from mixtures import dynamic_prior

    return dynamic_prior()


@pytest.fixture
def double() -> Iterator[None]:
    """New tensors are of float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
