"""Mixtures drawn while a separator is trained: speakers of a packed corpus in rooms of a bank of impulse responses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from audiovae.corpora.packed import PackedCorpus, Utterance
from audiovae.errors import CorpusError
from audiovae.settings import MixtureSettings

RESPONSES, BANK = "responses.npy", "bank.json"
_HELD_OUT = 0.1  # of the rooms, the last ones: those of validation
_KEY = 17  # of the random numbers of mixtures, beside those of latents


class RoomBank:
    """Impulse responses of rooms, `[set, source, microphone, sample]`, on the disk; a set is one room and array.

    Args:
        folder: as `recipes/neural_fca/bank.py` writes it.

    Attributes:
        sample_rate: in Hz.

    Raises:
        CorpusError: no bank, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            made = json.loads((self.folder / BANK).read_text(encoding="utf-8"))
            self.responses: NDArray[np.float16] = np.load(self.folder / RESPONSES, mmap_mode="r", allow_pickle=False)
            self.sample_rate = int(made["sample_rate"])
        except FileNotFoundError as error:
            raise CorpusError(
                self.folder,
                f"is no finished bank of rooms ({error.filename} is missing); run recipes/neural_fca/bank.py",
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorpusError(self.folder, "is damaged; make the bank again with recipes/neural_fca/bank.py") from error
        if self.responses.ndim != 4 or self.responses.dtype != np.float16 or len(self.responses) < 2:
            raise CorpusError(
                self.folder, "is no bank of 16-bit responses [set, source, microphone, sample] of two rooms or more"
            )

    def split(self, name: str) -> range:
        """The sets of "train" or "validation"."""
        n = len(self.responses)
        first = n - max(1, round(_HELD_OUT * n))
        return range(first) if name == "train" else range(first, n)

    def fingerprint(self) -> str:
        """SHA-256 of the responses and their rate."""
        digest = hashlib.sha256(f"{self.sample_rate} {self.responses.shape}".encode())
        for of_set in self.responses:
            digest.update(np.ascontiguousarray(of_set).data)
        return digest.hexdigest()


class MixtureCorpus:
    """Speakers in rooms: what `fit` draws mixtures from, and none of them twice.

    Args:
        speech: recordings of one channel each.
        bank: the rooms.
        settings: how they are mixed.

    Raises:
        CorpusError: speech of several channels or another rate, or a bank with too few places or microphones.
    """

    def __init__(self, speech: PackedCorpus, bank: RoomBank, settings: MixtureSettings = MixtureSettings()) -> None:
        if speech.n_channels > 1:
            raise CorpusError(speech.folder, "has several channels, and speakers in rooms need one each")
        if speech.sample_rate != bank.sample_rate:
            raise CorpusError(
                bank.folder,
                f"has {bank.sample_rate} Hz, and {speech.folder} {speech.sample_rate}; make both at one rate",
            )
        _, n_places, n_mics, _ = bank.responses.shape
        if settings.n_sources > n_places or settings.n_channels > n_mics:
            raise CorpusError(
                bank.folder,
                f"has {n_places} places and {n_mics} microphones a room, and mixtures of {settings.n_sources} sources "
                f"at {settings.n_channels} are asked for",
            )
        self.speech, self.bank, self.settings, self.folder = speech, bank, settings, speech.folder

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.speech.sample_rate

    @property
    def description(self) -> str:
        """In a sentence, for a model's card."""
        s = self.settings
        return (
            f"mixtures of {s.n_sources} speakers at {s.n_channels} microphones in {len(self.bank.split('train'))} "
            f"simulated rooms, drawn from {self.speech.description}"
        )

    def verify(self, utterances: Iterable[Utterance] | None = None) -> None:
        """See `PackedCorpus.verify`."""
        self.speech.verify(utterances)

    def verify_small(self) -> None:
        """See `PackedCorpus.verify_small`."""
        self.speech.verify_small()

    def split(self, name: str) -> list[Utterance]:
        """The recordings of "train", "validation" or "test"."""
        return self.speech.split(name)

    def fingerprint(self) -> str:
        """SHA-256 of all that mixtures depend on."""
        of_parts = [self.speech.fingerprint(), self.bank.fingerprint(), repr(self.settings)]
        return hashlib.sha256("\n".join(of_parts).encode()).hexdigest()


class MixtureSampler:
    """Draws mixtures: different speakers, each a piece of a recording at a place of a room, and noise of the sensors.

    All sources are as loud at the first microphone, but for `level_db`; microphones stand in random order. A piece that
    ends too early begins again. What is drawn depends on the seed, the step and the rank alone. Arguments are those of
    `SegmentSampler`.

    Raises:
        CorpusError: fewer speakers in the split than sources.
    """

    def __init__(self, corpus: MixtureCorpus, split: str, segment_samples: int, device: torch.device) -> None:
        self._corpus, self._device, self.segment_samples = corpus, device, segment_samples
        self.utterances = corpus.split(split)
        self._sets = corpus.bank.split(split)
        self._speakers: dict[str, list[Utterance]] = {}
        for utterance in self.utterances:
            self._speakers.setdefault(utterance.speaker, []).append(utterance)
        if len(self._speakers) < corpus.settings.n_sources:
            raise CorpusError(
                corpus.folder,
                f"has {len(self._speakers)} speakers in the split {split!r}, and a mixture needs "
                f"{corpus.settings.n_sources}",
            )
        self._names = sorted(self._speakers)

    def draw(
        self, n_segments: int, seed: int, step: int, rank: int = 0
    ) -> tuple[Float[Tensor, "segment channel sample"], list[Utterance]]:
        """Mixtures, at a level of about 1, and the recordings that they are from."""
        rng = np.random.default_rng((seed, step, rank, _KEY))
        drawn = [self._mixture(rng) for _ in range(n_segments)]
        waves = torch.stack([wave for wave, _ in drawn])
        return waves.to(self._device), [utterance for _, of_one in drawn for utterance in of_one]

    def _mixture(self, rng: np.random.Generator) -> tuple[Tensor, list[Utterance]]:
        s, bank = self._corpus.settings, self._corpus.bank.responses
        room = bank[self._sets[rng.integers(len(self._sets))]]
        places = rng.permutation(bank.shape[1])[: s.n_sources]
        mics = rng.permutation(bank.shape[2])[: s.n_channels]
        speakers = [self._names[i] for i in rng.choice(len(self._names), s.n_sources, replace=False)]
        utterances = [self._speakers[name][rng.integers(len(self._speakers[name]))] for name in speakers]
        dry = torch.stack([self._piece(utterance, bank.shape[3], rng) for utterance in utterances])
        responses = torch.from_numpy(np.stack([room[place][mics] for place in places]).astype(np.float32))
        images = _convolved(dry, responses)
        gains = 10 ** (rng.uniform(-s.level_db, s.level_db, s.n_sources) / 20)
        loudness = images[:, 0].square().mean(-1).sqrt().clamp(min=1e-12)
        speech = (images * (torch.from_numpy(gains).float() / loudness)[:, None, None]).sum(0)
        noise = torch.from_numpy(rng.standard_normal(speech.shape, np.float32))
        return speech + noise * float(speech.square().mean().sqrt() * 10 ** (-rng.uniform(*s.snr_db) / 20)), utterances

    def _piece(self, utterance: Utterance, n_before: int, rng: np.random.Generator) -> Tensor:
        """`[before + segment]`: what is heard of the room's past stands before the segment."""
        n = n_before + self.segment_samples
        start = utterance.start + int(rng.integers(max(0, utterance.n_samples - n) + 1))
        end = min(start + n, utterance.start + utterance.n_samples)
        wave = self._corpus.speech.samples[start:end].astype(np.float32) / 2**15
        return torch.from_numpy(np.resize(wave, n))

    def example(self, n_samples: int | None) -> Float[Tensor, "channel sample"]:
        """A mixture to listen to, always the same."""
        return self.draw(1, 0, 0)[0][0, :, :n_samples]


def _convolved(
    dry: Float[Tensor, "source sample"], responses: Float[Tensor, "source channel response"]
) -> Float[Tensor, "source channel segment"]:
    """All but the first samples, in which the room has not heard enough."""
    n, n_before = dry.shape[-1], responses.shape[-1]
    size = _fast_length(n)  # what wraps around falls into what is cut off
    spectrum = torch.fft.rfft(dry, size).unsqueeze(1) * torch.fft.rfft(responses, size)
    return torch.fft.irfft(spectrum, size)[..., n_before:n]


def _fast_length(n: int) -> int:
    from scipy.fft import next_fast_len

    return int(next_fast_len(n, real=True))
