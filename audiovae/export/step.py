"""One step of a stream as a torch module: a hop of samples and the state in, a hop of speech and the next state out.

It is `audiovae.separation.streaming` for one channel at the prior's rate, whose level is followed. Nothing in it
branches, so that it is one graph: frames of the window that do not exist yet are zero, and are kept so by factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from audiovae.distributions.complex_normal import EULER_GAMMA, VARIANCE_FLOOR
from audiovae.export.graphs import DFT
from audiovae.export.probes import Probes
from audiovae.level import ACTIVE_RANGE_DB
from audiovae.models import DynamicVAE
from audiovae.networks.log_power import LogPower
from audiovae.networks.recurrence import LARGEST_SCALE, SMALLEST_SCALE
from audiovae.networks.temporal import TemporalBlock
from audiovae.prior import AudioVAE
from audiovae.separation import stream, stream_noise, stream_speech, streaming
from audiovae.separation.inference.energy import LARGEST_LOG_VARIANCE
from audiovae.separation.methods import COLOUR_DEVIATION, PRIOR_WEIGHT
from audiovae.separation.sources.factors import bands

State = dict[str, Tensor]
Spectrum = Float[Tensor, " freq"]
Number = Int[Tensor, " number"]


class StreamStep(nn.Module):
    """See the module.

    Args:
        prior: of speech, causal.
        lookahead: frames.

    Raises:
        AudiovaeError: a prior that cannot be used so.

    Attributes:
        latency: samples from what goes in to its speech.
        n_early: hops that come out before the first one of the wave.
    """

    window: Tensor
    envelope: Tensor
    shares: Tensor

    def __init__(self, prior: AudioVAE, lookahead: int = 1) -> None:
        super().__init__()
        live = stream(prior, lookahead=lookahead)  # which refuses other priors
        stft, self.lookahead, self.latency = prior.stft, lookahead, live.latency
        self.hop_length = hop = stft.hop_length
        self.n_early = stft.n_fft // hop - 1 + lookahead
        self.dft = DFT(stft.n_fft)
        squares = stft.window.square().reshape(-1, hop)
        self.register_buffer("window", stft.window.clone(), persistent=False)
        self.register_buffer("envelope", squares.sum(0), persistent=False)
        self.register_buffer("shares", squares.flip(0).sum(1).cumsum(0) / squares.sum(), persistent=False)
        self.noise = Noise(stft.n_freqs, hop / prior.sample_rate)
        self.level = Level(prior)
        self.speech = Speech(prior, max(streaming.WINDOW_FRAMES, lookahead + 1))

    def start(self) -> State:
        """Before the first sample."""
        n_kept, n_freqs = self.lookahead + 1, self.dft.n_freqs
        return {
            "n_frames": torch.zeros(1, dtype=torch.int32),
            "heard": torch.zeros(len(self.window)),
            "made": torch.zeros(len(self.window)),
            **{name: torch.zeros(n_kept, n_freqs) for name in ("real", "imag", "powers")},
            **self.noise.start(),
            **self.level.start(),
            **self.speech.start(),
        }

    def forward(self, samples: Float[Tensor, " sample"], state: State) -> tuple[Float[Tensor, " sample"], State]:
        hop, n_before = self.hop_length, state["n_frames"].long()
        heard = torch.cat([state["heard"][hop:], samples])
        real, imag = self.dft(heard * self.window)
        share = self.shares[n_before.clamp(max=len(self.shares) - 1)]
        power = ((real.square() + imag.square()) / share).clamp(max=streaming.LARGEST)
        kept = {"real": real, "imag": imag, "powers": power}
        state = {**state, "heard": heard, **{name: pushed(state[name], row) for name, row in kept.items()}}
        gain, state = self._gain(n_before, state)
        image = self.dft.inverse(gain * state["real"][0], gain * state["imag"][0]) * self.window
        made = functional.pad(state["made"][hop:], (0, hop)) + image
        state = {**state, "made": made, "n_frames": state["n_frames"] + 1}
        return made[:hop] / self.envelope, state

    def _gain(self, n_before: Number, state: State) -> tuple[Spectrum, State]:
        """Of the frame that has seen its look-ahead."""
        heard, loud = state["powers"][-1], state["powers"][0]
        state = self.noise(heard, n_before, state)
        noise = self.noise.spectrum(state)
        mean_square, state = self.level(heard, state)
        over_noise = streaming.LEAST_OVER_NOISE * self.level.mean_square(noise)
        mean_square = torch.maximum(mean_square, over_noise).clamp(min=streaming.LEAST)
        floor = VARIANCE_FLOOR * mean_square
        noise = torch.maximum(noise, floor)
        psds, state = self.speech(heard, noise, mean_square, n_before, state)
        speech = psds[-1 - self.lookahead]
        variance = speech + noise
        is_there = n_before >= self.lookahead
        noise_bands = self.noise.levels.update(state["noise_bands"], noise / variance, loud / variance)
        colour_bands = self.speech.colour.update(state["colour_bands"], speech / variance, loud / variance)
        state = {
            **state,
            "noise_bands": torch.where(is_there, noise_bands, state["noise_bands"]),
            "colour_bands": torch.where(is_there, colour_bands, state["colour_bands"]),
        }
        gain = om_lsa(speech, torch.maximum(self.noise.spectrum(state), floor), loud)
        return torch.where(is_there, gain, 0.0), state


def pushed(rows: Float[Tensor, "row number"], row: Float[Tensor, " number"]) -> Float[Tensor, "row number"]:
    """The rows without the oldest one, and a new one."""
    return torch.cat([rows[1:], row[None]])


def om_lsa(speech: Spectrum, noise: Spectrum, heard: Spectrum) -> Spectrum:
    """See `streaming.gain`."""
    wiener = speech / (speech + noise)
    v = (wiener * (heard / noise)).clamp(1e-6, 500.0)
    log_amplitude = (wiener * torch.exp(exponential_integral(v) / 2)).clamp(max=1.0)
    absent = streaming.ABSENT / (1 - streaming.ABSENT)
    presence = 1 / (1 + absent * (1 + speech / noise) * torch.exp(-v))
    return (wiener + log_amplitude**presence * streaming.LEAST_GAIN ** (1 - presence)) / 2


def exponential_integral(x: Tensor) -> Tensor:
    """E_1(x) = integral from x of exp(-t) / t, to 2e-7 below 1 and a relative 5e-8 above.

    Reference: M. Abramowitz, I. Stegun, "Handbook of mathematical functions", 1964, 5.1.53 and 5.1.56.
    """
    small, large = x.clamp(max=1.0), x.clamp(min=1.0)
    below = -small.log() + _polynomial(
        small, 0.00107857, -0.00976004, 0.05519968, -0.24991055, 0.99999193, -EULER_GAMMA
    )
    numerator = _polynomial(large, 1.0, 8.5733287401, 18.0590169730, 8.6347608925, 0.2677737343)
    denominator = _polynomial(large, 1.0, 9.5733223454, 25.6329561486, 21.0996530827, 3.9584969228)
    return torch.where(x < 1, below, torch.exp(-large) / large * numerator / denominator)


def _polynomial(x: Tensor, *coefficients: float) -> Tensor:
    result = torch.zeros_like(x)
    for coefficient in coefficients:
        result = result * x + coefficient
    return result


class Bands(nn.Module):
    """`stream_noise.BandLevels`, whose state is `[3, band]`: log level, fall, rise."""

    shares: Tensor

    def __init__(self, n_freqs: int, n_bands: int, deviation: float, stiffness: float, forgetting: float) -> None:
        super().__init__()
        self.register_buffer("shares", bands(n_bands, torch.zeros(n_freqs)), persistent=False)
        self.forgetting, self.stiffness = forgetting, stiffness / deviation**2

    def factor(self, levels: Float[Tensor, "3 band"]) -> Spectrum:
        return torch.exp(self.shares @ levels[0])

    def update(self, levels: Float[Tensor, "3 band"], share: Spectrum, excess: Spectrum) -> Float[Tensor, "3 band"]:
        log_level, fall, rise = levels
        fall = self.forgetting * fall + (share * excess) @ self.shares
        rise = self.forgetting * rise + share @ self.shares
        step = (fall - rise - self.stiffness * log_level) / (fall + rise + self.stiffness)
        moved = torch.exp(step)
        return torch.stack([log_level + step, fall / moved, rise * moved])


class Noise(nn.Module):
    """`stream_noise.QuietNoise`: all frequencies are looked through with every frame, and those of a part are kept."""

    expected: Tensor

    def __init__(self, n_freqs: int, seconds_per_frame: float) -> None:
        super().__init__()
        n_rows, quantile = stream_noise.ROWS, stream_noise.QUANTILE
        self.n_freqs = n_freqs
        self.stride = max(1, round(stream_noise.QUIET_SECONDS / seconds_per_frame / n_rows))
        self.n_first = round(stream_noise.FIRST_SECONDS / seconds_per_frame)
        self.n_lowest = int(quantile * (n_rows - 1)) + 1
        self.rank = int(stream_noise.VALLEY_BINS * stream_noise.VALLEY_PERCENTILE / 100)
        forgetting = 1 - seconds_per_frame / stream_noise.MEMORY_SECONDS
        self.levels = Bands(n_freqs, stream_noise.N_BANDS, stream_noise.DEVIATION, stream_noise.STIFFNESS, forgetting)
        expected = [
            [stream_noise.expected_quantile(max(quantile, 0.5 / n), averaged) for n in range(1, n_rows + 1)]
            for averaged in range(1, stream_noise.AVERAGED + 1)
        ]
        self.register_buffer("expected", torch.tensor(expected), persistent=False)

    def start(self) -> State:
        return {
            "noise_last": torch.zeros(stream_noise.AVERAGED, self.n_freqs),
            "noise_rows": torch.zeros(self.n_freqs, stream_noise.ROWS),
            "noise_quiet": torch.zeros(self.n_freqs),
            "noise_bands": torch.zeros(3, stream_noise.N_BANDS),
        }

    def spectrum(self, state: State) -> Spectrum:
        return state["noise_quiet"] * self.levels.factor(state["noise_bands"])

    def forward(self, power: Spectrum, n: Number, state: State) -> State:
        n_rows, n_parts = stream_noise.ROWS, stream_noise.PARTS
        last = pushed(state["noise_last"], power)
        n_averaged = (n + 1).clamp(max=stream_noise.AVERAGED)
        row = n // self.stride
        is_row = (torch.arange(n_rows) == row % n_rows) & (n % self.stride == 0)
        rows = torch.where(is_row, (last.sum(0) / n_averaged)[:, None], state["noise_rows"])

        n_known = (row + 1).clamp(max=n_rows)
        known = torch.where(torch.arange(n_rows) < n_known, rows, math.inf)
        lowest = known.topk(self.n_lowest, dim=-1, largest=False).values
        place = (stream_noise.QUANTILE * (n_known - 1)).long()
        quiet = lowest[:, place].squeeze(1) / self.expected[n_averaged - 1, n_known - 1]
        part = torch.arange(self.n_freqs) % n_parts
        is_seen = (part == (n + 1) % n_parts) | (n_known < n_rows // n_parts)
        quiet = torch.where(is_seen, quiet, state["noise_quiet"])
        valleys = torch.minimum(quiet, stream_noise.VALLEY_FACTOR * self._around(quiet))
        quiet = torch.where(n < self.n_first, valleys, quiet)
        return {**state, "noise_last": last, "noise_rows": rows, "noise_quiet": quiet}

    def _around(self, quiet: Spectrum) -> Spectrum:
        """A low percentile of the bins on both sides of each."""
        n = stream_noise.VALLEY_BINS
        places = (torch.arange(self.n_freqs)[:, None] + torch.arange(n) - n // 2).clamp(0, self.n_freqs - 1)
        return (
            quiet.index_select(0, places.flatten())
            .unflatten(0, places.shape)
            .topk(self.rank + 1, dim=-1, largest=False)
            .values[:, -1]
        )


class Level(nn.Module):
    """`stream_speech.LiveLevel`; its state: the loudest mean square, the sum of the active ones, their number."""

    counts: Tensor

    def __init__(self, prior: AudioVAE) -> None:
        super().__init__()
        live = stream_speech.LiveLevel(prior)
        self.register_buffer("counts", torch.from_numpy(live.counts), persistent=False)
        self.forgetting, self.least = live.forgetting, 10 ** (-ACTIVE_RANGE_DB / 10)

    def start(self) -> State:
        return {"level": torch.zeros(3)}

    def mean_square(self, power: Spectrum) -> Float[Tensor, ""]:
        return power @ self.counts

    def forward(self, power: Spectrum, state: State) -> tuple[Float[Tensor, ""], State]:
        value, (loudest, total, number) = self.mean_square(power), state["level"]
        loudest = torch.maximum(self.forgetting * loudest, value)
        keeps = torch.where(total < self.least * loudest * number, 0.0, 1.0)
        total, number = keeps * total, keeps * number
        is_active = value >= self.least * loudest
        total = torch.where(is_active, self.forgetting * total + value, total)
        number = torch.where(is_active, self.forgetting * number + 1, number)
        return total / number, {**state, "level": torch.stack([loudest, total, number])}


@dataclass(frozen=True)
class Pass:
    """A pass through a network: see `stream_network.Pass`."""

    outputs: Float[Tensor, "frame output"]
    seen: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]


class Network(nn.Module):
    """`stream_network.CausalNetwork`; what each convolution saw before stands one after another in `[past, width]`."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.first, self.last = cast(nn.Linear, network[0]), cast(nn.Linear, network[-1])
        self.blocks = nn.ModuleList(block for block in network if isinstance(block, TemporalBlock))
        self.n_past = [block.convolution.padding[0] for block in self._blocks()]

    def _blocks(self) -> list[TemporalBlock]:
        return [cast(TemporalBlock, block) for block in self.blocks]

    def start(self) -> Float[Tensor, "past width"]:
        return torch.zeros(sum(self.n_past), self.first.out_features)

    def forward(
        self, inputs: Float[Tensor, "frame input"], past: Float[Tensor, "past width"], exists: Float[Tensor, "frame 1"]
    ) -> Pass:
        hidden, slope = silu(self.first(inputs))
        hidden, slopes, seen = exists * hidden, [slope], []
        for block, before in zip(self._blocks(), past.split(self.n_past), strict=True):
            seen.append(torch.cat([before, hidden]))
            taps, dilation = block.convolution.weight, block.convolution.dilation
            places = torch.arange(len(inputs))[:, None] + dilation * torch.arange(len(taps))
            added, slope = silu(block.linear((rows_at(seen[-1], places) * taps).sum(1)))
            hidden = hidden + exists * added
            slopes.append(slope)
        return Pass(self.last(hidden), tuple(seen), tuple(slopes))

    def backward(self, of_outputs: Float[Tensor, "frame output"], made: Pass) -> Float[Tensor, "frame input"]:
        """The gradient with respect to the inputs."""
        n = len(of_outputs)
        slope = of_outputs @ self.last.weight
        for block, of_silu in zip(reversed(self._blocks()), reversed(made.slopes[1:]), strict=True):
            of_mixed = (slope * of_silu) @ block.linear.weight
            dilation = block.convolution.dilation
            taps = block.convolution.weight.flip(0)[: 1 + (n - 1) // dilation]  # others reach beyond the last frame
            places = torch.arange(n)[:, None] + dilation * torch.arange(len(taps))
            later = functional.pad(of_mixed, (0, 0, 0, dilation * (len(taps) - 1)))
            slope = slope + (rows_at(later, places) * taps).sum(1)
        return (slope * made.slopes[0]) @ self.first.weight

    def after(self, made: Pass) -> Float[Tensor, "past width"]:
        """What comes before the frames that follow the first one of a pass."""
        return torch.cat([seen[1 : 1 + n] for seen, n in zip(made.seen, self.n_past, strict=True)])


def rows_at(table: Float[Tensor, "row width"], places: Int[Tensor, "frame tap"]) -> Float[Tensor, "frame tap width"]:
    """Indexing, as the one operation that runtimes are fast in."""
    return table.index_select(0, places.flatten()).unflatten(0, places.shape)


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """X sigmoid(x) and its derivative."""
    sigmoid = torch.sigmoid(x)
    return x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid)


class Speech(nn.Module):
    """`stream_speech.LiveSpeech`."""

    mean: Tensor
    std: Tensor
    bias: Tensor

    def __init__(self, prior: AudioVAE, n_frames: int) -> None:
        super().__init__()
        vae = cast(DynamicVAE, prior.vae)
        log_power = cast(LogPower, vae.log_power)
        self.n_frames, self.dim, self.n_freqs = n_frames, vae.latent_dim, vae.n_freqs
        self.encoder, self.decoder = Network(vae.encoder), Network(vae.decoder)
        self.transition = Network(vae.transition)
        self.probes = Probes(n_frames, vae.n_freqs)
        tensors = {"mean": log_power.mean, "std": log_power.std, "bias": vae.observation.bias.detach()}
        for name, values in tensors.items():
            self.register_buffer(name, values, persistent=False)
        forgetting = math.exp(-prior.stft.hop_length / prior.sample_rate / stream_speech.COLOUR_SECONDS)
        sizes = (stream_speech.N_BANDS, COLOUR_DEVIATION, stream_speech.STIFFNESS)
        self.colour = Bands(vae.n_freqs, *sizes, forgetting)

    def start(self) -> State:
        return {
            "encoder_past": self.encoder.start(),
            "decoder_past": self.decoder.start(),
            "transition_past": self.transition.start(),
            "last": torch.zeros(1, self.dim),
            **{name: torch.zeros(self.n_frames, self.dim) for name in ("latents", "move", "curvature")},
            "window_powers": torch.zeros(self.n_frames, self.n_freqs),
            "colour_bands": torch.zeros(3, stream_speech.N_BANDS),
            "random": self.probes.start,
        }

    def forward(
        self, power: Spectrum, noise: Spectrum, mean_square: Tensor, n_before: Number, state: State
    ) -> tuple[Float[Tensor, "frame freq"], State]:
        """The power of the speech in the frames of the window, the last one the newest."""
        n = (n_before + 1).clamp(max=self.n_frames)
        exists = (torch.arange(self.n_frames) >= self.n_frames - n).float()[:, None]
        state = self._push(power, noise, mean_square, (n_before >= self.n_frames).float()[:, None], state)
        scale = self.colour.factor(state["colour_bands"]) * mean_square
        signs, random = self.probes(state["random"], n)
        for step in range(streaming.STEPS):
            state = {**state, **self._descend(noise, scale, signs if step == 0 else None, exists, state)}
        decoded = self.decoder(state["latents"], state["decoder_past"], exists)
        return self._variance(decoded.outputs) * scale, {**state, "random": random}

    def _push(self, power: Spectrum, noise: Spectrum, mean_square: Tensor, existed: Tensor, state: State) -> State:
        """The oldest frame leaves the window, if it existed, and the next one enters."""
        oldest, past = state["latents"][:1], state["decoder_past"]
        decoder_past = self.decoder.after(self.decoder(oldest, past, existed))
        moved = self.transition(state["last"], state["transition_past"], existed)

        excess = 1 - stream_speech.OVERSUBTRACTION * noise / torch.maximum(power, noise)
        gain = excess.clamp(min=stream_speech.SMALLEST_FIRST_GAIN)
        guess = torch.log(power * gain.square() / mean_square + VARIANCE_FLOOR)
        encoded = self.encoder(((guess - self.mean) / self.std)[None], state["encoder_past"], torch.ones_like(existed))
        latents = encoded.outputs[0, : self.dim]
        zeros = torch.zeros_like(latents)
        return {
            **state,
            "decoder_past": decoder_past,
            "transition_past": self.transition.after(moved),
            "encoder_past": self.encoder.after(encoded),
            "last": oldest,
            "latents": pushed(state["latents"], latents),
            "move": pushed(state["move"], zeros),
            "curvature": pushed(state["curvature"], zeros),
            "window_powers": pushed(state["window_powers"], power),
        }

    def _variance(self, outputs: Float[Tensor, "frame freq"]) -> Float[Tensor, "frame freq"]:
        return torch.exp((outputs + self.bias).clamp(math.log(VARIANCE_FLOOR), LARGEST_LOG_VARIANCE))

    def _descend(
        self, noise: Spectrum, scale: Spectrum, signs: Tensor | None, exists: Float[Tensor, "frame 1"], state: State
    ) -> State:
        """A step of Fisher scoring; with `signs` the curvature is estimated anew."""
        z, weight, curvature = state["latents"], PRIOR_WEIGHT, state["curvature"]
        decoded = self.decoder(z, state["decoder_past"], exists)
        moved = self.transition(torch.cat([state["last"], z[:-1]]), state["transition_past"], exists)
        loc, spread = moved.outputs.chunk(2, dim=1)
        sigmoid = torch.sigmoid(spread)
        deviation = LARGEST_SCALE * sigmoid + SMALLEST_SCALE
        variance = self._variance(decoded.outputs) * scale
        share = variance / (variance + noise)

        if signs is not None:
            found = self.decoder.backward(exists * share * signs, decoded).square() + weight / deviation.square()
            known = stream_speech.MEMORY * curvature + (1 - stream_speech.MEMORY) * found
            curvature = torch.where(curvature > 0, known, found)

        slope = self.decoder.backward(exists * share * (1 - state["window_powers"] / (variance + noise)), decoded)
        away = (z - loc) / deviation
        of_spread = (1 - away.square()) / deviation * (LARGEST_SCALE * sigmoid * (1 - sigmoid))
        of_moves = weight * torch.cat([-away / deviation, of_spread], dim=1)
        follow = self.transition.backward(exists * of_moves, moved)[1:]
        slope = slope + weight * away / deviation + functional.pad(follow, (0, 0, 0, 1))
        newton = (slope / curvature).clamp(-stream_speech.TRUST, stream_speech.TRUST)
        move = exists * (stream_speech.MOMENTUM * state["move"] - newton)
        return {"latents": z + stream_speech.STEP * move, "move": move, "curvature": curvature}
