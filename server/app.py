"""The Flower ServerApp: the coordinator's loop, with the sites behind Flower's Grid, simulated or at hospitals."""

import logging
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgan.federated.coordinator import Federation
from fedgan.federated.spool import Spool
from fedgan.simulation import run_in_folder
from server.federation import FlowerFederation, bind_simulated_nodes
from server.training import train_between_hospitals

JOIN_TIMEOUT_S = 600.0
"""How long simulated sites may take to start; Ray alone takes most of a minute on a busy machine."""

ROUND_TIMEOUT_S = 12 * 3600.0
"""How long a round may take; a simulated site does not go missing unnoticed, so this is Flower's own limit."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a run from its last kept round to its last: the one in ``run``, or the simulated one in ``run-folder``."""
    if "run" in context.run_config:
        train_between_hospitals(grid, str(context.run_config["run"]))
    else:
        _simulate(grid, Path(str(context.run_config["run-folder"])))


def _simulate(grid: Grid, folder: Path) -> None:
    """Train the run in ``folder``, saying each round as it is kept."""
    speak = logging.getLogger("fedgan")
    speak.addHandler(logging.StreamHandler())
    speak.setLevel(logging.INFO)

    def federation_of(sites: Sequence[str], spool: Spool) -> Federation:
        nodes = bind_simulated_nodes(grid, sites, timeout_s=JOIN_TIMEOUT_S)
        return FlowerFederation(grid, nodes, ROUND_TIMEOUT_S, spool)

    run_in_folder(folder, federation_of)
