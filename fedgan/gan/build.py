"""From settings to networks: the one place that knows every method by its setting's name."""

from typing import cast

import torch
from torch import nn

from fedgan.errors import SettingsError
from fedgan.gan.disease_map import Drawing
from fedgan.gan.method import Method
from fedgan.gan.sagan import SAGAN
from fedgan.gan.taggan import TagGAN
from fedgan.settings import SAGAN as SAGANSettings
from fedgan.settings import Model
from fedgan.streams import generator_for


def build_networks(
    settings: Model, *, num_diseases: int, seed: int, device: torch.device, one_patient: bool = False
) -> Method:
    """Return untrained networks of the settings' method, the same for the same seed.

    With ``one_patient`` each batch of their game is one patient's scans, as in private training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "initial weights").initial_seed())
        networks: TagGAN | SAGAN
        if isinstance(settings, SAGANSettings):
            networks = SAGAN(settings, one_patient=one_patient)
        else:
            networks = TagGAN(settings, num_diseases=num_diseases, one_patient=one_patient)
    networks.to(device)
    if device.type == "cuda":
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # in the docs, not in the stubs
    return networks


def drawing_of(settings: Model) -> Drawing:
    """Return how the settings' method draws its maps."""
    return Drawing(smoothing=settings.map_smoothing, flip=settings.map_flip, tissue=settings.map_tissue)


def choose_device(name: str) -> torch.device:
    """Return the device of a setting: ``auto`` takes the GPU when there is one.

    Raises:
        SettingsError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device: PyTorch finds no GPU here; give device=cpu or device=auto")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` has bfloat16 arithmetic built in; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch cannot say
        return False
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def num_parameters(networks: Method) -> dict[str, int]:
    """Return the number of trainable parameters of each network."""
    return {
        name: count
        for name, network in cast("nn.Module", networks).named_children()
        if (count := sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad))
    }
