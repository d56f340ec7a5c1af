"""An attacker who knows everything but the chance, and one patient's gradient, against one release, many times over.

From how well he tells releases with the patient from those without follows a bound from below on what the release
gives away, as mu of Gaussian differential privacy (Dong et al. 2019, arXiv:1905.02383; audits: Nasr et al. 2023,
arXiv:2302.07956): noise of sigma clipping norms promises 1 / sigma. A bound above the promise convicts the release.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from scipy.special import ndtri
from scipy.stats import beta
from torch import Tensor

from fedgan.gan.build import build_networks
from fedgan.privacy.chance import secret_normal
from fedgan.privacy.dp_sgd import Mechanism, clipped, noisy_sum
from fedgan.privacy.gradients import gradient_of
from fedgan.records import Batch

PROMISED = Mechanism(noise=1.0, clip=1.0, rate=1.0, patients=1)
SIZE = 16

Halves = tuple[Tensor, Tensor]
"""A patient's gradient from the real scan and from the generated one."""


def bound(observe: Callable[[bool], Tensor], runs: int) -> float:
    """Return a lower bound on mu, right with 99 % confidence: ``observe`` makes a release with the patient, or without.

    Half of the runs choose the direction and the threshold, the other half judge them (Clopper and Pearson 1934).
    """
    learn, judge = (
        torch.stack([torch.stack([observe(there) for _ in range(runs // 2)]) for there in (False, True)])
        for _ in range(2)
    )
    direction = learn[1].mean(dim=0) - learn[0].mean(dim=0)
    threshold = (learn.mean(dim=(0, 1)) * direction).sum()
    raised = ((judge * direction).sum(dim=2) > threshold).sum(dim=1)
    false_alarms, hits = (int(count) for count in raised)
    missed = runs // 2 - hits
    most_false, most_missed = (beta.ppf(0.995, wrong + 1, runs // 2 - wrong) for wrong in (false_alarms, missed))
    return float(-ndtri(most_false) - ndtri(most_missed))


def everyone() -> list[Halves]:
    """Return patients whose gradients point anywhere, and last the one in question, whose halves are alike."""
    rng = torch.Generator().manual_seed(3)
    others = torch.nn.functional.normalize(torch.randn(16, 2, SIZE, generator=rng), dim=2)
    same = torch.nn.functional.normalize(torch.randn(SIZE, generator=rng), dim=0)
    return [*((real, fake) for real, fake in others), (same, same)]


MOVED = [torch.nn.Parameter(torch.zeros(SIZE))]


def ours(patients: Sequence[Halves]) -> Tensor:
    return noisy_sum([real + fake for real, fake in patients], MOVED, PROMISED)


def with_half_the_noise(patients: Sequence[Halves]) -> Tensor:
    return noisy_sum([real + fake for real, fake in patients], MOVED, Mechanism(0.5, 1.0, 1.0, 1))


def clipping_each_patient_twice(patients: Sequence[Halves]) -> Tensor:
    return noisy_sum([half for patient in patients for half in patient], MOVED, PROMISED)


def pairing_halves_of_different_patients(patients: Sequence[Halves]) -> Tensor:
    fakes = [fake for _, fake in patients]
    shifted = [fakes[-1], *fakes[:-1]]  # who is taken out moves the pairs of all
    return noisy_sum([real + fake for (real, _), fake in zip(patients, shifted, strict=True)], MOVED, PROMISED)


def with_a_second_step_that_nobody_charges(patients: Sequence[Halves]) -> Tensor:
    return ours(patients) + ours(patients)


def with_noise_from_the_runs_seed(patients: Sequence[Halves]) -> Tensor:
    """Return what is left when one who knows the seed takes the noise off again."""
    noisy, replayed = (torch.randn(SIZE, generator=torch.Generator().manual_seed(42)) for _ in range(2))
    return sum(clipped(real + fake, 1.0) for real, fake in patients) + noisy - replayed


def audited(release: Callable[[Sequence[Halves]], Tensor], runs: int = 2000) -> float:
    patients = everyone()[::-1]  # the one in question first, so that taking him out moves all others up
    return bound(lambda there: release(patients if there else patients[1:]), runs)


def test_a_release_gives_away_no_more_than_is_promised_and_the_audit_would_see_it():
    found = audited(ours)

    assert 0.5 / PROMISED.noise < found <= 1 / PROMISED.noise


@pytest.mark.parametrize(
    "mutant",
    [
        with_half_the_noise,
        clipping_each_patient_twice,
        pairing_halves_of_different_patients,
        with_a_second_step_that_nobody_charges,
        with_noise_from_the_runs_seed,
    ],
)
def test_a_release_that_breaks_its_promise_is_convicted(mutant):
    assert audited(mutant) > 1 / PROMISED.noise


@pytest.mark.parametrize("side", ["critics", "generators"])
def test_real_steps_of_both_players_keep_what_is_promised(tiny, side):
    networks = build_networks(tiny().model, num_diseases=2, seed=0, device=torch.device("cpu"), one_patient=True).eval()
    moved = list(networks.critics() if side == "critics" else networks.forward_generator.parameters())
    gradients = []
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        scans = torch.rand(2, 1, 1, 32, 32, generator=rng) * 2 - 1
        scene = networks.imagine(Batch(scans[0], scans[1], torch.eye(2)[:1], scans[0, :0]), rng)
        terms = networks.critic_terms(scene, rng) if side == "critics" else networks.generator_terms(scene, rng)
        gradients.append(gradient_of(sum(terms.values()), moved))
    mechanism = Mechanism(noise=1.0, clip=1e-3, rate=1.0, patients=1)
    direction = clipped(gradients[0], 1.0).float()

    def observe(there: bool) -> Tensor:
        return (noisy_sum(gradients[0 if there else 1 :], moved, mechanism) @ direction)[None] / mechanism.clip

    assert 0.25 < bound(observe, 1000) <= 1


def test_chance_of_two_releases_has_nothing_in_common():
    first, second = secret_normal(10_000), secret_normal(10_000)

    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05
