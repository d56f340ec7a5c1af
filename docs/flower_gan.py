"""Anyone's GAN in Flower's stock loop, its two networks averaged as what they are: `flwr run` it, or read on."""

from functools import partial

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from server.strategy import GanFedAvg, Networks


def networks() -> Networks:
    """Return untrained networks, the same at the server and at the clients."""
    generator = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    discriminator = nn.Sequential(spectral_norm(nn.Linear(2, 16)), nn.ReLU(), spectral_norm(nn.Linear(16, 1)))
    return Networks(generators={"generator": generator}, discriminators={"discriminator": discriminator})


client, app = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's own numbers, and say by how many examples each network was trained."""
    gan, real = networks(), torch.randn(256, 2) / 4 + torch.tensor([1.0, -1.0])
    gan.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.99))
    players = optimizer(gan.critics()), optimizer(gan.generators())
    for _ in range(20):
        for player, sign in zip(players, (1, -1), strict=True):
            fake = gan.generator(torch.randn(256, 2))
            loss = sign * gan.discriminator(fake).mean() - (sign > 0) * gan.discriminator(real).mean()
            gan.zero_grad()
            loss.backward()
            player.step()
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in gan.state_dict().items()})
    counted = MetricRecord({"num-examples": 256, "num-examples/discriminator": len(real)})
    return Message(RecordDict({"arrays": arrays, "metrics": counted}), reply_to=message)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run three rounds of Flower's own loop."""
    start = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in networks().state_dict().items()})
    GanFedAvg(networks(), fraction_evaluate=0.0).start(grid, start, num_rounds=3)
