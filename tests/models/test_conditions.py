"""Labels: names, classes and vectors of a condition; a label inferred by gradient, by comparing bounds, and by a
predictor.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audiovae import (
    STFT,
    VAE,
    AudioVAE,
    Conditions,
    FrameVAE,
    FrameVAESettings,
    LabelVAE,
    LabelVAESettings,
    elbo,
    label_log_probs,
)
from audiovae.errors import AudiovaeError, ConditionError
from audiovae.models import MODELS
from audiovae.stft import power

N_FREQS = 9
DIGIT_AND_SPEAKER = {"digit": ("zero", "one", "two"), "speaker": ("ann", "bob")}
WHO = r"is conditioned on digit \(zero, one, two\) and speaker \(ann, bob\)"


def conditions() -> Conditions:
    return Conditions(DIGIT_AND_SPEAKER)


# Names and vectors ---------------------------------------------------------------------------------------------------


def test_a_condition_is_one_block_of_classes_per_label() -> None:
    assert conditions().size == 5
    assert conditions().encode(digit="two", speaker="ann").tolist() == [0, 0, 1, 1, 0]
    assert conditions().encode(speaker="bob", digit="zero").tolist() == [
        1,
        0,
        0,
        0,
        1,
    ]  # in the order of the model, not of the call


def test_every_condition_is_every_combination_the_last_label_fastest() -> None:
    expected = [conditions().encode(digit=d, speaker=s) for d in ("zero", "one", "two") for s in ("ann", "bob")]
    assert torch.equal(conditions().every(), torch.stack(expected))
    assert torch.equal(Conditions({"digit": ("0", "1", "2")}).every(), torch.eye(3))


def test_a_model_without_labels_has_an_empty_condition() -> None:
    empty = Conditions({})
    assert (empty.size, empty.encode().tolist(), str(empty)) == (0, [], "has no labels")
    features = torch.randn(3, 4)
    assert empty.join(features, None) is features
    with pytest.raises(ConditionError, match="a condition was given to a model without labels"):
        empty.join(features, torch.ones(1))
    with pytest.raises(ConditionError, match="unknown label 'digit'; this model has no labels"):
        empty.encode(digit="1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"digit": "one"}, rf"the label 'speaker' is missing; this model {WHO}"),
        ({"digit": "one", "speakr": "ann"}, r"unknown label 'speakr'; did you mean 'speaker'\?"),
        ({"digit": "one", "xyz": "ann"}, rf"unknown label 'xyz'; this model {WHO}"),
        ({"digit": "nine", "speaker": "ann"}, "digit 'nine' is unknown; known are zero, one, two"),
    ],
)
def test_a_label_that_a_model_does_not_know_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        conditions().encode(**given)


@pytest.mark.parametrize("classes", [(), ("only",), ("same", "same"), ("a", "b", "a")])
def test_a_label_needs_classes_to_tell_apart(classes: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"label 'digit' needs at least two different classes, got {list(classes)}")
    ):
        Conditions({"digit": classes})


VECTORS = [
    (None, rf"a condition is missing: this model {WHO}"),
    ([1.0, 0.0, 0.0, 1.0], r"a condition has 5 entries \(.*\), got 4"),
    (
        [1.0, 0.0, 0.0, 0.4, 0.4],
        "the classes of 'speaker' must be non-negative and sum to 1, got a sum that is 0.2 off",
    ),
    ([0.5, 0.0, 0.0, 0.5, 0.5], "the classes of 'digit' must be .*, got a sum that is 0.5 off"),
    ([1.5, -0.5, 0.0, 0.5, 0.5], "the classes of 'digit' must be .* or a negative entry"),
    ([math.nan, 1.0, 0.0, 0.5, 0.5], "the classes of 'digit' must be non-negative"),
    ([math.inf, 1.0, 0.0, 0.5, 0.5], "the classes of 'digit' must be non-negative"),
]


@pytest.mark.parametrize(("vector", "message"), VECTORS)
def test_a_vector_that_is_no_condition_is_refused(vector: list[float] | None, message: str) -> None:
    condition = None if vector is None else torch.tensor(vector)
    with pytest.raises(ConditionError, match=message):
        conditions().check(condition)
    if vector is not None and len(vector) == 5:  # also where only one of several frames is wrong
        good = conditions().encode(digit="one", speaker="bob")
        with pytest.raises(ConditionError, match=message):
            conditions().join(torch.zeros(2, 3, 4), torch.stack([good, torch.tensor(vector), good]).expand(2, 3, 5))


def test_a_soft_label_is_a_condition() -> None:
    soft = torch.tensor([0.2, 0.3, 0.5, 0.9, 0.1])
    assert conditions().check(soft) is soft


def test_conditions_follow_the_features_of_their_frames() -> None:
    """One for all, one per sequence, one per frame, and one per frame that all sequences share."""
    every, features = conditions().every(), torch.randn(2, 6, 4)
    joined = conditions().join(features, every[3])
    assert torch.equal(joined[..., :4], features)
    assert torch.equal(joined[..., 4:], every[3].expand(2, 6, 5))
    per_sequence = conditions().join(features, every[:2])[..., 4:]
    assert all(torch.equal(per_sequence[i], every[i].expand(6, 5)) for i in range(2))
    per_frame = torch.stack([every, every.flip(0)])
    assert torch.equal(conditions().join(features, per_frame)[..., 4:], per_frame)
    assert torch.equal(conditions().join(features, every[None])[..., 4:], every.expand(2, 6, 5))
    assert torch.equal(conditions().join(features[0], every)[..., 4:], every)
    assert conditions().join(features.double(), per_frame).dtype == torch.float64


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 5), (3, 6, 5), (3, 2, 6, 5), (1, 2, 5)])
def test_conditions_of_other_sequences_or_frames_are_refused(shape: tuple[int, ...]) -> None:
    condition = conditions().every()[0].expand(shape)
    with pytest.raises(
        ConditionError, match=r"a condition of shape .* fits neither \[2\] sequences nor their 6 frames"
    ):
        conditions().per_frame(condition, torch.zeros(2, 6, 4))


def test_the_condition_of_a_sequence_is_one_row() -> None:
    every, like = conditions().every(), torch.zeros(2, 6, 4)
    assert torch.equal(conditions().of_sequence(every[:2], (2,), like), every[:2, None])
    assert torch.equal(conditions().of_sequence(every[1], (2,), like), every[1].expand(2, 1, 5))
    assert torch.equal(conditions().of_sequence(every[1], (), like[0]), every[1][None])
    assert Conditions({}).of_sequence(None, (2,), like) is None
    with pytest.raises(ConditionError, match=r"fits no \[2\] sequences"):
        conditions().of_sequence(every[:3], (2,), like)


def test_a_prior_names_its_conditions(tmp_path: Path) -> None:
    prior = AudioVAE(STFT(16, 4), conditional(), 8000)
    assert torch.equal(prior.condition(digit="two", speaker="bob"), conditions().encode(digit="two", speaker="bob"))
    with pytest.raises(AudiovaeError, match="digit 'ten' is unknown"):
        prior.condition(digit="ten", speaker="bob")
    prior.save_pretrained(tmp_path / "model")
    again = AudioVAE.from_pretrained(tmp_path / "model")
    assert list(again.vae.conditions.labels.items()) == list(
        DIGIT_AND_SPEAKER.items()
    )  # their order is that of the weights


@pytest.mark.parametrize("phase", ["encode", "decode", "resynthesize", "log_likelihood", "sample"])
def test_every_method_of_a_prior_needs_and_uses_its_condition(phase: str) -> None:
    prior, wave = (
        AudioVAE(STFT(16, 4), conditional(), 8000).eval(),
        torch.randn(60, generator=torch.Generator().manual_seed(0)),
    )
    ann, bob = (prior.condition(digit="one", speaker=name) for name in ("ann", "bob"))
    calls = {
        "encode": lambda condition: prior.encode(wave, condition=condition).inference.latents,
        "decode": lambda condition: prior.decode(prior.encode(wave, condition=ann), condition=condition),
        "resynthesize": lambda condition: prior.resynthesize(wave, condition=condition),
        "log_likelihood": lambda condition: prior.log_likelihood(wave, condition=condition),
        "sample": lambda condition: prior.sample(5, condition),
    }
    results = []
    for condition in (ann, ann, bob):
        torch.manual_seed(0)
        results.append(calls[phase](condition))
    assert torch.equal(results[0], results[1])
    assert (results[2] - results[0]).abs().max() > 1e-4
    with pytest.raises(ConditionError, match="a condition is missing"):
        calls[phase](None)


# Labels inferred from sound ------------------------------------------------------------------------------------------


def conditional(
    name: str = "FrameVAE", labels: dict[str, tuple[str, ...]] = DIGIT_AND_SPEAKER, **settings: object
) -> VAE:
    """A conditional model with random weights that are not small: its spectra depend on its labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class, settings_class = MODELS[name]
        small = {"latent_dim": 2, "hidden": (16,)} if name == "FrameVAE" else {"latent_dim": 2, "width": 8}
        vae = model_class(N_FREQS, settings_class(labels=labels, **{**small, **settings}))
        for parameter in vae.parameters():
            nn.init.normal_(parameter, std=0.4)
        return vae.eval()


class OneSpectrumEach(FrameVAE):
    """Class c has the spectrum exp(slope_c f) whatever z is, and the posterior is the prior: log p(x | y) is known."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__(
            N_FREQS, FrameVAESettings(latent_dim=2, hidden=(4,), labels={"class": tuple("abcd")[: len(slopes)]})
        )
        self.slopes = slopes
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.zero_()

    def log_variance(self, condition: Tensor) -> Tensor:
        return (condition @ self.slopes)[..., None] * torch.linspace(-1, 1, N_FREQS)

    def decode(self, latents: Tensor, condition: Tensor | None = None, past: Tensor | None = None) -> Tensor:
        return self.log_variance(self.conditions.per_frame(condition, latents))


def sound_of(vae: OneSpectrumEach, which: list[int], n_frames: int, seed: int = 0) -> Tensor:
    """Power of sequences of the given classes."""
    variance = vae.log_variance(torch.eye(len(vae.slopes))[which]).exp()[:, None]
    noise = torch.randn(
        len(which), n_frames, N_FREQS, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)
    )
    return power(variance.sqrt() * noise)


def test_a_soft_label_is_drawn_to_the_true_class_by_its_gradient() -> None:
    """Gradient ascent of the bound over the logits of a label, from a uniform one, on sound of each class."""
    vae = OneSpectrumEach(torch.tensor([-2.0, 0.0, 2.0])).requires_grad_(False)
    x = sound_of(vae, [0, 1, 2, 2, 0], n_frames=20)
    logits = torch.zeros(5, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.5)
    torch.manual_seed(0)
    for _ in range(20):
        optimizer.zero_grad()
        (-elbo(vae, x, logits.softmax(-1)).bound.sum()).backward()
        optimizer.step()
    found = logits.detach().softmax(-1)
    # Slopes mix linearly: that of the middle class is also the mean of the others, so a label is told by its slope
    # there.
    torch.testing.assert_close(found @ vae.slopes, torch.tensor([-2.0, 0.0, 2.0, 2.0, -2.0]), atol=0.25, rtol=0)
    assert found[[0, 2, 3, 4], [0, 2, 2, 0]].min() > 0.85


def test_a_soft_label_of_a_frame_moves_its_own_frame_alone() -> None:
    vae, x = conditional(), torch.rand(4, N_FREQS) + 0.1
    condition = conditions().every()[torch.tensor([0, 3, 5, 2])].requires_grad_()
    torch.manual_seed(0)
    bound = elbo(vae, x, condition).bound
    for t in range(4):
        (gradient,) = torch.autograd.grad(bound[t], condition, retain_graph=True)
        assert gradient[t].abs().min() > 0
        assert not gradient[torch.arange(4) != t].any()


def test_the_probability_of_a_label_is_that_of_bayes_rule() -> None:
    """Where log p(x | y) is known: the closed form of circular Gaussians, classes being equally likely."""
    vae = OneSpectrumEach(torch.tensor([-0.3, 0.0, 0.2, 0.5]))
    x = sound_of(vae, [0, 1, 2, 3, 3], n_frames=6)
    variance = torch.exp(vae.slopes[:, None] * torch.linspace(-1, 1, N_FREQS))
    log_p = -(math.log(math.pi) + variance.log() + x[:, :, None] / variance).sum((1, 3))  # [sequence, class]
    found_conditions, log_probs = label_log_probs(vae, x)
    assert torch.equal(found_conditions, torch.eye(4))
    torch.testing.assert_close(log_probs, log_p - log_p.logsumexp(-1, keepdim=True), atol=1e-4, rtol=1e-4)
    single, alone = label_log_probs(vae, x[2])
    torch.testing.assert_close(alone, log_probs[2], atol=1e-4, rtol=1e-4)
    assert torch.equal(single, found_conditions)


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("name", ["FrameVAE", "ContextVAE", "DynamicVAE", "SequenceVAE"])
def test_log_probabilities_of_labels_compare_bounds_of_all_combinations(name: str, n_samples: int) -> None:
    """By brute force with the same random numbers: the mean bound of a sequence for each combination, normalised."""
    vae, x = conditional(name), torch.rand(3, 8, N_FREQS) + 0.1
    torch.manual_seed(0)
    found_conditions, log_probs = label_log_probs(vae, x, n_samples)
    torch.manual_seed(0)
    bounds = torch.zeros(3, 6)
    for i, (digit, speaker) in enumerate((d, s) for d in ("zero", "one", "two") for s in ("ann", "bob")):
        condition = conditions().encode(digit=digit, speaker=speaker)
        assert torch.equal(found_conditions[i], condition)
        with torch.no_grad():
            for _ in range(n_samples):
                bounds[:, i] += elbo(vae, x, condition.expand(3, 5)).bound.sum(-1) / n_samples
    torch.testing.assert_close(log_probs.exp(), torch.softmax(bounds, -1), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3))


def test_models_that_compare_no_labels_say_why() -> None:
    with pytest.raises(ValueError, match="FrameVAE has no labels"):
        label_log_probs(FrameVAE(N_FREQS), torch.ones(2, N_FREQS))
    with pytest.raises(ValueError, match="LabelVAE predicts its labels itself"):
        label_log_probs(predictor(), torch.ones(2, N_FREQS))


def predictor(pool: bool = True) -> LabelVAE:
    settings = {"labels": {"class": ("a", "b", "c")}, "pool": pool, "halvings": int(pool)}
    vae = conditional("LabelVAE", **settings)
    assert isinstance(vae, LabelVAE)
    return vae


@pytest.mark.parametrize("pool", [True, False])
def test_a_prediction_knows_nothing_of_the_true_label(pool: bool) -> None:
    """Training sees the labels; permuting them there and then predicting with the same weights changes nothing."""
    vae, x = predictor(pool), torch.rand(4, 8, N_FREQS) + 0.1
    predictions, posteriors = [], []
    for permutation in ([0, 1, 2, 0], [2, 0, 1, 1]):
        condition = torch.eye(3)[permutation]
        torch.manual_seed(0)
        posteriors.append(vae.infer(x, condition, mean=True).factors[0].posterior.mean)
        torch.manual_seed(0)
        predictions.append(vae.predict(x, 5))
    assert torch.equal(predictions[0], predictions[1])
    assert (posteriors[0] - posteriors[1]).abs().max() > 1e-4  # which does see it
    inference = vae.infer(x)
    (factor,) = inference.factors
    assert factor.prior is not None
    torch.testing.assert_close(factor.posterior.mean, factor.prior.mean)
    torch.testing.assert_close(factor.posterior.stddev, factor.prior.stddev)


@pytest.mark.parametrize("pool", [True, False])
def test_a_prediction_averages_the_likelihood_over_draws_of_the_prior(pool: bool) -> None:
    vae, x = predictor(pool), torch.rand(2, 8, N_FREQS) + 0.1
    torch.manual_seed(0)
    found = vae.predict(x, 100)
    prior = vae.prior(torch.zeros(2, 8, 2), past=x)
    with torch.no_grad():
        draws = torch.stack([vae.likelihood(prior.sample(), past=x).mean for _ in range(100)])
    draws = draws.mean(2, keepdim=True).expand_as(draws) if pool else draws
    error = (found - draws.mean(0)) / (draws.std(0) * math.sqrt(2 / 100))
    assert error.abs().max() < 5


def test_a_predictor_learns_labels_that_the_sound_tells_and_no_others() -> None:
    """Its bound is at most log p(y | x): after training it is near to zero on told labels, and near to -log 2 on coin
    tosses.
    """
    torch.manual_seed(0)
    told = torch.arange(32) % 2
    tossed = torch.randint(2, (32,))
    x = torch.where(told[:, None, None] == 1, 4.0, 0.25) * (torch.rand(32, 4, N_FREQS) + 0.5)
    bounds = []
    for labels in (told, tossed):
        vae = LabelVAE(
            N_FREQS,
            LabelVAESettings(latent_dim=2, width=8, blocks=1, halvings=0, labels={"class": ("a", "b")}, dropout=0.0),
        )
        vae.calibrate(x.flatten(0, 1))
        optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
        condition = torch.eye(2)[labels]
        for _ in range(60):
            noise = torch.exp(0.5 * torch.randn_like(x))  # so that no single recording can be learnt by heart
            loss = -elbo(vae, x * noise, condition).bound.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            fresh = x * torch.exp(0.5 * torch.randn_like(x))
            bounds.append(float(elbo(vae, fresh, condition).bound.mean()))
            accuracy = float((vae.predict(fresh)[:, 0].argmax(-1) == labels).float().mean())
        if labels is told:
            assert accuracy == 1.0
    assert bounds[0] > -0.1
    assert -1.2 < bounds[1] < -0.5
