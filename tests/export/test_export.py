"""ONNX files in their runtime, the page in Chromium, and what the verb says. About 90 seconds, most of them torch's
exporter at work.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from mixtures import make_alive, untrained
from numpy.typing import NDArray
from scipy.signal import resample_poly

from audiovae import AudioVAE
from audiovae.cli.main import main
from audiovae.errors import AudiovaeError, LatentError, PathError
from audiovae.export import export, export_page
from audiovae.export.graphs import Resynthesis
from audiovae.export.step import StreamStep
from audiovae.metrics import si_sdr
from audiovae.separation import stream

RATE = 16000
Wave = NDArray[np.float32]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def labelled() -> AudioVAE:
    """Context and labels, short frames (256 / 64)."""
    return make_alive(untrained("DynamicVAE", labels={"digit": ("0", "1")}))


@pytest.fixture(scope="module")
def files(labelled: AudioVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, exported (about 10 s)."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("export") / "files"
    made = export(labelled, folder, name="labelled")
    assert set(made.bytes) == {"encoder.onnx", "decoder.onnx", "resynthesis.onnx"}
    assert "sees no future" in made.left_out["stream_step.onnx"]
    return folder


@pytest.fixture(scope="module")
def live() -> AudioVAE:
    return AudioVAE.from_pretrained("speech-16k-live")


@pytest.fixture(scope="module")
def page(live: AudioVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of speech-16k-live (about 30 s)."""
    pytest.importorskip("onnxscript")
    if shutil.which("npm") is None:
        pytest.skip("no npm to bring the browser's runtime")
    folder = tmp_path_factory.mktemp("web") / "page"
    try:
        made = export_page(live, folder, name="speech-16k-live", licence="cc-by-4.0")
    except AudiovaeError as error:
        if "npm does not bring" in str(error):
            pytest.skip(str(error))
        raise
    assert made.left_out == {}
    assert made.bytes == {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return folder


@pytest.fixture(scope="module")
def noisy_speech(data: Path) -> Wave:
    """Two seconds of an utterance of a training speaker in rain at 10 dB: one on which rounding has little effect."""
    apart = (data / "librispeech-mini/validation_speakers.txt").read_text().split()
    speakers = [file for file in sorted((data / "librispeech-mini").rglob("*.flac")) if file.parts[-3] not in apart]
    clean, _ = soundfile.read(speakers[0], dtype="float32", start=RATE, frames=2 * RATE)
    rain, rate = soundfile.read(sorted((data / "esc10-noise/rain").glob("*.ogg"))[0], dtype="float32", always_2d=True)
    noise = resample_poly(rain[:, 0], RATE, rate)[: len(clean)]
    mixture = clean + noise * np.linalg.norm(clean) / np.linalg.norm(noise) / np.sqrt(10)
    return (np.rint(mixture * 2**15) / 2**15).astype(np.float32)


def denoised(prior: AudioVAE, wave: Wave) -> Wave:
    one = stream(prior)
    return np.concatenate([one.push(wave), one.flush()])[one.latency :]


def decibels(expected: Wave, found: Wave) -> float:
    """Of a signal over its error."""
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


# ---------------------------------------------------------------------------------------------------------------------
# The files


@pytest.mark.parametrize("n_samples", [1, 200, 640, 4096, 5001])
def test_files_give_what_pytorch_does_at_any_length(n_samples: int, files: Path, labelled: AudioVAE) -> None:
    """Shorter than a window, multiples of the hop (64) and not."""
    from audiovae.export.onnx import session

    torch.manual_seed(n_samples)
    wave, labels = 0.1 * torch.randn(3, n_samples), labelled.vae.conditions.every()[[0, 1, 1]]
    level = torch.tensor([0.1, 0.0, 0.2])
    feeds = {"wave": wave.numpy(), "level": level.numpy(), "labels": labels.numpy()}
    (found,) = session(files / "resynthesis.onnx").run(None, feeds)
    expected = labelled.resynthesize(wave[::2], level=level[::2], condition=labels[::2])
    np.testing.assert_allclose(found[::2], expected, atol=1e-4 * float(expected.abs().max()))
    alone = Resynthesis(labelled)(wave, level, labels)  # with the level that is measured
    np.testing.assert_allclose(found, alone, atol=1e-4 * float(alone.abs().max()))

    spectrogram, _ = labelled.analyse(wave, 0.1)
    power = spectrogram.abs().square()
    expected = labelled.vae.infer(power, labels, mean=True).latents
    (latents,) = session(files / "encoder.onnx").run(None, {"power": power.numpy(), "labels": labels.numpy()})
    np.testing.assert_allclose(latents, expected, atol=1e-4 * float(expected.abs().max()))
    psd = labelled.psd(expected, labels)
    (log_psd,) = session(files / "decoder.onnx").run(None, {"latents": expected.numpy(), "labels": labels.numpy()})
    np.testing.assert_allclose(np.exp(log_psd), psd, rtol=1e-3)


def test_io_json_says_what_goes_in_and_out(files: Path, labelled: AudioVAE) -> None:
    from audiovae.export.onnx import session

    told = json.loads((files / "io.json").read_text())
    assert {*told["files"], "io.json"} == {path.name for path in files.iterdir()}
    for name, facts in told["files"].items():
        assert hashlib.sha256((files / name).read_bytes()).hexdigest() == facts["sha256"]
        there = session(files / name)
        for ports, found in ((facts["inputs"], there.get_inputs()), (facts["outputs"], there.get_outputs())):
            assert [port["name"] for port in ports] == [value.name for value in found]
            fixed = [[n for n in value.shape if isinstance(n, int)] for value in found]
            assert [[n for n in port["shape"] if isinstance(n, int)] for port in ports] == fixed
    assert told["model"] == {
        "name": "labelled", "licence": "", "kind": "DynamicVAE", "sha256": labelled.model_hash()
    }  # fmt: skip
    assert (told["sample_rate"], told["labels"]) == (RATE, {"digit": ["0", "1"]})
    assert (told["level"]["rule"], told["floors"]) == ("active", {"power": 1e-6, "psd": 1e-6})
    assert "stream" not in told


def test_the_step_is_the_stream(page: Path, live: AudioVAE, noisy_speech: Wave) -> None:
    """From the states of the library's steps, each step; and by itself, over the whole sound, as far as rounding lets
    it.
    """
    from audiovae.export.onnx import session

    told = json.loads((page / "model/io.json").read_text())
    facts, parts = told["stream"], told["files"]["stream_step.onnx"]["state"]
    hop, n_early = facts["hop_length"], facts["n_early"]
    assert facts["latency_samples"] == stream(live).latency == 1280
    step, run = StreamStep(live), session(page / "model/stream_step.onnx").run
    state = {p["input"]: np.broadcast_to(np.array(p["initial"], p["dtype"]), (1, *p["shape"]))[0] if p["initial"] == 0
             else np.array(p["initial"], p["dtype"]).reshape(p["shape"]) for p in parts}  # fmt: skip
    for name, values in step.start().items():
        np.testing.assert_array_equal(state[name], values)
    padded = np.pad(noisy_speech, (0, n_early * hop + -len(noisy_speech) % hop))
    spoken, worst = [], 0.0
    for i, samples in enumerate(padded.reshape(-1, hop)):
        speech, *after = run(None, {"samples": samples, **state})
        if i % 8 == 0:
            expected, _ = step(torch.from_numpy(samples), {name: torch.tensor(state[name]) for name in state})
            scale = float(np.abs(padded).max())
            worst = max(worst, float(np.abs(speech - expected.numpy()).max()) / scale)
        state = dict(zip(state, after, strict=True))
        spoken.append(speech)
    assert worst < 1e-4
    found = np.concatenate(spoken)[n_early * hop :][: len(noisy_speech)]
    assert decibels(denoised(live, noisy_speech), found) > 40


def test_the_python_of_the_documentation_denoises(
    page: Path, live: AudioVAE, noisy_speech: Wave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "live").symlink_to(page / "model")
    soundfile.write(tmp_path / "noisy.wav", noisy_speech, RATE)
    text = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found, _ = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    assert float(si_sdr(denoised(live, noisy_speech), found)) > 40


def test_int8_is_a_third_of_the_size_and_as_good(page: Path, speech: torch.Tensor, tmp_path: Path) -> None:
    from audiovae.export.onnx import _quantise, session

    small = tmp_path / "resynthesis.onnx"
    shutil.copy(page / "model/resynthesis.onnx", small)
    _quantise(small)
    assert small.stat().st_size < 0.4 * (page / "model/resynthesis.onnx").stat().st_size
    feeds = {"wave": speech[None].numpy(), "level": np.zeros(1, np.float32)}
    plain, rough = (
        float(si_sdr(speech.numpy(), session(path).run(None, feeds)[0][0]))
        for path in (page / "model/resynthesis.onnx", small)
    )
    assert abs(plain - rough) < 0.3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("RVAE", {}, "RVAE infers each latent vector from the one before it"),
        ("STORN", {}, "STORN feeds on the sound before"),
        ("LabelVAE", {}, "a LabelVAE predicts labels"),
        ("FrameVAE", {"phase": True}, "this FrameVAE sees the phase"),
    ],
)
def test_a_model_without_a_graph_is_refused_by_name(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises((LatentError, AudiovaeError), match=message):
        export(untrained(name, **settings), tmp_path / "files")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_export_that_fails(frame: AudioVAE, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/ort.wasm.min.js").write_text("other")
    with pytest.raises(PathError, match=r"ort.wasm.min.js: is not that of onnxruntime-web [\d.]+: its SHA-256"):
        export_page(frame, tmp_path / "page", runtime=tmp_path)
    with pytest.raises(PathError, match=r"is missing; give the folder of onnxruntime-web"):
        export_page(frame, tmp_path / "page", runtime=tmp_path / "nowhere")
    assert not (tmp_path / "page").exists()


def test_a_page_asks_for_no_labels(labelled: AudioVAE, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(
        AudiovaeError, match="--web: the page asks for no labels, and this model is conditioned on digit"
    ):
        export_page(labelled, tmp_path / "page")


# ---------------------------------------------------------------------------------------------------------------------
# The verb


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export MODEL", "audiovae: export: give -o DIR for ONNX files, or --web DIR for a page"),
        ("export MODEL -o a --web b", "audiovae: export: give -o DIR for ONNX files, or --web DIR for a page"),
        ("export MODEL -o a --runtime b", "audiovae: export: --runtime is of the page; give --web DIR with it"),
        ("export MODEL -o there", "audiovae: there: exists already; --overwrite replaces it"),
        ("export MODEL -o there/file --overwrite", "audiovae: there/file: is a file; name a folder"),
        ("export speech-16k-liv -o out", "audiovae: speech-16k-liv: no such model; did you mean 'speech-16k-live'?"),
        ("export there -o out", "audiovae: there: is not a model folder: it has no config.json"),
        ("export MODEL -o out --int9", "did you mean '--int8'?"),
    ],
)
def test_what_is_wrong_is_one_line(
    command: str, message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    with pytest.raises(SystemExit) as left:
        main(command.replace("MODEL", str(model_folder)).split())
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(
    library: str, frame: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        AudiovaeError, match=re.escape(f"export needs {library}; install it with: pip install 'audiovae[")
    ):
        export(frame, tmp_path / "files")


def test_a_page_needs_npm_or_the_runtime(frame: AudioVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudiovaeError, match=r"--web needs npm.*install Node.js, or give the folder of onnxruntime-web"):
        export_page(frame, tmp_path / "page")
    (tmp_path / "npm").write_text(f"#!{sys.executable}\nimport sys\nsys.exit('npm error code ENOTFOUND')\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(
        AudiovaeError, match=r"npm does not bring onnxruntime-web [\d.]+ \(ENOTFOUND\); check the network"
    ):
        export_page(frame, tmp_path / "page")


# ---------------------------------------------------------------------------------------------------------------------
# The page


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(page: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(page)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_does_what_the_library_does(address: str, live: AudioVAE, noisy_speech: Wave, tmp_path: Path) -> None:
    """A file and the microphone; no request leaves the machine, nothing is told in the console."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium")
    soundfile.write(tmp_path / "mixture.wav", noisy_speech, RATE, "PCM_16")
    soundfile.write(tmp_path / "heard.wav", resample_poly(noisy_speech, 3, 1), 3 * RATE, "PCM_16")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", *microphone, f"--use-file-for-fake-audio-capture={tmp_path / 'heard.wav'}"],
        )
        opened = browser.new_page(viewport={"width": 390, "height": 800})
        opened.set_default_timeout(120_000)
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(address)
        status = opened.locator("#status")
        status.filter(has_text="Ready").wait_for()
        facts = opened.inner_text("#facts")
        opened.set_input_files("#file", tmp_path / "mixture.wav")
        status.filter(has_text="done").wait_for()
        told = status.inner_text()
        for name in ("denoised", "resynthesised"):
            with opened.expect_download() as download:
                opened.click(f"#{name} a")
            download.value.save_as(tmp_path / f"{name}.wav")
        for width in (390, 1280):
            opened.set_viewport_size({"width": width, "height": 800})
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.set_input_files("#file", {"name": "no.wav", "mimeType": "audio/wav", "buffer": b"nonsense"})
        status.filter(has_text="cannot read it").wait_for()
        opened.click("#record")
        status.filter(has_text=re.compile(r"Recording: [1-9]")).wait_for()
        opened.click("#record")
        status.filter(has_text=re.compile(r"Your recording .*done")).wait_for()
        recorded = status.inner_text()
        browser.close()
    assert said == []
    assert all(url.startswith((address, f"blob:{address}")) for url in asked)
    assert "speech-16k-live, 16000 Hz" in facts
    assert "80 ms" in facts
    assert "cc-by-4.0" in facts
    assert told.startswith("mixture.wav (at its own 16000 Hz): done.")
    assert re.match(r"Your recording \(resampled from \d+ to 16000 Hz\): done", recorded)
    for name, expected in (
        ("denoised", denoised(live, noisy_speech)),
        ("resynthesised", live.resynthesize(noisy_speech)),
    ):
        found, rate = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
        assert (rate, len(found)) == (RATE, len(noisy_speech))
        assert decibels(expected, found) > 40, name
