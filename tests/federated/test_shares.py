from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgan.federated.shares import ShareRule, shares

COUNTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=12)
RULES = st.builds(ShareRule, exponent=st.floats(0, 1), cap=st.floats(0.3, 1), floor=st.floats(0, 0.3))


@given(COUNTS, RULES)
def test_shares_sum_to_one_or_nobody_has_any(counts, rule):
    found = shares(counts, rule)

    assert sum(found) == pytest.approx(1.0 if any(counts) else 0.0)
    assert all((share > 0) == (count > 0) for share, count in zip(found, counts, strict=True))


@given(COUNTS, RULES)
def test_no_share_lies_beyond_its_bounds_where_there_are_sites_enough(counts, rule):
    found = [share for share in shares(counts, rule) if share]

    alike = 1 / max(1, len(found))
    assert all(min(rule.floor, alike) - 1e-9 <= share <= max(rule.cap, alike) + 1e-9 for share in found)


@given(COUNTS, RULES)
def test_more_scans_never_mean_less_of_a_share(counts, rule):
    found = sorted(zip(counts, shares(counts, rule), strict=True))

    assert all(small <= large + 1e-9 for (_, small), (_, large) in pairwise(found))


@given(COUNTS.filter(any), st.integers(1, 1000))
def test_shares_do_not_depend_on_the_unit(counts, unit):
    rule = ShareRule(cap=0.5)

    assert shares([unit * count for count in counts], rule) == pytest.approx(shares(counts, rule))


def test_with_exponent_zero_all_sites_count_alike():
    assert shares([1, 1000, 0], ShareRule(exponent=0.0)) == [0.5, 0.5, 0.0]


def test_the_largest_hospital_does_not_own_the_model():
    assert shares([10_000, 100, 100], ShareRule(cap=0.5)) == pytest.approx([0.5, 0.25, 0.25])


def test_two_sites_under_a_cap_of_a_third_count_alike():
    assert shares([9, 1], ShareRule(cap=1 / 3)) == pytest.approx([0.5, 0.5])
