r"""The terms of the objective, one cited function each. :math:`D` scores realness, larger is more real."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu


def _mean(scores: Tensor) -> Tensor:
    """Return the mean, or 0 of no scores: a side of which a patient has no scan says nothing."""
    return scores.mean() if scores.numel() else scores.sum()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Return :math:`\frac12 (E[(D(x) - 1)^2] + E[D(G(z))^2])` (Mao et al. 2017, arXiv:1611.04076, eq. 2).

    >>> lsgan_discriminator(torch.tensor([1.0]), torch.tensor([2.0]))
    tensor(2.)
    """
    return (_mean((real - 1).square()) + _mean(fake.square())) / 2


def lsgan_generator(fake: Tensor) -> Tensor:
    r"""Return :math:`\frac12 E[(D(G(z)) - 1)^2]` (Mao et al. 2017, arXiv:1611.04076, eq. 2).

    >>> lsgan_generator(torch.tensor([3.0]))
    tensor(2.)
    """
    return (fake - 1).square().mean() / 2


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Return :math:`E[(1 - D(x))_+] + E[(1 + D(G(z)))_+]` (Lim and Ye 2017, arXiv:1705.02894).

    >>> hinge_discriminator(torch.tensor([2.0]), torch.tensor([-0.5]))
    tensor(0.5000)
    """
    return _mean(relu(1 - real)) + _mean(relu(1 + fake))


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Return :math:`E[D(G(z))] - E[D(x)]` (Arjovsky et al. 2017, arXiv:1701.07875, alg. 1).

    >>> wasserstein_discriminator(torch.tensor([2.0]), torch.tensor([0.5]))
    tensor(-1.5000)
    """
    return _mean(fake) - _mean(real)


def raise_score(fake: Tensor) -> Tensor:
    r"""Return :math:`-E[D(G(z))]`, the generator's side of hinge and Wasserstein games.

    >>> raise_score(torch.tensor([2.0, 4.0]))
    tensor(-3.)
    """
    return -fake.mean()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
) -> Tensor:
    r"""Return :math:`E[(\|\nabla_{\hat x} D(\hat x)\|_2 - 1)^2]` (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3).

    The norm is over all pixels of a scan; :math:`\hat x` lies between a real and a generated scan, which are
    paired by place, so both need the same N.

    >>> double = lambda images: 2 * images.sum(dim=(1, 2, 3))
    >>> one_pixel = torch.zeros(1, 1, 1, 1)
    >>> gradient_penalty(double, one_pixel, one_pixel, torch.Generator()).item()
    1.0
    """
    share = torch.rand(len(real), 1, 1, 1, generator=rng).to(real.device)
    between = (share * real + (1 - share) * fake).detach()
    gradient = torch.func.grad(lambda scans: discriminator(scans).sum())(between)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def penalty_between(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
) -> Tensor:
    """Return ``gradient_penalty`` of as many pairs as there are; at the scans themselves where one side has none.

    A patient who has one side only is then penalised for himself alone, and never for a scan between two patients.
    """
    pairs = min(len(real), len(fake))
    if not pairs:
        scans = torch.cat([real, fake])
        return gradient_penalty(discriminator, scans, scans, rng)
    return gradient_penalty(discriminator, real[:pairs], fake[:pairs], rng)


@dataclass(frozen=True, slots=True)
class AdversarialGame:
    """One way to play: each player's loss, and the weight of the gradient penalty."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalty: float


GAMES = {
    "lsgan": AdversarialGame(lsgan_discriminator, lsgan_generator, penalty=0),
    "hinge": AdversarialGame(hinge_discriminator, raise_score, penalty=0),
    "wgan_gp": AdversarialGame(wasserstein_discriminator, raise_score, penalty=10),
}
"""The settings' names; 10 is the penalty's weight in Gulrajani et al. 2017."""


def cycle(images: Tensor, returned: Tensor) -> Tensor:
    r"""Return :math:`E\|F(G(x)) - x\|_1` per pixel (Zhu et al. 2017, arXiv:1703.10593, eq. 2).

    >>> cycle(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    tensor(0.5000)
    """
    return (returned - images).abs().mean()


def identity(difference: Tensor) -> Tensor:
    r"""Return :math:`E\|M(n, c)\|_1` per pixel: where the disease is not, the difference is empty.

    The identity term of Zia et al. 2023 (arXiv:2301.08939), written for a difference instead of a scan.

    >>> identity(torch.tensor([0.5, -0.5]))
    tensor(0.5000)
    """
    return difference.abs().mean()


def sparsity(difference: Tensor) -> Tensor:
    r"""Return :math:`E\|M(x, c)\|_1` per pixel: change no more than needed.

    The map's penalty of VA-GAN (Baumgartner et al. 2018, arXiv:1711.08998, eq. 4).

    >>> sparsity(torch.tensor([0.25, -0.75]))
    tensor(0.5000)
    """
    return difference.abs().mean()


def restoration(difference: Tensor, pasted: Tensor) -> Tensor:
    r"""Return :math:`E\|M(n + \delta, c) - \delta\|_1` per pixel for a pasted pseudo-lesion :math:`\delta`.

    Restoration of a foreign patch (Tan et al. 2020, arXiv:2011.04197), as in SAGAN (arXiv:2405.12872), with L1.

    >>> restoration(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.2500)
    """
    return (difference - pasted).abs().mean()


def attention(where: Tensor, lesions: Tensor) -> Tensor:
    """Return the cross entropy of where pasted pseudo-lesions are, per pixel in nats.

    Localising synthetic anomalies after Zavrtanik et al. 2021 (arXiv:2108.07610); here what is localised also gates
    the difference, as the attention of SAGAN (arXiv:2405.12872) gates features.

    Shapes: ``where`` logits and ``lesions`` in {0, 1}, both (N, 1, H, W).

    >>> attention(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    tensor(0.6931)
    """
    return binary_cross_entropy_with_logits(where, lesions.to(where))


def disease_evidence(logits: Tensor, diseases: Tensor) -> Tensor:
    """Return the cross entropy of each disease's presence, in nats.

    The auxiliary classifier's loss (Odena et al. 2017, arXiv:1610.09585), one binary question per disease.

    Shapes: ``logits`` (N, K); ``diseases`` (N, K) in {0, 1}.

    >>> disease_evidence(torch.zeros(1, 1), torch.ones(1, 1))
    tensor(0.6931)
    """
    return binary_cross_entropy_with_logits(logits, diseases)
