"""Every method of the benchmark by its name: what it learns from, how it is built, and its learning rates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from baseline_alone import (
    Alone,
    Autoencoder,
    PooledClassifier,
    autoencoding,
    classifying,
    denoising,
    grad_cam,
    lesion_probability,
    segmenting,
    what_is_lost,
    what_is_noise,
    with_masks,
)
from baseline_vagan import VAGAN
from torch import Tensor, nn

from fedgan.assembly import networks_for
from fedgan.cohort.cohort import Cohort
from fedgan.config import groups
from fedgan.gan.build import choose_device
from fedgan.gan.method import Method
from fedgan.gan.networks import DifferenceGenerator
from fedgan.settings import Simulation, TagGAN
from fedgan.streams import generator_for

CLASSIFIER_WIDTH = 2
"""Of the classifier's first level, in that of the U-Net: it has no way up, and else had half of the parameters."""

CAM_QUANTILE = 0.99
"""Share of the validation scans' pixels whose class activation is less than a notable difference."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Untrained networks and how to train them; what the defaults say holds for all that publish nothing else."""

    networks: Method
    learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    critic_steps: int = 1
    augment: bool = False
    """Whether its scans are turned, scaled and shifted, as its own settings say."""
    settle: Callable[[Tensor], object] = lambda images: None
    """Told the validation scans (N, 1, H, W) before maps are drawn."""
    training_scans: Callable[[Cohort], Cohort] = lambda cohort: cohort
    """What batches are drawn from; they hold no masks, but for the one method that learns from them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one method is made of settings."""

    learns_from: Literal["normal scans", "image labels", "masks"]
    make: Callable[[Simulation], Contender]
    overrides: tuple[str, ...] = ("model=taggan",)
    """Choose the settings' model; the baselines share its widths and the decay of its moving average."""


def build(recipe: Recipe, settings: Simulation) -> Contender:
    """Return the method with initial weights of the settings' seed, on their device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(settings.seed, "initial weights").initial_seed())
        contender = recipe.make(settings)
    cast("nn.Module", contender.networks).to(choose_device(settings.device))
    return contender


def _ours(settings: Simulation) -> Contender:
    model = settings.model
    return Contender(
        networks_for(settings),
        learning_rate=model.learning_rate,
        critic_learning_rate=model.critic_learning_rate,
        betas=model.betas,
        critic_steps=model.critic_steps,
        augment=model.augment,
    )


def _grad_cam(settings: Simulation) -> Contender:
    classifier = PooledClassifier(
        num_diseases=len(settings.data.diseases), width=CLASSIFIER_WIDTH * _taggan(settings).width
    )
    networks = Alone(classifier, loss=classifying, draw=grad_cam, ema_decay=settings.model.ema_decay)
    return Contender(networks, settle=partial(networks.measure_by, quantile=CAM_QUANTILE))


def _autoencoder(settings: Simulation) -> Contender:
    network = Autoencoder(size=settings.data.size, width=_taggan(settings).width)
    return Contender(Alone(network, loss=autoencoding, draw=what_is_lost, ema_decay=settings.model.ema_decay))


def _dae(settings: Simulation) -> Contender:
    return Contender(Alone(_unet(settings), loss=denoising, draw=what_is_noise, ema_decay=settings.model.ema_decay))


def _supervised(settings: Simulation) -> Contender:
    networks = Alone(_unet(settings), loss=segmenting, draw=lesion_probability, ema_decay=settings.model.ema_decay)
    return Contender(networks, training_scans=with_masks)


def _vagan(settings: Simulation) -> Contender:
    model = _taggan(settings)
    networks = VAGAN(_unet(settings), critic_width=model.critic_width, sparsity=100, ema_decay=model.ema_decay)
    return Contender(networks, betas=(0.0, 0.9), critic_steps=5)


def _unet(settings: Simulation) -> DifferenceGenerator:
    model = _taggan(settings)
    return DifferenceGenerator(num_diseases=0, width=model.width, patch=model.patch)


def _taggan(settings: Simulation) -> TagGAN:
    if not isinstance(settings.model, TagGAN):
        raise TypeError("the baselines take their widths from a TagGAN's settings")
    return settings.model


_WITHOUT = ("adversarial", "cycle", "sparsity", "classifier", "attention")

METHODS: dict[str, Recipe] = {
    "Grad-CAM": Recipe("image labels", _grad_cam),
    "AE, L1": Recipe("normal scans", _autoencoder),
    "DAE": Recipe("normal scans", _dae),
    "VA-GAN": Recipe("image labels", _vagan),
    "pseudo-lesions alone": Recipe(
        "normal scans", _ours, ("model=taggan", *(f"model.weights.{term}=0" for term in _WITHOUT))
    ),
    **{f"model={name}": Recipe("image labels", _ours, (f"model={name}",)) for name in groups()["model"]},
    "supervised U-Net": Recipe("masks", _supervised),
}
"""By name; every choice in ``configs/model`` is trained by its own settings."""

LARGE = ("model=sagan_released",)
"""Raced only when asked for by name: 90 million parameters take a day on a processor core."""
