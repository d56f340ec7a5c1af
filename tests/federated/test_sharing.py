import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.federated.sharing import Sharing

SHARING = Sharing(10, {"generator": 1, "critic": 3}, kept=frozenset({"statistic"}))


def test_a_network_that_is_sent_every_third_round_stays_at_the_site_in_between():
    assert [("critic" in SHARING.sent_after(number)) for number in range(6)] == [False, False, True] * 2
    assert [("critic" in SHARING.own_after(number)) for number in range(3)] == [True, True, False]


def test_everything_that_is_ever_sent_is_sent_after_the_last_round():
    assert SHARING.sent_after(9) == {"generator", "critic"}


def test_what_is_kept_stays_at_the_site_whether_it_is_sent_or_not():
    assert SHARING.own_after(2) == {"statistic"}


def test_what_is_found_from_a_network_stays_at_the_site_with_it_and_is_never_sent():
    private = Sharing(10, {"critic": 3}, beside={"vector": 3})

    assert [private.sent_after(number) for number in (0, 2, 9)] == [set(), {"critic"}, {"critic"}]
    assert [private.own_after(number) for number in (0, 2, 9)] == [{"critic", "vector"}, set(), set()]
    assert private.still_own({"vector": torch.zeros(1)}, 2, 3) == {}


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_site_that_missed_an_averaging_takes_over_what_the_others_agreed_on(since, missed):
    own = {name: torch.zeros(1) for name in ("critic", "statistic")}

    still = SHARING.still_own(own, since, since + missed)

    averaged = any("critic" in SHARING.sent_after(number) for number in range(since, since + missed))
    assert set(still) == {"statistic"} | (set() if averaged else {"critic"})
