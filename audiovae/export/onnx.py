"""A prior as ONNX files, which run without Python, and `io.json`, which says what goes in and out of them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from audiovae import __version__
from audiovae.distributions.complex_normal import VARIANCE_FLOOR
from audiovae.errors import AudiovaeError, PathError
from audiovae.export.graphs import Decoder, Encoder, Resynthesis
from audiovae.export.step import StreamStep
from audiovae.locks import sweep, temporary_path
from audiovae.prior import AudioVAE

IO, STREAM_STEP, RESYNTHESIS = "io.json", "stream_step.onnx", "resynthesis.onnx"
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_DIFFERENCE = 1e-4  # of what a file computes from what PyTorch does, relative
_KEPT_FLOAT = ("short_time.", "counts", "low_counts")  # of the DFT and of the level: their products stay as they are
_LEVEL = {
    "active": "RMS of the frames whose power above 50 Hz is within 30 dB of that of the loudest",
    "peak": "largest absolute sample",
}


@dataclass(frozen=True)
class Port:
    """What goes in or out of a graph.

    Attributes:
        sizes: of its dimensions, by name where they are free.
        meaning: with its unit.
    """

    name: str
    sizes: tuple[str | int, ...]
    meaning: str


@dataclass(frozen=True)
class Graph:
    """A module to be exported.

    Attributes:
        example: the inputs that it is traced with.
        other: inputs of other sizes, that it is checked with.
        state: of a stream before its first sample, which goes in and out beside the ports.
        other_state: of one that has heard something, for the check.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    example: tuple[Tensor, ...]
    other: tuple[Tensor, ...]
    state: dict[str, Tensor] = field(default_factory=dict)
    other_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        bytes: of each file, by name.
        left_out: of each file that cannot be, the reason.
    """

    bytes: dict[str, int]
    left_out: dict[str, str]


def export(prior: AudioVAE, folder: str | Path, int8: bool = False, name: str = "", licence: str = "") -> Exported:
    """Write encoder.onnx, decoder.onnx, resynthesis.onnx, stream_step.onnx where the prior streams, and io.json.

    Each file was run, and gives what PyTorch does. All are written before the first of them appears in the folder,
    `io.json` last, with the SHA-256 of each.

    Args:
        prior: on the CPU.
        folder: is made; files of these names are replaced.
        int8: matrices of the networks in 8 bits, but for those of the step, whose gradients need more.
        name: of the model, for `io.json`.
        licence: of its weights, likewise.

    Raises:
        AudiovaeError: a library is missing, or the model has no graph.
        PathError: the folder cannot be written.
    """
    require()
    graphs, left_out = graphs_of(prior)
    with assembled(folder) as place:
        sizes = write(prior, graphs, place, int8, {"name": name, "licence": licence})
    return Exported(sizes, left_out)


def graphs_of(prior: AudioVAE) -> tuple[list[Graph], dict[str, str]]:
    """What can be exported; and of what cannot, the file and the reason.

    Raises:
        AudiovaeError: encoder and decoder have no graph.
    """
    graphs = [_encoder(prior), _decoder(prior), _resynthesis(prior)]
    try:
        return [*graphs, _stream_step(prior)], {}
    except AudiovaeError as error:
        return graphs, {STREAM_STEP: str(error)}


def write(prior: AudioVAE, graphs: list[Graph], place: Path, int8: bool, told: dict[str, str]) -> dict[str, int]:
    """Write some graphs and their `io.json` into a folder; returns the bytes of each file.

    Args:
        told: of the model, for `io.json`.
    """
    files: dict[str, Any] = {}
    for graph in graphs:
        path = place / graph.name
        _write(graph, path, prior.kind)
        is_int8 = int8 and not graph.state
        if is_int8:
            _quantise(path)
        content = path.read_bytes()
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "int8": is_int8}
        files[graph.name] = {**facts, **_ports(path, graph)}
    told_all = {**_facts(prior, told), "files": files, **_stream_facts(graphs)}
    (place / IO).write_text(json.dumps(told_all, indent=1) + "\n", encoding="utf-8")
    return {name: facts["bytes"] for name, facts in files.items()}


def require() -> None:
    """Raises AudiovaeError where a library of the extra is missing."""
    for library in _LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise AudiovaeError(f"export needs {library}; install it with: pip install 'audiovae[export]'") from error


@contextlib.contextmanager
def assembled(folder: str | Path) -> Iterator[Path]:
    """A temporary folder, whose files move into `folder` when the block ends without an error, `io.json` last.

    Raises:
        PathError: the folder cannot be written. Nothing is left behind.
    """
    folder = Path(folder)
    place, is_new = temporary_path(folder / "export"), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        place.mkdir()
        yield place
        for path in sorted(place.rglob("*"), key=lambda path: path.name == IO):
            target = folder / path.relative_to(place)
            target.mkdir(exist_ok=True) if path.is_dir() else os.replace(path, target)
    except OSError as error:
        raise PathError(
            folder, f"cannot be written ({error.strerror or error}); check the folder and the free space"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# The graphs ----------------------------------------------------------------------------------------------------------


def _encoder(prior: AudioVAE) -> Graph:
    if prior.vae.sees_phase:
        raise AudiovaeError(
            f"this {prior.kind} sees the phase (phase: true), and the graphs have no complex numbers; export another"
        )
    power = Port("power", ("batch", "frame", prior.vae.n_freqs), "|STFT|^2 of wave / level")
    examples = [torch.rand(batch, n_frames, prior.vae.n_freqs) for batch, n_frames in _sizes(prior)]
    return _conditioned(prior, "encoder.onnx", Encoder(prior.vae), [power], _latents(prior), [(x,) for x in examples])


def _decoder(prior: AudioVAE) -> Graph:
    log_psd = Port("log_psd", ("batch", "frame", prior.vae.n_freqs), "natural logarithm of the PSD at level 1")
    latents = [
        prior.vae.mean_path(*_condition(prior, (torch.rand(b, n, prior.vae.n_freqs),)))[0] for b, n in _sizes(prior)
    ]
    return _conditioned(prior, "decoder.onnx", Decoder(prior.vae), [_latents(prior)], log_psd, [(z,) for z in latents])


def _resynthesis(prior: AudioVAE) -> Graph:
    hop = prior.stft.hop_length
    ports = [
        Port("wave", ("batch", "sample"), f"sound at {prior.sample_rate} Hz"),
        Port("level", ("batch",), "what the wave is divided by; 0: measured, see level"),
    ]
    made = Port("resynthesis", ("batch", "sample"), "the same sound from its latents, with its own phase")
    examples: list[tuple[Tensor, ...]] = [
        (torch.randn(b, (n - 1) * hop - hop // 3), torch.zeros(b)) for b, n in _sizes(prior)
    ]
    return _conditioned(prior, RESYNTHESIS, Resynthesis(prior), ports, made, examples)


def _stream_step(prior: AudioVAE) -> Graph:
    step = StreamStep(prior)
    hop = step.hop_length
    heard = Port("samples", (hop,), f"the next hop of sound at {prior.sample_rate} Hz, one channel")
    made = Port("speech", (hop,), f"a hop of its speech, {step.latency - hop} samples before")
    sound, state = 0.1 * torch.randn(10, hop, generator=torch.Generator().manual_seed(0)), step.eval().start()
    with torch.no_grad():
        for samples in sound[1:]:
            _, state = step(samples, state)
    return Graph(STREAM_STEP, step, (heard,), (made,), (sound[0],), (sound[1],), step.start(), state)


def _latents(prior: AudioVAE) -> Port:
    what = f"centre of q(z | x), {prior.vae.latents.name} latents"
    return Port("latents", ("batch", "frame", prior.vae.latent_dim), what)


def _sizes(prior: AudioVAE) -> list[tuple[int, int]]:
    """Recordings and frames: of the example, and of the check."""
    return [(2, 13), (1, 10)]


def _conditioned(
    prior: AudioVAE, name: str, module: nn.Module, inputs: list[Port], output: Port, examples: list[tuple[Tensor, ...]]
) -> Graph:
    """A graph that takes the labels of a model that has some; raises what the model says where it has no graph."""
    if prior.vae.conditions.labels:
        inputs = [*inputs, Port("labels", ("batch", prior.vae.conditions.size), "one-hot, see labels")]
    example, other = (_condition(prior, inputs) for inputs in examples)
    with torch.no_grad():
        module(*other)
    return Graph(name, module.eval(), tuple(inputs), (output,), example, other)


def _condition(prior: AudioVAE, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not prior.vae.conditions.labels:
        return inputs
    return (*inputs, prior.vae.conditions.every()[:1].expand(len(inputs[0]), -1).contiguous())


# The files -----------------------------------------------------------------------------------------------------------


def _write(graph: Graph, path: Path, kind: str) -> None:
    """Trace, translate and check a graph.

    Raises:
        AudiovaeError: it has operations that ONNX has not.
    """
    sizes: dict[str, Any] = {}
    dynamic = tuple(
        {i: sizes.setdefault(size, Dim(size)) for i, size in enumerate(port.sizes) if isinstance(size, str)}
        for port in graph.inputs
    )
    options: dict[str, Any] = {"dynamic_shapes": dynamic}
    if graph.state:
        options = {"kwargs": {"state": graph.state}}
    try:
        with torch.no_grad(), _silent():
            program = torch.onnx.export(
                graph.module,
                graph.example,
                dynamo=True,
                verbose=False,
                input_names=[*(port.name for port in graph.inputs), *graph.state],
                output_names=[*(port.name for port in graph.outputs), *(f"next_{name}" for name in graph.state)],
                **options,
            )
            assert program is not None
            program.save(path)
            difference = _difference(graph, path)
    except Exception as error:  # whatever stands in the way of torch's exporter or of the runtime
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise AudiovaeError(
            f"{graph.name}: this {kind} cannot be exported by torch {torch.__version__} ({reason})"
        ) from error
    if not difference < _LARGEST_DIFFERENCE:
        raise AudiovaeError(
            f"{graph.name}: what the file gives is {difference:.1g} off what PyTorch {torch.__version__} does; "
            "export it with another version"
        )


def _difference(graph: Graph, path: Path) -> float:
    """Relative, of the first output, for inputs that the graph was not traced with."""
    arguments = (*graph.other, graph.other_state) if graph.state else graph.other
    expected = graph.module(*arguments)
    expected = expected[0] if graph.state else expected
    feeds = dict(zip((port.name for port in graph.inputs), graph.other, strict=True)) | graph.other_state
    found = session(path).run(None, {name: values.numpy() for name, values in feeds.items()})[0]
    return float(np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy()))


def session(path: str | Path) -> Any:
    """A file in the runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _quantise(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and any(name in constants and not name.startswith(_KEPT_FLOAT) for name in node.input)
    ]
    with _silent():
        quantize_dynamic(
            path, path, op_types_to_quantize=["MatMul"], nodes_to_quantize=products, per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the libraries say of themselves, such as of functions that they are about to rename."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# What io.json says ---------------------------------------------------------------------------------------------------


def _ports(path: Path, graph: Graph) -> dict[str, Any]:
    import onnx

    model = onnx.load(path).graph
    types = {
        value.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        for value in [*model.input, *model.output]
    }

    def told(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [
            {"name": port.name, "dtype": types[port.name], "shape": list(port.sizes), "meaning": port.meaning}
            for port in ports
        ]

    state = [
        {
            "input": name,
            "output": f"next_{name}",
            "dtype": types[name],
            "shape": list(values.shape),
            "initial": values.flatten().tolist() if values.any() else 0,
        }
        for name, values in graph.state.items()
    ]
    return {"inputs": told(graph.inputs), "outputs": told(graph.outputs), **({"state": state} if state else {})}


def _facts(prior: AudioVAE, told: dict[str, str]) -> dict[str, Any]:
    stft = prior.stft
    return {
        "format": 1,
        "audiovae": __version__,
        "model": {**told, "kind": prior.kind, "sha256": prior.model_hash()},
        "sample_rate": prior.sample_rate,
        "stft": {
            "n_fft": stft.n_fft,
            "hop_length": stft.hop_length,
            "window": stft.window_name,
            "n_freqs": stft.n_freqs,
            "frames": "1 + ceil(n_samples / hop_length), frame t centred on sample t hop_length, zeros beyond the ends",
            "scale": "not normalised: X_f = sum_n window_n x_n exp(-2 pi i f n / n_fft)",
        },
        "level": {
            "rule": prior.level_rule,
            "meaning": _LEVEL[prior.level_rule],
            "rumble": "resynthesis.onnx turns bins below 50 Hz down to 15 dB below the level, and puts them back; the "
            "other files take what they are given",
        },
        "floors": {"power": VARIANCE_FLOOR, "psd": getattr(prior.vae.settings, "variance_floor", VARIANCE_FLOOR)},
        "labels": {label: list(classes) for label, classes in prior.vae.conditions.labels.items()},
    }


def _stream_facts(graphs: list[Graph]) -> dict[str, Any]:
    for graph in graphs:
        if isinstance(step := graph.module, StreamStep):
            facts = {
                "file": graph.name,
                "hop_length": step.hop_length,
                "lookahead_frames": step.lookahead,
                "latency_samples": step.latency,
                "n_early": step.n_early,
                "use": "feed the initial state first, and each step's next_NAME as NAME to the next step; the first "
                "n_early hops that come out stand before the wave; n_early hops of zeros at the end bring its rest",
            }
            return {"stream": facts}
    return {}
