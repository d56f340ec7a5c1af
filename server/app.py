"""The Flower ServerApp of a simulation: the coordinator's loop, with the sites behind Flower's Grid."""

import logging
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgan.federated.coordinator import Federation
from fedgan.federated.spool import Spool
from fedgan.simulation import run_in_folder
from server.federation import FlowerFederation, bind_simulated_nodes

JOIN_TIMEOUT_S = 600.0
"""How long simulated sites may take to start; Ray alone takes most of a minute on a busy machine."""

ROUND_TIMEOUT_S = 12 * 3600.0
"""How long a round may take; a simulated site does not go missing unnoticed, so this is Flower's own limit."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the run in ``run-folder`` from its last kept round to its last, saying each round as it is kept."""
    speak = logging.getLogger("fedgan")
    speak.addHandler(logging.StreamHandler())
    speak.setLevel(logging.INFO)

    def federation_of(sites: Sequence[str], spool: Spool) -> Federation:
        nodes = bind_simulated_nodes(grid, sites, timeout_s=JOIN_TIMEOUT_S)
        return FlowerFederation(grid, nodes, ROUND_TIMEOUT_S, spool)

    run_in_folder(Path(str(context.run_config["run-folder"])), federation_of)
