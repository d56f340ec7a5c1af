"""Sites that do not train, for ``link_cost.py``: of our federation, and of Flower's own.

``idle_sites.py NAME HOME`` is ``fed-client --site NAME``, but for what its worker makes of a task: ``idle_worker.py``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from client import join
from client.cli import main
from fedgan.bundle import app_toml

FLOWER_APP: Mapping[str, str] = {
    "pyproject.toml": app_toml("stock", 'folder = ""\nrounds = 1\nsites = 1'),
    "server_app.py": """\
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

app = ServerApp()


class Whole(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if sum(reply.has_content() for reply in replies) < self.min_train_nodes:
            raise RuntimeError("a site did not answer")
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid, context):
    folder, sites = Path(str(context.run_config["folder"])), context.run_config["sites"]

    def mark(number, arrays):
        with (folder / "marks.txt").open("a") as file:
            file.write(f"{number}\\n")

    strategy = Whole(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    arrays = ArrayRecord(load_file(folder / "model.safetensors"))
    strategy.start(grid, arrays, num_rounds=context.run_config["rounds"], timeout=3600, evaluate_fn=mark)
""",
    "client_app.py": """\
import torch  # without it, Flower makes no tensors of arrays
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    factor = 1 + 1e-4 * (1 + context.node_config["partition-id"])
    state = message.content["arrays"].to_torch_state_dict()
    # As after training, no tensor equals another: Flower would send such only once.
    moved = {name: tensor * (factor + 1e-6 * number) for number, (name, tensor) in enumerate(state.items())}
    arrays = ArrayRecord(moved)
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 20})}), reply_to=message)
""",
}


def take_part(name: str, home: str) -> int:
    """Take part as ``fed-client`` does, with another worker."""
    script = str(Path(__file__).with_name("idle_worker.py"))

    def command(parts: join._Processes) -> list[str]:
        return [sys.executable, "-P", script, name, home, str(parts.node.worker)]

    join._Processes._worker = command  # type: ignore[method-assign]
    return main(["--site", name, "--home", home])


if __name__ == "__main__":
    sys.exit(take_part(*sys.argv[1:]))
