"""Mixtures of speakers in simulated rooms, with all that they are made of, from a packed corpus.

    python recipes/rooms/rooms.py PACKED -o OUT --config recipes/rooms/tuning.yaml [--noise FOLDER] [--jobs 2]

Writes, 16-bit and at one scale per mixture: OUT/mix_NN.flac, all microphones; OUT/image_NN_K.flac, what they receive
of source K; OUT/noise_NN.flac, all else, where a noise plays in the room; OUT/dry_NN_K.flac, the source itself at the
level of its direct path to microphone 0, without that path's delay. Images and noise (mixture minus images, where it
has no file) sum to the mixture exactly. OUT/mixtures.json says who speaks where. A run that was stopped goes on where
it was; mixture i depends on settings, corpus, noises and i alone.

Reference: J. B. Allen, D. A. Berkley, "Image method for efficiently simulating small-room acoustics", JASA 65 (1979),
as implemented by pyroomacoustics.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import numpy as np
import pyroomacoustics
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from audiovae import AudioError, AudiovaeError, PackedCorpus, PathError, Writer, resample
from audiovae.audio import SUFFIXES, read

WALL_M = 0.5  # nothing stands closer to a wall
HEIGHTS_M = (1.2, 1.6)  # of microphones and mouths
PEAK = 0.5  # of a mixture
TRIES = 2000  # at a place for everything
SETTINGS, MIXTURES = "settings.json", "mixtures.json"

Wave = NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True)
class RoomSettings:
    """A set of mixtures. Whatever is a pair is drawn uniformly between the two for every mixture.

    Attributes:
        n_mixtures: how many; more of them may be asked for later.
        seed: of everything that is drawn.
        sample_rate: in Hz, at most that of the corpus.
        duration_s: of a mixture; a shorter recording is played again until it ends.
        split: of the corpus, whose recordings at their own speed are taken.
        half: of every recording that sound is taken from: first, second or both.
        shortest_s: pieces shorter than this are not used.
        n_sources: speakers, all different.
        n_mics: microphones.
        array: circle or line, horizontal, turned at random.
        aperture_m: diameter of the circle, or length of the line.
        length_m, width_m, height_m: of the room.
        rt60_s: reverberation time by Sabine's formula; all walls absorb alike, at all frequencies.
        distance_m: of every source from the centre of the array.
        angle_deg: between the directions of any two sources (a noise is one too), seen from there.
        level_db: of every source's image at microphone 0, relative to the others'.
        sensor_snr_db: power of all speakers' images over that of white noise, independent at every microphone.
        noise_snr_db: over that of the image of a noise from the folder of --noise; only together with it.
    """

    n_mixtures: int = 24
    seed: int = 0
    sample_rate: int = 16000
    duration_s: float = 6.0
    split: Literal["train", "validation", "test"] = "train"
    half: Literal["first", "second", "both"] = "both"
    shortest_s: float = 3.0
    n_sources: int = 2
    n_mics: int = 4
    array: Literal["circle", "line"] = "circle"
    aperture_m: float = 0.1
    length_m: Range = (5.0, 8.0)
    width_m: Range = (4.0, 6.0)
    height_m: Range = (2.5, 3.5)
    rt60_s: Range = (0.2, 0.4)
    distance_m: Range = (1.0, 1.5)
    angle_deg: Range = (85.0, 180.0)
    level_db: Range = (0.0, 0.0)
    sensor_snr_db: Range = (30.0, 30.0)
    noise_snr_db: Range | None = None

    def __post_init__(self) -> None:
        for name in ("n_mixtures", "sample_rate", "duration_s", "shortest_s", "aperture_m"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 1 <= self.n_sources <= 4:
            raise ValueError(f"n_sources must be from 1 to 4, got {self.n_sources}")
        if not 2 <= self.n_mics <= 8:
            raise ValueError(f"n_mics must be from 2 to 8, got {self.n_mics}")
        for name in ("length_m", "width_m", "height_m", "rt60_s", "distance_m", "angle_deg"):
            low, high = getattr(self, name)
            if not 0 < low <= high < np.inf:
                raise ValueError(f"{name} must be two positive numbers, the smaller first, got {low} and {high}")
        for name in ("level_db", "sensor_snr_db", "noise_snr_db"):
            low, high = getattr(self, name) or (0, 0)
            if not -100 <= low <= high <= 100:
                raise ValueError(
                    f"{name} must be two numbers from -100 to 100, the smaller first, got {low} and {high}"
                )
        if self.height_m[0] < HEIGHTS_M[1] + WALL_M:
            raise ValueError(f"height_m must be at least {HEIGHTS_M[1] + WALL_M}, got {self.height_m[0]}")
        nearest = max(self.aperture_m / 2 + 0.1, HEIGHTS_M[1] - HEIGHTS_M[0])
        if self.distance_m[0] < nearest:
            raise ValueError(
                f"distance_m must be at least {nearest:.2f}, half the aperture and 0.1 m or the largest difference of "
                f"heights, got {self.distance_m[0]}"
            )
        try:
            pyroomacoustics.inverse_sabine(self.rt60_s[0], [self.length_m[1], self.width_m[1], self.height_m[1]])
        except ValueError as error:
            raise ValueError(
                f"rt60_s cannot be as short as {self.rt60_s[0]} in the largest room: walls would absorb more than all"
            ) from error


@dataclass(frozen=True)
class Piece:
    """A part of a recording: samples of the corpus, `[start, end)`."""

    recording: str
    speaker: str
    start: int
    end: int


@dataclass(frozen=True)
class Mixture:
    """One line of mixtures.json: what is drawn for a mixture.

    Attributes:
        speakers, recordings, starts_s: of the sources, and where in the recordings they begin.
        room_m: length, width and height.
        mics_m, sources_m: positions `[microphone or source, 3]`; the last source is the noise where there is one.
        angle_deg: smallest between two sources, None where there is one alone.
        noise: its file.
    """

    mixture: str
    speakers: list[str]
    recordings: list[str]
    starts_s: list[float]
    room_m: list[float]
    rt60_s: float
    mics_m: list[list[float]]
    sources_m: list[list[float]]
    angle_deg: float | None
    levels_db: list[float]
    sensor_snr_db: float
    noise: str | None
    noise_snr_db: float | None


class Simulator:
    """Draws and simulates the mixtures of a set.

    Args:
        packed: the corpus.
        noises: folder of sound files.

    Raises:
        CorpusError, PathError: the corpus, or the noise, cannot be used.
        ValueError: settings that do not fit it.
    """

    def __init__(self, settings: RoomSettings, packed: Path, out: Path, noises: Path | None = None) -> None:
        if (noises is None) != (settings.noise_snr_db is None):
            raise ValueError("noise_snr_db and --noise need each other: give both or neither")
        self.settings, self.out, self.noises = settings, out, noises
        self.corpus = PackedCorpus(packed)
        self.rate = self.corpus.header.sample_rate
        if settings.sample_rate > self.rate:
            raise ValueError(f"sample_rate must be at most that of the corpus, {self.rate}, got {settings.sample_rate}")
        self.pieces: dict[str, list[Piece]] = {}
        for utterance in self.corpus.split(settings.split):
            middle, end = utterance.n_samples // 2, utterance.n_samples
            start, end = {"first": (0, middle), "second": (middle, end), "both": (0, end)}[settings.half]
            if end - start >= settings.shortest_s * self.rate and not re.search(r"@\d[\d.]*$", utterance.id):
                piece = Piece(utterance.id, utterance.speaker, start, end)
                self.pieces.setdefault(utterance.speaker, []).append(piece)
        if len(self.pieces) < settings.n_sources:
            raise ValueError(
                f"n_sources is {settings.n_sources}, but split {settings.split!r} has {len(self.pieces)} speakers with "
                f"{settings.shortest_s} s of sound"
            )
        self.utterances = {utterance.id: utterance for utterance in self.corpus.split(settings.split)}
        self.noise_files = (
            sorted(path for path in noises.rglob("*") if path.suffix.lower() in SUFFIXES) if noises else []
        )
        if noises and not self.noise_files:
            raise PathError(noises, "has no sound file; give a folder of noises")

    def identity(self) -> dict[str, Any]:
        """What mixtures depend on, to notice that a folder holds others."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "n_mixtures"}
        names = [path.relative_to(self.noises).as_posix() for path in self.noise_files] if self.noises else []
        return {"settings": settings, "corpus": self.corpus.fingerprint(), "noises": names}

    def mixture(self, i: int) -> Mixture:
        """Draw mixture i.

        Raises:
            ValueError: no place for all sources.
        """
        s, rng = self.settings, self._rng(i, 0)
        speakers = [sorted(self.pieces)[k] for k in rng.choice(len(self.pieces), s.n_sources, replace=False)]
        pieces = [self.pieces[speaker][rng.integers(len(self.pieces[speaker]))] for speaker in speakers]
        spare = [max(0, piece.end - piece.start - round(s.duration_s * self.rate)) for piece in pieces]
        starts = [piece.start + int(rng.integers(n + 1)) for piece, n in zip(pieces, spare, strict=True)]
        room = np.array([rng.uniform(*s.length_m), rng.uniform(*s.width_m), rng.uniform(*s.height_m)])
        mics, sources, angle = place(s, room, s.n_sources + bool(self.noise_files), rng)
        noise = self.noise_files[rng.integers(len(self.noise_files))] if self.noise_files else None
        rt60_s, sensor_snr_db = rng.uniform(*s.rt60_s), rng.uniform(*s.sensor_snr_db)
        return Mixture(
            mixture=f"mix_{i:02d}.flac",
            speakers=speakers,
            recordings=[piece.recording for piece in pieces],
            starts_s=[start / self.rate for start in starts],
            room_m=room.tolist(),
            rt60_s=rt60_s,
            mics_m=mics.tolist(),
            sources_m=sources.tolist(),
            angle_deg=angle,
            sensor_snr_db=sensor_snr_db,
            noise=noise.relative_to(self.noises).as_posix() if noise and self.noises else None,
            noise_snr_db=rng.uniform(*s.noise_snr_db) if s.noise_snr_db else None,
            levels_db=rng.uniform(*s.level_db, s.n_sources).tolist(),
        )

    def simulate(self, i: int) -> int:
        """Write the files of mixture i, the mixture last: where it is, the others are."""
        rate = self.settings.sample_rate
        n_samples = round(self.settings.duration_s * rate)
        drawn = self.mixture(i)
        rng = self._rng(i, 1)
        dry = [self._speech(*taken, n_samples) for taken in zip(drawn.recordings, drawn.starts_s, strict=True)]
        responses = impulse_responses(drawn, rate)
        images = [convolve(wave, response) for wave, response in zip(dry, responses, strict=False)]
        powers = [np.square(image[0]).mean() for image in images]
        gains = [10 ** (db / 20) / np.sqrt(power) for db, power in zip(drawn.levels_db, powers, strict=True)]
        images = [gain * image for gain, image in zip(gains, images, strict=True)]
        speech = sum(images, np.zeros_like(images[0]))
        noise = at_snr(rng.standard_normal(speech.shape), speech, drawn.sensor_snr_db)
        if drawn.noise is not None and drawn.noise_snr_db is not None:
            noise += at_snr(
                convolve(self._noise(drawn.noise, n_samples, rng), responses[-1]), speech, drawn.noise_snr_db
            )
        distances = np.linalg.norm(np.array(drawn.sources_m) - drawn.mics_m[0], axis=1)
        dry = [gain * wave / d for gain, wave, d in zip(gains, dry, distances, strict=False)]
        scale = PEAK / max(np.abs(speech + noise).max(), *(np.abs(wave).max() / 1.9 for wave in (*images, *dry, noise)))
        images, dry, noise = [steps(scale * x) for x in images], [steps(scale * x) for x in dry], steps(scale * noise)
        for k, (image, wave) in enumerate(zip(images, dry, strict=True)):
            self._write(f"image_{i:02d}_{k}.flac", image)
            self._write(f"dry_{i:02d}_{k}.flac", wave[None])
        if drawn.noise is not None:
            self._write(f"noise_{i:02d}.flac", noise)
        self._write(drawn.mixture, sum(images, noise))
        return i

    def _rng(self, i: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, i, stream])

    def _speech(self, recording: str, start_s: float, n_samples: int) -> Wave:
        """`[sample]`, begun again where it is too short."""
        piece = next(p for pieces in self.pieces.values() for p in pieces if p.recording == recording)
        start = round(start_s * self.rate)
        end = min(piece.end, start + round(self.settings.duration_s * self.rate))
        wave = self.corpus.wave(self.utterances[recording])[start:end]
        return np.resize(resample(wave, self.rate, self.settings.sample_rate), n_samples).astype(np.float64)

    def _noise(self, name: str, n_samples: int, rng: np.random.Generator) -> Wave:
        """`[sample]` from a random place on, begun again where it ends."""
        assert self.noises is not None
        wave = read(self.noises / name, self.settings.sample_rate)[0].mean(0).astype(np.float64)
        if not np.any(wave):
            raise AudioError(self.noises / name, "is silent; leave it out of the folder")
        return np.resize(np.roll(wave, -int(rng.integers(len(wave)))), n_samples)

    def _write(self, name: str, samples: Wave) -> None:
        with Writer(self.out / name, self.settings.sample_rate, *samples.shape) as file:
            file.write((samples / 2**15).astype(np.float32))


def place(s: RoomSettings, room: Wave, n_sources: int, rng: np.random.Generator) -> tuple[Wave, Wave, float | None]:
    """Positions of microphones and sources, `[microphone, 3]` and `[source, 3]`, and the smallest angle, in degrees.

    Raises:
        ValueError: they find no place.
    """
    low, high = np.full(2, WALL_M), room[:2] - WALL_M
    for _ in range(TRIES):
        centre = np.append(rng.uniform(low, np.maximum(low, high)), rng.uniform(*HEIGHTS_M))
        distances = rng.uniform(*s.distance_m, n_sources)
        azimuths = rng.uniform(0, 2 * np.pi, n_sources)
        rise = rng.uniform(*HEIGHTS_M, n_sources) - centre[2]
        flat = np.sqrt(distances**2 - rise**2)
        sources = centre + np.stack([flat * np.cos(azimuths), flat * np.sin(azimuths), rise], axis=1)
        turn = rng.uniform(0, 2 * np.pi)
        if s.array == "circle":
            along = turn + 2 * np.pi * np.arange(s.n_mics) / s.n_mics
            offsets = s.aperture_m / 2 * np.stack([np.cos(along), np.sin(along), np.zeros(s.n_mics)], axis=1)
        else:
            direction = np.array([np.cos(turn), np.sin(turn), 0])
            offsets = s.aperture_m * np.linspace(-0.5, 0.5, s.n_mics)[:, None] * direction
        mics = centre + offsets
        everything = np.concatenate([mics, sources])[:, :2]
        between = np.abs(azimuths[:, None] - azimuths)[np.triu_indices(n_sources, 1)]
        angles = np.rad2deg(np.minimum(between, 2 * np.pi - between))
        if np.all((everything >= low) & (everything <= high)) and np.all(
            (angles >= s.angle_deg[0]) & (angles <= s.angle_deg[1])
        ):
            return mics, sources, float(angles.min()) if n_sources > 1 else None
    raise ValueError(
        f"no place for {n_sources} sources: angle_deg {s.angle_deg} or distance_m {s.distance_m} is too large"
    )


def impulse_responses(mixture: Mixture, rate: int) -> list[Wave]:
    """From every source, `[microphone, sample]`: a path of d metres arrives after d / c seconds with gain 1 / d."""
    pyroomacoustics.constants.set("num_threads", 1)
    absorption, order = pyroomacoustics.inverse_sabine(mixture.rt60_s, mixture.room_m)
    room = pyroomacoustics.ShoeBox(
        mixture.room_m, fs=rate, materials=pyroomacoustics.Material(absorption), max_order=order
    )
    room.add_microphone_array(np.array(mixture.mics_m).T)
    for position in mixture.sources_m:
        room.add_source(position)
    room.compute_rir()
    late = pyroomacoustics.constants.get("frac_delay_length") // 2  # samples, of its filters for fractional delays
    shortest = min(len(room.rir[m][k]) for m in range(len(mixture.mics_m)) for k in range(len(mixture.sources_m)))
    return [
        np.stack([of_mic[k][late:shortest] for of_mic in room.rir]).astype(np.float64)
        for k in range(len(mixture.sources_m))
    ]


def convolve(wave: Wave, response: Wave) -> Wave:
    """`[sample]` with `[microphone, sample]`, as long as the wave."""
    return fftconvolve(wave[None], response, axes=1)[:, : len(wave)]


def at_snr(noise: Wave, speech: Wave, snr_db: float) -> Wave:
    """The noise, scaled so that the speech has `snr_db` more power, over all microphones."""
    return noise * np.sqrt(np.square(speech).mean() / np.square(noise).mean() / 10 ** (snr_db / 10))


def steps(wave: Wave) -> Wave:
    """In whole steps of 16 bits."""
    return np.round(wave * 2**15)


def simulate_all(simulator: Simulator, jobs: int) -> None:
    """Write what is missing of a set into its folder.

    Raises:
        PathError: the folder has mixtures of other settings.
    """
    s, out = simulator.settings, simulator.out
    known, identity = out / SETTINGS, json.dumps(simulator.identity(), indent=1) + "\n"
    if known.exists() and known.read_text() != identity:
        raise PathError(out, "holds mixtures of other settings, or of another corpus or noise; give another folder")
    drawn = [simulator.mixture(i) for i in range(s.n_mixtures)]  # whose errors come before any work
    write_text(known, identity)
    missing = [i for i, mixture in enumerate(drawn) if not (out / mixture.mixture).exists()]
    print(f"{s.n_mixtures - len(missing)} of {s.n_mixtures} mixtures are there", file=sys.stderr)
    if jobs == 1:
        for i in missing:
            simulator.simulate(i)
    else:
        start = partial(_start, s, simulator.corpus.folder, out, simulator.noises)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), start) as pool:
            list(pool.map(_simulate, missing))
    write_text(out / MIXTURES, json.dumps([asdict(mixture) for mixture in drawn], indent=1) + "\n")


_simulators: list[Simulator] = []  # of a process


def _start(*arguments: Any) -> None:
    _simulators.append(Simulator(*arguments))


def _simulate(i: int) -> int:
    return _simulators[0].simulate(i)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def main(arguments: list[str] | None = None) -> None:
    parser = jsonargparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("packed", type=Path, help="corpus as prepared by: audiovae prepare")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the set")
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_argument("--noise", type=Path | None, help="folder of noises, of which each mixture gets one")
    parser.add_argument("--jobs", type=jsonargparse.typing.PositiveInt, default=1, help="processes")
    parser.add_class_arguments(RoomSettings)
    options = parser.parse_args(arguments)
    try:
        settings = RoomSettings(**{field.name: options[field.name] for field in dataclasses.fields(RoomSettings)})
        simulate_all(Simulator(settings, options.packed, options.output, options.noise), options.jobs)
    except (AudiovaeError, ValueError) as error:
        sys.exit(f"rooms.py: error: {error}")


if __name__ == "__main__":
    main()
