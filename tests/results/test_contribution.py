from fedgan.results.contribution import contributions
from fedgan.results.metrics import Round


def kept(number, shares, planned=None, failed=None):
    return Round(
        round=number,
        seconds=1.0,
        trained=tuple(shares),
        failed=failed or {},
        losses={},
        validation={},
        shares={site: {"generator": share, "idle": 0.0} for site, share in shares.items()},
        planned_shares={site: {"generator": share, "idle": 0.0} for site, share in (planned or shares).items()},
    )


def test_a_site_counts_over_all_rounds_and_not_only_over_its_own():
    found = contributions(
        [kept(1, {"A": 0.25, "B": 0.75}), kept(2, {"A": 1.0}, {"A": 0.25, "B": 0.75}, {"B": "TooLarge"})]
    )

    assert (found["A"].trained, found["A"].failed) == (2, {})
    assert (found["B"].trained, found["B"].failed) == (1, {"TooLarge": 1})
    assert [found[site].shares["generator"] for site in "AB"] == [0.625, 0.375]
    assert [found[site].planned_shares["generator"] for site in "AB"] == [0.25, 0.75]


def test_a_network_that_is_sent_every_second_round_counts_in_these_rounds_alone():
    between = kept(1, {"A": 0.25, "B": 0.75})
    sent = kept(2, {}).model_copy(update={"shares": {"A": {"critic": 0.5}, "B": {"critic": 0.5}}})

    found = contributions([between, sent])

    assert found["A"].shares == {"generator": 0.25, "critic": 0.5}


def test_networks_that_nobody_trains_are_left_out():
    assert list(contributions([kept(1, {"A": 1.0})])["A"].shares) == ["generator"]


def test_without_rounds_nobody_contributed():
    assert contributions([]) == {}


def test_traffic_is_the_mean_of_the_rounds_that_were_carried():
    rounds = [
        kept(1, {"A": 1.0}).model_copy(update={"traffic": {"A": {"to_site": 10.0, "from_site": 4.0}}}),
        kept(2, {"A": 1.0}).model_copy(update={"traffic": {"A": {"to_site": 2.0, "from_site": 2.0}}}),
        kept(3, {"A": 1.0}),
    ]

    assert contributions(rounds)["A"].traffic == {"to_site": 6.0, "from_site": 3.0}
