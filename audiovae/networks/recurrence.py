"""Stochastic recurrences: the sample of one frame is an input of the next.

On a CPU the loop over time is C++ (`recurrence.cpp`), compiled at first use and kept in `$XDG_CACHE_HOME/audiovae`
(`~/.cache/audiovae`). On other devices, without a C++ compiler, or with the environment variable
`AUDIOVAE_NO_COMPILER=1`, it is PyTorch's: the same numbers, slower.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from audiovae.networks.scales import LARGEST_LOG_SCALE, LARGEST_SCALE, SCALES, SMALLEST_SCALE
from audiovae.settings import ScaleName

# Smallest and largest of the compiled scales, and whether they are exp(spread / 2), else bounded by a sigmoid.
_COMPILED: dict[ScaleName, tuple[float, float, bool]] = {
    "bounded": (SMALLEST_SCALE, LARGEST_SCALE, False),
    "exp": (SMALLEST_SCALE, math.exp(LARGEST_LOG_SCALE), True),
}
_VECTORS = {  # what the compiler may use, where PyTorch uses it
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
}


@dataclass(frozen=True)
class RecurrenceOutput:
    """What a `StochasticRecurrence` makes of its drive.

    Attributes:
        latents: z, one reparameterised path.
        loc: mean of z_t given the path up to t - 1.
        scale: standard deviation of z_t given the path up to t - 1.
        states: h, the LSTM's; None without an LSTM.
    """

    latents: Float[Tensor, "*batch frame latent"]
    loc: Float[Tensor, "*batch frame latent"]
    scale: Float[Tensor, "*batch frame latent"]
    states: Float[Tensor, "*batch frame state"] | None


class StochasticRecurrence(nn.Module):
    """z_t ~ N(loc_t, scale_t^2), whose parameters depend on z_{t-1} and on a drive, through small layers and an LSTM.

    From z_0 = h_0 = c_0 = 0, frame by frame,

        u_t             = tanh layers of z_{t-1}                            (`layers_in`; without: z_{t-1})
        h_t, c_t        = LSTM(W u_t + input_drive_t, h_{t-1}, c_{t-1})     (`lstm`, if any)
        r_t             = h_t                                               (without an LSTM: u_t)
        v_t             = drive_t + V r_t
        loc_t, spread_t = linear layer of tanh layers of tanh(v_t)          (`hidden`; without: v_t)
        scale_t         = that of `scales` for spread_t                     (`scale`)
        z_t             = loc_t + scale_t noise_t.

    V has no bias: the layer that makes the drive has it.

    Args:
        latent_dim: size of z.
        layers_in: widths of the tanh layers from z_{t-1} to u_t.
        lstm: width of the LSTM; None: no LSTM.
        hidden: widths of the tanh layers from r_t to the heads, drive_t being added inside the first tanh.
        scale: one that is not compiled steps in PyTorch.

    Attributes:
        drive_size: `hidden[0]`, or twice `latent_dim` without hidden layers.
        input_drive_size: four times `lstm`; 0 without an LSTM.
    """

    def __init__(
        self,
        latent_dim: int,
        layers_in: Sequence[int] = (),
        lstm: int | None = None,
        hidden: Sequence[int] = (),
        scale: ScaleName = "bounded",
    ) -> None:
        super().__init__()
        widths_in, widths_out = [latent_dim, *layers_in], [*hidden, 2 * latent_dim]
        self.latent_dim, self._scale = latent_dim, scale
        self.drive_size = widths_out[0]
        self.input_drive_size = 4 * (lstm or 0)
        self.layers_in = nn.ModuleList(map(nn.Linear, widths_in[:-1], widths_in[1:]))
        self.lstm = None if lstm is None else nn.LSTMCell(widths_in[-1], lstm)
        self.mixer = nn.Linear(lstm or widths_in[-1], self.drive_size, bias=False)  # V
        self.layers_out = nn.ModuleList(map(nn.Linear, widths_out[:-1], widths_out[1:]))

    def forward(
        self,
        drive: Float[Tensor, "*batch frame drive"],
        noise: Float[Tensor, "*batch frame latent"],
        input_drive: Float[Tensor, "*batch frame gates"] | None = None,
    ) -> RecurrenceOutput:
        """Step through the frames, in the precision of the weights also under `torch.autocast`.

        Args:
            drive: `[..., frame, drive_size]`.
            noise: standard normal, or zeros for the path of the means; it gets no gradient.
            input_drive: `[..., frame, input_drive_size]`, added to the LSTM's gates in PyTorch's order: input, forget,
                cell, output.

        Raises:
            ValueError: sizes that do not fit.
        """
        frames = tuple(drive.shape[:-1])
        for name, x, size in (
            ("drive", drive, self.drive_size),
            ("noise", noise, self.latent_dim),
            ("input_drive", input_drive, self.input_drive_size),
        ):
            if x is not None and (x.shape != (*frames, size) or size == 0):
                raise ValueError(f"{name} must have shape {(*frames, size)} here, got {tuple(x.shape)}")
        dtype = self.mixer.weight.dtype

        def frames_first(x: Tensor) -> Tensor:
            return x.to(dtype).reshape(-1, *x.shape[-2:]).transpose(0, 1).contiguous()

        def batch_first(x: Tensor) -> Tensor:
            return x.transpose(0, 1).reshape(*frames, x.shape[-1])

        with torch.autocast(drive.device.type, enabled=False):
            fits = drive.device.type == "cpu" and dtype in (torch.float32, torch.float64) and self._scale in _COMPILED
            loop = self._compiled_loop if fits and compiled() else self._loop
            latents, loc, scale, states = loop(
                frames_first(drive),
                frames_first(noise.detach()),
                None if input_drive is None else frames_first(input_drive),
            )
        return RecurrenceOutput(
            batch_first(latents),
            batch_first(loc),
            batch_first(scale),
            None if self.lstm is None else batch_first(states),
        )

    def _loop(self, drive: Tensor, noise: Tensor, input_drive: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n_batch = drive.shape[1]
        latent = drive.new_zeros(n_batch, self.latent_dim)
        state = cell = drive.new_zeros(n_batch, self.input_drive_size // 4)
        steps = []
        for t in range(len(drive)):
            mixed = latent
            for layer in self.layers_in:
                mixed = torch.tanh(layer(mixed))
            if self.lstm is not None:
                gates = functional.linear(mixed, self.lstm.weight_ih, self.lstm.bias_ih)
                gates = gates + functional.linear(state, self.lstm.weight_hh, self.lstm.bias_hh)
                gates = gates if input_drive is None else gates + input_drive[t]
                i, f, g, o = gates.chunk(4, dim=-1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                mixed = state = torch.sigmoid(o) * torch.tanh(cell)
            value = drive[t] + self.mixer(mixed)
            for layer in self.layers_out:
                value = layer(torch.tanh(value))
            loc, spread = value.chunk(2, dim=-1)
            scale = SCALES[self._scale](spread)
            latent = loc + scale * noise[t]
            steps.append((latent, loc, scale, state))
        latents, locs, scales, states = map(torch.stack, zip(*steps, strict=True))
        return latents, locs, scales, states

    def _compiled_loop(
        self, drive: Tensor, noise: Tensor, input_drive: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layers_in, layers_out = (
            list(self.layers_in.parameters()),
            list(self.layers_out.parameters()),
        )  # weight, bias, ...
        lstm: list[Tensor] = []
        if self.lstm is not None:
            weight_in, weight, *biases = self.lstm.parameters()
            lstm = [weight_in, weight, biases[0] + biases[1]]
        weights = [*layers_in, *lstm, self.mixer.weight, *layers_out]
        return _Recurrence.apply(
            drive,
            noise,
            input_drive,
            len(layers_in),
            len(lstm),
            _COMPILED[self._scale],
            torch.is_grad_enabled(),
            *weights,
        )


def _weight_gradient(deltas: Tensor, inputs: Tensor) -> Tensor:
    """Of W in W x: the sum over frames and batch of delta x^T."""
    return deltas.flatten(0, 1).t() @ inputs.flatten(0, 1)


class _Recurrence(torch.autograd.Function):
    """The loop of a `StochasticRecurrence` in C++: tensors are `[frame, batch, size]`."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(
        ctx: Any,
        drive: Tensor,
        noise: Tensor,
        input_drive: Tensor | None,
        n_in: int,
        n_lstm: int,
        of_scale: tuple[float, float, bool],
        keep: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layers_in, lstm, (mixer, *layers_out) = _split(weights, n_in, n_lstm)
        kept = torch.ops.audiovae.recurrence_forward(
            drive, noise, input_drive, layers_in, lstm, mixer, layers_out, *of_scale, keep
        )
        ctx.sizes = n_in, n_lstm, len(weights), input_drive is not None, of_scale
        if keep:
            ctx.save_for_backward(noise, *weights, *kept)
        latents, loc, scale, states = kept[:4]
        return latents[1:], loc, scale, states[1:]

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n_in, n_lstm, n_weights, has_input_drive, of_scale = ctx.sizes
        noise, *tensors = ctx.saved_tensors
        weights, kept = tensors[:n_weights], tensors[n_weights:]
        layers_in, lstm, (mixer, *layers_out) = _split(weights, n_in, n_lstm)
        deltas = torch.ops.audiovae.recurrence_backward(
            [grad.contiguous() for grad in grads],
            kept,
            noise,
            layers_in,
            lstm,
            mixer,
            layers_out,
            *of_scale,
        )
        latents, _, _, states, _, _, *hidden = kept
        gate_deltas, *deltas = deltas
        inputs = [latents[:-1], *hidden[: n_in // 2]]  # of the layers in, and of what follows them
        layer_grads = []
        for delta, x in zip(deltas[: n_in // 2], inputs, strict=False):
            layer_grads += [_weight_gradient(delta, x), delta.sum((0, 1))]
        if lstm:
            layer_grads += [_weight_gradient(gate_deltas, x) for x in (inputs[-1], states[:-1])] + [
                gate_deltas.sum((0, 1))
            ]
        mixer_delta, *deltas = deltas[n_in // 2 :]
        layer_grads.append(_weight_gradient(mixer_delta, states[1:] if lstm else inputs[-1]))
        for delta, x in zip(deltas, hidden[n_in // 2 :], strict=True):
            layer_grads += [_weight_gradient(delta, x), delta.sum((0, 1))]
        return mixer_delta, None, gate_deltas if has_input_drive else None, None, None, None, None, *layer_grads


def _split(weights: Sequence[Tensor], n_in: int, n_lstm: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return list(weights[:n_in]), list(weights[n_in : n_in + n_lstm]), list(weights[n_in + n_lstm :])


def compiled() -> bool:
    """Is the loop in C++ at hand? Compiles it where the cache does not have it."""
    return os.environ.get("AUDIOVAE_NO_COMPILER", "0") in ("", "0") and _load()


@functools.cache
def _load() -> bool:
    try:
        torch.ops.load_library(_build())
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        logging.getLogger("audiovae").warning(
            "the loop over time runs in PyTorch, slower than compiled: %s (AUDIOVAE_NO_COMPILER=1: no compiler, no "
            "warning)",
            error,
        )
        return False
    return True


def _build() -> Path:
    """Compile `recurrence.cpp` unless the cache has it.

    The name in the cache holds a hash of all that the result depends on. The file appears there complete or not at all,
    so that processes which compile at the same time need no lock.

    Raises:
        RuntimeError: no compiler, or it failed; or others can write where the result stands.
        OSError: the cache cannot be written.
    """
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [path for path in map(shutil.which, ("g++", "c++", "clang++")) if path][:1]
    )
    source = Path(__file__).with_suffix(".cpp")
    torch_folder = Path(torch.__file__).parent
    standard = re.search(r"C\+\+ Version: 20(\d\d)", torch.__config__.show())  # PyTorch's headers ask for its own
    capability = torch.backends.cpu.get_cpu_capability()
    flags = [
        f"-std=c++{standard[1] if standard else 17}",
        "-O3",
        "-shared",
        "-fPIC",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
        *_VECTORS.get(capability, ()),
    ]
    parts = (source.read_text(), torch.__version__, platform.machine(), *flags)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiovae"
    library = cache / f"recurrence-{digest}.so"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (cache, library):  # others could put there what is run here
        if path.exists() and (path.stat().st_uid != os.geteuid() or path.stat().st_mode & 0o022):
            raise RuntimeError(f"{path} is not yours alone to write: chmod go-w it, or set XDG_CACHE_HOME")
    if library.exists():
        return library
    if not compiler:
        raise RuntimeError("no C++ compiler found, install g++ or clang++")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        target = Path(folder) / library.name
        paths = [
            f"-I{torch_folder / 'include'}",
            f"-L{torch_folder / 'lib'}",
            str(source),
            "-ltorch_cpu",
            "-lc10",
            "-o",
            str(target),
        ]
        logging.getLogger("audiovae").info("compiling the loop over time, once: some 10 s")
        result = subprocess.run([*compiler, *flags, *paths], capture_output=True, text=True, timeout=600)
        if result.returncode:
            reasons = [line for line in result.stderr.splitlines() if "error" in line] or ["no reason given"]
            raise RuntimeError(f"{compiler[0]} failed: {reasons[0]}")
        target.chmod(0o755)  # whatever the umask
        target.replace(library)
    return library
