import pytest
import torch

from fedgan.gan import losses


@pytest.mark.parametrize("name", ["lsgan", "hinge", "wgan_gp"])
def test_a_discriminator_is_better_off_telling_right_than_wrong(name):
    game, real, fake = losses.GAMES[name], torch.tensor([1.0]), torch.tensor([-1.0])

    assert game.discriminator(real, fake) < game.discriminator(fake, real)


@pytest.mark.parametrize("name", ["lsgan", "hinge", "wgan_gp"])
def test_a_generator_is_better_off_when_its_scan_looks_real(name):
    game = losses.GAMES[name]

    assert game.generator(torch.tensor([1.0])) < game.generator(torch.tensor([-1.0]))


def test_the_gradient_penalty_takes_each_scans_norm_over_all_its_pixels():
    def slope_of_a_third(images):
        return images.sum(dim=(1, 2, 3)) / 3

    scans = torch.zeros(2, 1, 3, 3)

    penalty = losses.gradient_penalty(slope_of_a_third, scans, scans, torch.Generator())

    assert penalty.item() == pytest.approx(0)  # nine pixels with a slope of 1/3 have norm 1


def test_the_gradient_penalty_can_be_descended():
    weight = torch.ones(1, requires_grad=True)
    scans = torch.zeros(1, 1, 1, 1)

    losses.gradient_penalty(lambda x: 3 * weight * x.sum(dim=(1, 2, 3)), scans, scans, torch.Generator()).backward()

    assert weight.grad.item() == pytest.approx(2 * (3 - 1) * 3)
