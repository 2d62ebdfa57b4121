"""A microphone cleaned while one speaks: the page sends blocks of samples, and gets back their speech.

Not by gradio's own streaming, whose sound comes compressed and whole seconds later.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from audiovae.app.denoise import findings
from audiovae.app.sounds import load_prior, one_line, scale_line, sound_output, spectrograms, write_sound
from audiovae.audio import Wave
from audiovae.errors import AudiovaeError
from audiovae.prior import AudioVAE
from audiovae.separation import stream

PRIOR = "speech-16k-live"
PATH = "/live"
KEPT_SECONDS = 60.0  # of what was heard last, to listen to again
LARGEST_BLOCK_BYTES = 4 * 192000
RATES = (8000, 192000)
LOOKAHEADS = (0, 1, 2)
_MOST_KEPT = 4  # conversations
_SCRIPT = Path(__file__).with_name("live.js")

Samples = Float32[np.ndarray, " _"]


class Conversation:
    """One microphone on its way through a stream, and the last minute of it.

    Attributes:
        sample_rate: of the microphone, in Hz.
        latency_seconds: from what goes in to its speech.
        n_heard: samples so far.
    """

    def __init__(self, prior: AudioVAE, sample_rate: int, lookahead: int) -> None:
        self._stream = stream(prior, sample_rate=sample_rate, lookahead=lookahead)
        self.sample_rate = sample_rate
        self.latency_seconds = self._stream.latency / sample_rate
        self.n_heard = 0
        self._heard: list[Samples] = []
        self._speech: list[Samples] = []

    def push(self, block: Samples) -> Samples:
        """Take the next samples; the speech of those `latency_seconds` before, as many.

        Raises:
            AudiovaeError: some are NaN or infinite.
        """
        try:
            speech = self._stream.push(block)
        except ValueError as error:
            raise AudiovaeError(f"microphone: {error}") from error
        self.n_heard += len(block)
        for kept, part in ((self._heard, block), (self._speech, speech)):
            kept.append(part)
            while sum(map(len, kept)) - len(kept[0]) >= KEPT_SECONDS * self.sample_rate:
                kept.pop(0)
        return speech

    def last(self) -> tuple[Wave, Wave]:
        """What was heard last, and its speech, `[1, sample]` each: as they came, the speech so much later."""
        if not self._heard:
            raise AudiovaeError("nothing was heard; is the microphone muted?")
        return np.concatenate(self._heard)[None], np.concatenate(self._speech)[None]


class Conversations:
    """Those of the pages that are open, by secret names; of those that ended only a few are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Conversation] = OrderedDict()

    def begin(self, sample_rate: Any, lookahead: Any) -> tuple[str, Conversation]:
        """Raises AudiovaeError: what a page asks for is none of what it can."""
        if type(sample_rate) is not int or not RATES[0] <= sample_rate <= RATES[1]:
            raise AudiovaeError(f"the microphone's rate must be from {RATES[0]} to {RATES[1]} Hz, got {sample_rate!r}")
        if lookahead not in LOOKAHEADS:
            raise AudiovaeError(f"the look-ahead must be one of {LOOKAHEADS} frames, got {lookahead!r}")
        name, conversation = secrets.token_urlsafe(), Conversation(load_prior(PRIOR), sample_rate, lookahead)
        self._kept[name] = conversation
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return name, conversation

    def of(self, name: str) -> Conversation:
        """Raises AudiovaeError: it is gone."""
        if name not in self._kept:
            raise AudiovaeError("this recording is gone; start again")
        return self._kept[name]

    async def answer_begin(self, request: Any) -> Any:
        """A page's rate and look-ahead, as JSON, are answered with the name of the conversation and its latency."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse, PlainTextResponse

        try:
            asked = await request.json()
            name, conversation = await run_in_threadpool(self.begin, asked["sample_rate"], asked["lookahead"])
        except AudiovaeError as error:
            return PlainTextResponse(str(error), 400)
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse("the page asks for no conversation", 400)
        return JSONResponse({"name": name, "latency_ms": 1000 * conversation.latency_seconds})

    async def answer_block(self, request: Any) -> Any:
        """Samples are answered with as many: 32-bit floats, little-endian, of one channel."""
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse, Response

        content = bytearray()
        try:
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BLOCK_BYTES:
                    return PlainTextResponse("a block is too long", 413)
            block = np.frombuffer(content, "<f4").astype(np.float32)
            speech = await run_in_threadpool(self.of(request.path_params["name"]).push, block)
        except AudiovaeError as error:
            return PlainTextResponse(str(error), 400)
        except ValueError:
            return PlainTextResponse("a block holds half a sample", 400)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        return Response(speech.astype("<f4").tobytes(), media_type="application/octet-stream")


CONVERSATIONS = Conversations()

_CONTROLS = f"""<div class="live">
<button id="live-start">Start</button> <button id="live-stop" disabled>Stop</button>
<label>Hear <select id="live-hear"><option value="speech">the speech</option><option value="microphone">the microphone
</option><option value="nothing">nothing</option></select></label>
<label>Look-ahead <select id="live-lookahead">{
    "".join(f'<option value="{n}"{" selected" * (n == 1)}>{n} frame{"s" * (n != 1)}</option>' for n in LOOKAHEADS)
}</select></label>
<p id="live-told" role="status">Wear headphones: what comes out of loudspeakers goes in again.</p></div>"""


def add_tab(folder: Path, models: list[str]) -> None:
    """Build the tab: see `audiovae.app.denoise.add_tab`; there is one prior that sees no future."""
    import gradio as gr

    def listen(event) -> list[Any]:  # type: ignore[no-untyped-def]  # gradio reads the annotation below
        with one_line():
            conversation = CONVERSATIONS.of(event.name)
            heard, speech = conversation.last()
            parts = {"microphone": heard, "speech": speech}
            rate, later = conversation.sample_rate, 1000 * conversation.latency_seconds
            told = f"{conversation.n_heard / rate:.1f} s at {rate} Hz; the speech comes {later:.1f} ms later. "
            told += findings(heard, speech, None)
            waves = [write_sound(folder, f"live-{name}", wave, rate) for name, wave in parts.items()]
            return [told, gr.Column(visible=True), *waves, *spectrograms(parts, rate).values()]

    listen.__annotations__ = {"event": gr.EventData}
    controls = gr.HTML(_CONTROLS, js_on_load=_SCRIPT.read_text(encoding="utf-8"), elem_id="live")
    told = gr.Markdown(elem_id="live-heard-told")
    with gr.Column(visible=False) as results:
        gr.HTML(scale_line())
        with gr.Row():
            heard, seen = [], []
            for part in ("microphone", "speech"):
                with gr.Column(min_width=280):
                    heard.append(sound_output(f"live-{part}", part))
                    seen.append(gr.HTML(elem_classes="picture"))
    controls.submit(listen, None, [told, results, *heard, *seen], concurrency_id="work", show_progress_on=told)
