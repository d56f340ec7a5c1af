"""The Flower ClientApp of a simulated site: from Flower's message to ``Site.answer`` and back."""

import logging
from functools import cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedgan.assembly import networks_for
from fedgan.config import read
from fedgan.federated.site import Site
from fedgan.gan.build import choose_device
from fedgan.records import SiteFailure
from fedgan.settings import Simulation
from fedgan.simulation import load_cohorts, open_folder, simulated_site
from fedgan.wire import pack_answer, pack_partition, unpack_task

log = logging.getLogger(__name__)

app = ClientApp()


@app.query()
def tell_partition(message: Message, context: Context) -> Message:
    """Say which of the run's sites this node plays."""
    return Message(pack_partition(_partition(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer the coordinator's task; whatever goes wrong leaves here as the name of its class."""
    try:
        folder = Path(str(context.run_config["run-folder"]))
        site = _site(folder, _partition(context))
        task = unpack_task(message.content, site.memory.model_of)
        if _settings(folder).compress.model != "none":
            site.memory.keep_model(task.model.weights)
        content = pack_answer(site.answer(task))
    except Exception as fault:  # Flower would send the exception's text, and with it a path or a patient
        log.exception("a site could not answer")
        content = pack_answer(SiteFailure("", 0, type(fault).__name__))
    return Message(content, reply_to=message)


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


@cache
def _settings(folder: Path) -> Simulation:
    return read(folder / "config.yaml", Simulation)


@cache  # Flower gives a node's tasks to whichever process is free, and reading scans takes longer than a round
def _site(folder: Path, partition: int) -> Site:
    """Return the run's site of that number, with its scans read."""
    settings = _settings(folder)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    name = (settings.data.sites or ())[partition]
    alone = settings.model_copy(update={"data": settings.data.model_copy(update={"sites": (name,)})})
    memory = open_folder(settings, folder).memory_of(name)
    networks = networks_for(settings, choose_device(settings.device))
    return simulated_site(settings, name, load_cohorts(alone)[name], networks, memory=memory)
