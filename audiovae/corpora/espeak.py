"""A toy corpus without any download: sentences spoken by espeak-ng in many voices. Formant speech, for demos and tests
only.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiovae.audio import Writer
from audiovae.errors import AudiovaeError

SENTENCES = (  # IEEE recommended practice for speech quality measurements, 1969: the "Harvard sentences"
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "The boy was there when the sun rose.",
    "A rod is used to catch pink salmon.",
    "The source of the huge river is the clear spring.",
    "Kick the ball straight and follow through.",
    "Help the woman get back to her feet.",
    "A pot of tea helps to pass the evening.",
)  # IEEE recommended practice for speech quality measurements, 1969: the "Harvard sentences"

ACCENTS = ("en-us", "en-gb-scotland", "en-gb-x-rp")
TIMBRES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")

_SYNCHRONOUS, _NO_EXIT, _UTF8, _RATE, _PITCH = 2, 1 << 15, 1, 1, 3


def speak_corpus(folder: str | Path, sentences_per_voice: int = 8, sentences: Sequence[str] = SENTENCES) -> list[str]:
    """Write `folder/VOICE/NN.wav` for every accent, timbre and a pitch of its own; returns the names of the voices.

    Args:
        sentences: English, of which each voice says its own in turn.

    Raises:
        AudiovaeError: espeak-ng is not installed or does not start.
    """
    engine = _Engine()
    voices = []
    for a, accent in enumerate(ACCENTS):
        for t, timbre in enumerate(TIMBRES):
            voice = f"{accent}-{timbre}"
            voices.append(voice)
            first = 5 * len(voices)
            for i in range(sentences_per_voice):
                wave = engine.speak(
                    sentences[(first + i) % len(sentences)],
                    f"{accent}+{timbre}",
                    pitch=30 + (17 * a + 7 * t) % 40,
                    rate=140 + 9 * (t % 5),
                )
                with Writer(Path(folder) / voice / f"{i:02d}.wav", engine.sample_rate, 1, len(wave)) as writer:
                    writer.write(wave[None])
    return voices


class _Engine:
    """espeak-ng through its C interface: one per process, synchronous, never in a forked child."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise AudiovaeError("the toy corpus needs espeak-ng: pip install 'audiovae[demo]'") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        # The engine fails on paths longer than about 150 characters: give it a short one.
        self._short = tempfile.TemporaryDirectory(prefix="espeak")
        data = Path(self._short.name) / "espeak-ng-data"
        data.symlink_to(espeakng_loader.get_data_path())
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data.parent).encode(), _NO_EXIT)
        if self.sample_rate <= 0:
            raise AudiovaeError("espeak-ng does not start; reinstall it: pip install --force-reinstall espeakng-loader")
        self._parts: list[NDArray[np.int16]] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._receive)  # kept: C calls it until the end
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: str, pitch: int, rate: int) -> NDArray[np.float32]:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise AudiovaeError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._parts.clear()
        content = text.encode()
        self._library.espeak_Synth(content, ctypes.c_size_t(len(content) + 1), 0, 1, 0, _UTF8, None, None)
        return np.concatenate(self._parts) * np.float32(1 / 32768)

    def _receive(self, samples: Iterable[int], count: int, events: int) -> int:
        if count > 0 and samples:
            self._parts.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0
