"""The STFT against torch.stft and a naive DFT, its inverse, and its streaming twins."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.signal
import torch
from jaxtyping import TypeCheckError

from audiovae import STFT
from audiovae.stft import StreamingAnalysis, StreamingSynthesis

WINDOWS = ("sine", "hann", "hamming")
SIZES = (
    (1024, 256),
    (512, 128),
    (400, 160),
    (256, 100),
    (15, 7),
    (2, 1),
)  # some hops do not divide the window, one is odd
LENGTHS = (1, 2, 15, 16, 255, 256, 257, 1023, 1025, 5000)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def reference_window(name: str, n_fft: int) -> torch.Tensor:
    """The windows as SciPy has them: `cosine` is our sine."""
    window = {"sine": "cosine", "hann": "hann", "hamming": "hamming"}[name]
    return torch.from_numpy(scipy.signal.get_window(window, n_fft, fftbins=name != "sine"))


def torch_stft(wave: torch.Tensor, stft: STFT) -> torch.Tensor:
    """torch.stft of the wave lengthened with zeros to whole hops, which makes as many frames as ours."""
    lengthened = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % stft.hop_length))
    window = reference_window(stft.window_name, stft.n_fft).to(wave.dtype)
    spectrogram = torch.stft(
        lengthened, stft.n_fft, stft.hop_length, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return spectrogram.transpose(-1, -2)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n_fft", [2, 400, 1024])
def test_windows_are_those_of_scipy(window: str, n_fft: int) -> None:
    torch.testing.assert_close(
        STFT(n_fft, n_fft // 2, window).window.double(), reference_window(window, n_fft), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("n_fft", "hop_length"), [(1024, 256), (512, 128), (400, 160), (256, 100), (2, 1)])
@pytest.mark.parametrize("length", [1, 300, 1024, 4097])
def test_analysis_is_that_of_torch_stft(window: str, n_fft: int, hop_length: int, length: int) -> None:
    stft = STFT(n_fft, hop_length, window)
    wave = torch.randn(length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    spectrogram = stft(wave)
    assert (
        spectrogram.shape
        == (1 + math.ceil(length / hop_length), n_fft // 2 + 1)
        == (stft.n_frames(length), stft.n_freqs)
    )
    torch.testing.assert_close(spectrogram, torch_stft(wave, stft), atol=1e-10, rtol=0)


def test_analysis_of_real_speech_is_that_of_torch_stft(speech: torch.Tensor) -> None:
    stft = STFT()
    torch.testing.assert_close(stft(speech), torch_stft(speech, stft), atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("n_fft", "hop_length"), [(16, 4), (12, 5), (9, 3)])
def test_analysis_is_the_naive_sum(window: str, n_fft: int, hop_length: int) -> None:
    """X[t, f] = sum_n window[n] x[t hop + n - n_fft // 2] exp(-2 pi i f n / n_fft), with x zero outside of its ends."""
    wave = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = reference_window(window, n_fft).tolist()
    spectrogram = STFT(n_fft, hop_length, window)(wave)
    for frame in range(spectrogram.shape[0]):
        for freq in range(n_fft // 2 + 1):
            naive = 0j
            for n in range(n_fft):
                place = frame * hop_length + n - n_fft // 2
                sample = float(wave[place]) if 0 <= place < 50 else 0.0
                naive += weights[n] * sample * np.exp(-2j * np.pi * freq * n / n_fft)
            assert abs(complex(spectrogram[frame, freq]) - naive) < 1e-10, (frame, freq)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("n_fft", "hop_length"), SIZES)
def test_the_inverse_is_exact_at_any_length(window: str, n_fft: int, hop_length: int, dtype: torch.dtype) -> None:
    stft = STFT(n_fft, hop_length, window)
    for length in LENGTHS:
        wave = 2 * torch.rand(length, dtype=dtype, generator=torch.Generator().manual_seed(length)) - 1
        again = stft.inverse(stft(wave), length)
        assert again.dtype == dtype
        torch.testing.assert_close(
            again, wave, atol=TOLERANCE[dtype], rtol=0, msg=lambda text, length=length: f"length {length}: {text}"
        )


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (2, 1, 3), ()])
def test_leading_dimensions_are_free(shape: tuple[int, ...]) -> None:
    stft = STFT(256, 64)
    waves = torch.randn(*shape, 1000, generator=torch.Generator().manual_seed(2))
    spectrogram = stft(waves)
    assert spectrogram.shape == (*shape, stft.n_frames(1000), 129)
    for row, one in zip(spectrogram.reshape(-1, *spectrogram.shape[-2:]), waves.reshape(-1, 1000), strict=True):
        torch.testing.assert_close(row, stft(one), atol=1e-5, rtol=0)
    torch.testing.assert_close(stft.inverse(spectrogram, 1000), waves, atol=1e-5, rtol=0)


def test_a_strided_wave_is_analysed_as_its_copy() -> None:
    stft = STFT(256, 64)
    interleaved = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(stft(interleaved.T), stft(interleaved.T.contiguous()))


@pytest.mark.parametrize("window", WINDOWS)
def test_parseval_holds_in_every_frame(window: str) -> None:
    """The energy of the full spectrum (both halves) over n_fft is that of the windowed frame."""
    n_fft, hop_length = 64, 16
    stft = STFT(n_fft, hop_length, window)
    wave = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    power = stft(wave).abs().square()
    energy = (power[:, 0] + power[:, -1] + 2 * power[:, 1:-1].sum(-1)) / n_fft
    padded = torch.nn.functional.pad(wave, (n_fft // 2, n_fft))
    weights = reference_window(window, n_fft)
    expected = [
        float((weights * padded[t * hop_length : t * hop_length + n_fft]).square().sum()) for t in range(len(power))
    ]
    torch.testing.assert_close(energy, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("window", WINDOWS)
def test_white_noise_has_the_power_of_the_window_in_every_bin(window: str) -> None:
    stft = STFT(64, 32, window)
    power = (
        stft(torch.randn(200, 6400, generator=torch.Generator().manual_seed(5)))[:, 2:-2].abs().square().mean((0, 1))
    )
    expected = reference_window(window, 64).square().sum().float().expand(33)
    # About 20,000 independent frames; the mean of squares at bins 0 and 32 (real) has a relative deviation of
    # sqrt(2 / 20,000).
    torch.testing.assert_close(power, expected, atol=0, rtol=6 * math.sqrt(2 / 20000))


def test_analysis_and_synthesis_are_linear() -> None:
    stft = STFT(128, 32, "hann")
    generator = torch.Generator().manual_seed(6)
    a, b = torch.randn(2, 777, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(stft(2.5 * a - 3 * b), 2.5 * stft(a) - 3 * stft(b))
    x, y = torch.randn(2, stft.n_frames(777), 65, dtype=torch.complex128, generator=generator)
    torch.testing.assert_close(
        stft.inverse(2.5 * x - 3 * y, 777), 2.5 * stft.inverse(x, 777) - 3 * stft.inverse(y, 777)
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_the_inverse_of_any_spectrogram_is_the_least_squares_one(window: str) -> None:
    """Over all waves of the padded length, no other comes nearer: solved with the matrix of the transform."""
    stft = STFT(16, 4, window)
    n_samples = 24
    padded_length = (stft.n_frames(n_samples) - 1) * 4 + 16
    identity = torch.eye(padded_length, dtype=torch.float64)
    # Both halves of the spectrum count: bins 1 to 7 twice.
    weight = torch.tensor([1.0] + [math.sqrt(2)] * 7 + [1.0], dtype=torch.float64)
    matrix = torch.view_as_real(stft.frames(identity) * weight).flatten(1).T  # [frame * freq * 2, sample]
    spectrogram = torch.randn(
        stft.n_frames(n_samples), 9, dtype=torch.complex128, generator=torch.Generator().manual_seed(7)
    )
    spectrogram[:, [0, -1]] = spectrogram[:, [0, -1]].real.to(torch.complex128)
    target = torch.view_as_real(spectrogram * weight).flatten()
    solution = torch.from_numpy(np.linalg.lstsq(matrix.numpy(), target.numpy())[0])
    torch.testing.assert_close(stft.inverse(spectrogram, n_samples), solution[8 : 8 + n_samples], atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_inverse_of_a_modified_spectrogram_is_that_of_torch_istft(window: str) -> None:
    """At samples that no padding reaches: torch divides by the same envelope."""
    stft = STFT(256, 64, window)
    spectrogram = torch.randn(33, 129, dtype=torch.complex128, generator=torch.Generator().manual_seed(8))
    spectrogram[:, [0, -1]] = spectrogram[:, [0, -1]].real.to(torch.complex128)
    expected = torch.istft(spectrogram.T, 256, 64, window=reference_window(window, 256), center=True, length=2048)
    torch.testing.assert_close(stft.inverse(spectrogram, 2048), expected, atol=1e-10, rtol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    stft = STFT(8, 3)
    wave = torch.randn(2, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stft, (wave,))
    spectrogram = torch.randn(stft.n_frames(11), 5, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stft.inverse(x, 11), (spectrogram,))


def test_the_window_is_no_part_of_the_saved_state() -> None:
    assert STFT().state_dict() == {}


def test_the_window_follows_the_precision_of_the_wave() -> None:
    """A wave in double precision is not limited by the buffer in single precision."""
    stft = STFT()
    wave = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert stft(wave).dtype == torch.complex128
    assert (stft.double()(wave) - STFT()(wave)).abs().max() < 1e-10
    assert STFT().window.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_transform_moves_with_its_module(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    stft = STFT().to(device)
    wave = torch.randn(5000, generator=torch.Generator().manual_seed(10)).to(device)
    assert stft(wave).device.type == stft.window.device.type == device
    torch.testing.assert_close(stft.inverse(stft(wave), 5000), wave, atol=1e-5, rtol=0)
    torch.testing.assert_close(stft(wave).cpu(), STFT()(wave.cpu()), atol=1e-4, rtol=0)


REFUSED_SIZES = [
    ({"n_fft": 1}, "n_fft must be at least 2, got 1"),
    ({"n_fft": 1024, "hop_length": 513}, r"hop_length must be from 1 to n_fft // 2 = 512, got 513"),
    ({"n_fft": 15, "hop_length": 8}, r"hop_length must be from 1 to n_fft // 2 = 7, got 8"),
    ({"hop_length": 0}, r"hop_length must be from 1 .* got 0"),
    ({"hop_length": -256}, r"hop_length must be from 1 .* got -256"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED_SIZES)
def test_sizes_without_an_inverse_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STFT(**arguments)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be one of sine, hann, hamming, got 'triangle'"):
        STFT(window="triangle")  # type: ignore[arg-type]


@pytest.mark.usefixtures("checked")
def test_shapes_in_signatures_are_checked_under_the_test_runner() -> None:
    """The check of all checks: a complex wave, and a spectrogram without frames."""
    with pytest.raises(TypeCheckError, match="wave"):
        STFT()(torch.zeros(1000, dtype=torch.complex64))
    with pytest.raises(TypeCheckError, match="spectrogram"):
        STFT().inverse(torch.zeros(513, dtype=torch.complex64), 100)


def test_a_wave_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one sample, got shape \[2, 0\]"):
        STFT()(torch.zeros(2, 0))


@pytest.mark.parametrize(("length", "n_frames"), [(0, 1), (-255, 1), (1, 1), (256, 3), (257, 2), (512, 5)])
def test_a_length_of_another_number_of_frames_is_refused(length: int, n_frames: int) -> None:
    with pytest.raises(ValueError, match=rf"length {length} has -?\d+ frames at hop_length 256, got {n_frames} frames"):
        STFT().inverse(torch.zeros(n_frames, 513, dtype=torch.complex64), length)


def test_another_number_of_bins_is_refused() -> None:
    """irfft would fill up or cut off the spectrum in silence."""
    with pytest.raises(ValueError, match="513"):
        STFT().inverse(torch.zeros(3, 257, dtype=torch.complex64), 512)


# Streaming -----------------------------------------------------------------------------------------------------------


def stream(stft: STFT, wave: torch.Tensor, block_sizes: list[int]) -> torch.Tensor:
    """The frames of a wave pushed in blocks of these sizes (used again and again)."""
    analysis, start, frames, turn = StreamingAnalysis(stft), 0, [], 0
    while start < wave.shape[-1]:
        size = block_sizes[turn % len(block_sizes)]
        frames.append(analysis.push(wave[..., start : start + size]))
        start, turn = start + size, turn + 1
    return torch.cat([*frames, analysis.finish()], dim=-2)


def stream_back(stft: STFT, spectrogram: torch.Tensor, length: int, block_sizes: list[int]) -> torch.Tensor:
    synthesis, start, parts, turn = StreamingSynthesis(stft), 0, [], 0
    while start < spectrogram.shape[-2]:
        size = block_sizes[turn % len(block_sizes)]
        parts.append(synthesis.push(spectrogram[..., start : start + size, :]))
        start, turn = start + size, turn + 1
    return torch.cat([*parts, synthesis.finish(length)], dim=-1)


def random_streams(n_streams: int) -> Iterator[tuple[STFT, int, list[int]]]:
    """Transforms, lengths and sizes of blocks, drawn at random: some blocks are empty, some longer than the wave."""
    generator = np.random.default_rng(0)
    for size in [(16, 8), (16, 4), (16, 5), (15, 7), (12, 1), (2, 1), (64, 16)]:
        for _ in range(n_streams):
            blocks = [int(size) for size in generator.integers(0, 60, generator.integers(1, 6))] + [1]
            yield STFT(*size, str(generator.choice(WINDOWS))), int(generator.integers(1, 200)), blocks


def test_streamed_analysis_equals_the_offline_one() -> None:
    for stft, length, blocks in random_streams(20):
        wave = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
        what = f"{stft}, {length} samples in blocks of {blocks}: "
        torch.testing.assert_close(
            stream(stft, wave, blocks), stft(wave), atol=1e-12, rtol=0, msg=lambda text, what=what: what + text
        )


def test_streamed_synthesis_equals_the_offline_one() -> None:
    """Of a spectrogram that is no wave's, so that errors cannot cancel."""
    for stft, length, blocks in random_streams(20):
        shape = (2, stft.n_frames(length), stft.n_freqs)
        spectrogram = torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(length))
        streamed, offline = stream_back(stft, spectrogram, length, blocks), stft.inverse(spectrogram, length)
        what = f"{stft}, {length} samples in blocks of {blocks}: "
        torch.testing.assert_close(streamed, offline, atol=1e-9, rtol=0, msg=lambda text, what=what: what + text)


@pytest.mark.parametrize("blocks", [[1], [255, 1], [256], [1024], [10_000], [3, 700, 0, 41]])
def test_streaming_real_sizes_both_ways_gives_the_wave(blocks: list[int]) -> None:
    stft = STFT()
    wave = torch.randn(1, 3001, generator=torch.Generator().manual_seed(11))
    spectrogram = stream(stft, wave, blocks)
    torch.testing.assert_close(spectrogram, stft(wave), atol=1e-4, rtol=0)
    torch.testing.assert_close(stream_back(stft, spectrogram, 3001, blocks), wave, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n_fft", "hop_length"), [(1024, 256), (15, 7), (64, 5)])
def test_a_frame_comes_out_as_soon_as_its_last_sample_has_arrived(n_fft: int, hop_length: int) -> None:
    analysis = StreamingAnalysis(STFT(n_fft, hop_length))
    arrived = [analysis.push(torch.ones(1)).shape[-2] for _ in range(3 * n_fft)]
    # Frame t ends n_fft - n_fft // 2 samples after its centre, sample t hop.
    ends = [t * hop_length + n_fft - n_fft // 2 for t in range(3 * n_fft)]
    assert [sample + 1 for sample, count in enumerate(arrived) if count] == [end for end in ends if end <= 3 * n_fft]


def test_later_samples_do_not_change_earlier_frames() -> None:
    stft = STFT(64, 16)
    wave = torch.randn(400, generator=torch.Generator().manual_seed(12))
    changed = wave.clone()
    changed[300:] = 7.0
    before = [StreamingAnalysis(stft).push(signal[:300]) for signal in (wave, changed)]
    assert torch.equal(*before)
    assert before[0].shape[-2] == 1 + (300 - 32) // 16


def test_two_streams_of_one_transform_do_not_disturb_each_other() -> None:
    stft = STFT(64, 16)
    waves = torch.randn(2, 300, generator=torch.Generator().manual_seed(13))
    analyses = [StreamingAnalysis(stft), StreamingAnalysis(stft)]
    frames: list[list[torch.Tensor]] = [[], []]
    for start in range(0, 300, 37):
        for one, analysis, wave in zip(frames, analyses, waves, strict=True):
            one.append(analysis.push(wave[start : start + 37]))
    for one, analysis, wave in zip(frames, analyses, waves, strict=True):
        torch.testing.assert_close(torch.cat([*one, analysis.finish()]), stft(wave), atol=1e-5, rtol=0)


def test_a_stream_without_samples_is_refused() -> None:
    analysis = StreamingAnalysis(STFT())
    with pytest.raises(ValueError, match="at least one sample, and none was pushed"):
        analysis.finish()
    analysis.push(torch.zeros(0))
    with pytest.raises(ValueError, match="at least one sample, and none was pushed"):
        analysis.finish()


def test_a_synthesis_without_frames_is_refused() -> None:
    synthesis = StreamingSynthesis(STFT())
    with pytest.raises(ValueError, match="no frame was pushed"):
        synthesis.finish(1)
    assert synthesis.push(torch.zeros(2, 0, 513, dtype=torch.complex64)).shape == (2, 0)
    with pytest.raises(ValueError, match="no frame was pushed"):
        synthesis.finish(1)


@pytest.mark.parametrize("length", [5000, 100, 0, -1, 256, 600, 1025])
def test_a_length_that_the_pushed_frames_do_not_have_is_refused(length: int) -> None:
    """Five frames at a hop of 256 make 769 to 1024 samples, as for the offline inverse."""
    stft = STFT()
    synthesis = StreamingSynthesis(stft)
    spectrogram = stft(torch.ones(1024))
    assert spectrogram.shape[0] == 5
    synthesis.push(spectrogram)
    with pytest.raises(ValueError, match=f"length {length} does not belong to the frames pushed"):
        synthesis.finish(length)
