"""What sites say to have spent never falls, over all runs; a site for which it does is left out of the round."""

import json

import pytest

from fedgan.errors import LedgerError
from fedgan.records import GlobalModel, RoundTask, ScanCounts, SiteFailure, SiteUpdate
from server.reported import NeverLess

TASK = RoundTask(GlobalModel(0, {}), 1)


class Saying:
    """A federation of one site that says one thing after the other."""

    def __init__(self, *said):
        self.said = list(said)

    def ask(self, task):
        epsilon, delta = self.said.pop(0)
        metrics = {"privacy/epsilon": epsilon, "privacy/delta": delta} if epsilon is not None else {}
        return [SiteUpdate("A", task.model.round, "", {}, ScanCounts(1), metrics), SiteFailure("B", 0, "NoAnswer")]


def told(file, *said):
    """Return the failures of the site, or None where it counts, of one run that asks as often as something is said."""
    federation = NeverLess(Saying(*said), file)
    rounds = [federation.ask(TASK) for _ in said]
    return [answers[0].reason if isinstance(answers[0], SiteFailure) else None for answers in rounds]


def test_a_site_that_says_to_have_spent_less_than_in_another_run_is_left_out_until_it_no_longer_does(tmp_path):
    first = told(tmp_path / "spent.json", (1.0, 1e-5), (2.0, 1e-5))

    second = told(tmp_path / "spent.json", (1.5, 1e-5), (1.9, 1e-5), (2.1, 1e-5))

    assert first == [None, None]
    assert second == ["EpsilonFell", "EpsilonFell", None]
    assert json.loads((tmp_path / "spent.json").read_text()) == {"A": {"1e-05": 2.1}}


def test_neither_an_accountants_error_nor_another_delta_nor_silence_is_a_fall(tmp_path):
    said = [(60.0, 1e-5), (59.95, 1e-5), (40.0, 1e-3), (None, None), (60.0, 1e-5)]

    assert told(tmp_path / "spent.json", *said) == [None] * 5


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_what_is_no_figure_is_left_to_the_judge_of_metrics_and_not_remembered(tmp_path, figure):
    assert told(tmp_path / "spent.json", (figure, 1e-5), (1.0, 1e-5)) == [None, None]
    assert json.loads((tmp_path / "spent.json").read_text()) == {"A": {"1e-05": 1.0}}


def test_a_federation_that_promises_nothing_leaves_nothing_to_remember(tmp_path):
    assert told(tmp_path / "spent.json", (None, None)) == [None]
    assert not (tmp_path / "spent.json").exists()


def test_others_answers_pass_as_they_are(tmp_path):
    answers = NeverLess(Saying((1.0, 1e-5)), tmp_path / "spent.json").ask(TASK)

    assert answers[1] == SiteFailure("B", 0, "NoAnswer")


@pytest.mark.parametrize("content", ["", "[]", '{"A": 2}', '{"A": {"1e-05": "much"}}'])
def test_a_damaged_record_is_refused_and_never_begun_anew(tmp_path, content):
    (tmp_path / "spent.json").write_text(content)

    with pytest.raises(LedgerError, match="put back its newest copy"):
        NeverLess(Saying(), tmp_path / "spent.json")
