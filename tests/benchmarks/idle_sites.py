"""Sites that do not train, for ``link_cost.py``: of our federation, and of Flower's own.

``idle_sites.py site NAME HOME`` is ``fed-client --site NAME``, but for what its worker makes of a task.
"""

import sys
from collections.abc import Mapping

from client import join, resident, worker
from client.cli import main
from fedgan.records import RoundTask, ScanCounts, SiteUpdate, digest_of

FLOWER_APP: Mapping[str, str] = {
    "pyproject.toml": """\
[project]
name = "stock"
version = "1.0.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedgan"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
folder = ""
rounds = 1
sites = 1
""",
    "server_app.py": """\
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

app = ServerApp()


@app.main()
def main(grid, context):
    folder, sites = Path(str(context.run_config["folder"])), context.run_config["sites"]

    def mark(number, arrays):
        with (folder / "marks.txt").open("a") as file:
            file.write(f"{number}\\n")

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    arrays = ArrayRecord(load_file(folder / "model.safetensors"))
    strategy.start(grid, arrays, num_rounds=context.run_config["rounds"], timeout=3600, evaluate_fn=mark)
""",
    "client_app.py": """\
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    factor = 1 + 1e-4 * (1 + context.node_config["partition-id"])
    state = message.content["arrays"].to_torch_state_dict()
    arrays = ArrayRecord({name: tensor * factor for name, tensor in state.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 20})}), reply_to=message)
""",
}


class Idle:
    """Answers at once: each tensor moved by a little of itself, by another part at each site."""

    def __init__(self, name: str) -> None:
        """Take the site's name, a capital letter."""
        self.name = name

    def answer(self, task: RoundTask) -> SiteUpdate:
        """Return an update of its own."""
        before, factor = task.model.weights, 1e-4 * (ord(self.name) - ord("A") + 1)
        delta = {tensor: value * factor for tensor, value in before.items()} if task.local_steps else {}
        return SiteUpdate(self.name, task.model.round, digest_of(before), delta, ScanCounts(10, 10, 0, (10,)), {})


def take_part(name: str, home: str) -> int:
    """Take part as ``fed-client`` does, with the worker below."""

    def command(parts: join._Processes) -> list[str]:
        return [sys.executable, "-P", __file__, "worker", name, home, str(parts.node.worker)]

    join._Processes._worker = command  # type: ignore[method-assign]
    return main(["--site", name, "--home", home])


def work(name: str, home: str, socket: str) -> int:
    """Be the worker of an idle site."""
    resident.networks_for = lambda *_: None  # type: ignore[assignment]
    resident.build_site = lambda *_, **__: Idle(name)  # type: ignore[assignment]
    sys.argv = ["worker", name, home, socket]
    return worker.main()


if __name__ == "__main__":
    sys.exit({"site": take_part, "worker": work}[sys.argv[1]](*sys.argv[2:]))
