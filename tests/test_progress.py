"""What a run shows as it goes: bars and losses on a terminal, a line a round elsewhere."""

from io import StringIO

import pytest
from rich.console import Console

from fedgan.progress import LiveProgress


@pytest.fixture
def console():
    """A file, as when the output goes into a log; however narrow, a line stays one."""
    return Console(file=StringIO(), width=20, force_terminal=False)


@pytest.fixture
def terminal():
    return Console(file=StringIO(), width=100, force_terminal=True, force_interactive=True)


def words_on(console):
    return console.file.getvalue()


def test_off_a_terminal_each_round_is_a_line_and_nothing_else_is_printed(console):
    with LiveProgress(console) as progress:
        progress.arm("federated", rounds=2, done=0, steps=1)
        progress.step("A", {"identity": 0.5})
        progress.round(1, None)
        progress.step("A", {"identity": 0.25})
        progress.round(2, 0.5)

    assert words_on(console).splitlines() == [
        "federated: round 1 kept",
        "federated: round 2 kept, validation score of the round before 0.500",
    ]


def test_a_round_that_is_told_again_is_not_shown_again(console):
    with LiveProgress(console) as progress:
        progress.arm("federated", rounds=3, done=0, steps=1)
        for told in (1, 1, 2, 1, 2):
            progress.round(told, None)

    assert words_on(console).splitlines() == ["federated: round 1 kept", "federated: round 2 kept"]


def test_a_resumed_run_shows_only_its_new_rounds(console):
    with LiveProgress(console) as progress:
        progress.arm("federated", rounds=3, done=2, steps=1)
        for told in (1, 2, 3):
            progress.round(told, None)

    assert words_on(console).splitlines() == ["federated: round 3 kept"]


def test_an_arm_that_ends_early_says_where_and_why(console):
    with LiveProgress(console) as progress:
        progress.arm("local A", rounds=9, done=4, steps=1)
        progress.stopped("after round 4 of 9: it stood still")

    assert words_on(console).splitlines() == ["local A: stopped after round 4 of 9: it stood still"]


def test_each_arm_counts_its_rounds_anew(console):
    with LiveProgress(console) as progress:
        for arm in ("federated", "local A"):
            progress.arm(arm, rounds=1, done=0, steps=1)
            progress.round(1, None)

    assert words_on(console).splitlines() == ["federated: round 1 kept", "local A: round 1 kept"]


def test_a_terminal_shows_rounds_steps_and_each_sites_losses(terminal):
    with LiveProgress(terminal) as progress:
        progress.arm("federated", rounds=5, done=1, steps=6)
        progress.step("B", {"normal_discriminator": 0.125})
        progress.step("A", {"identity": 0.5})
        progress.round(2, 0.9)

    shown = words_on(terminal)
    for word in ("federated: rounds", "2/5", "8/30", "normal discriminator", "site A", "0.500", "site B", "0.125"):
        assert word in shown
    assert "kept" not in shown


def test_the_terminal_is_given_back_when_the_run_fails(terminal):
    with pytest.raises(KeyboardInterrupt), LiveProgress(terminal) as progress:
        progress.arm("federated", rounds=1, done=0, steps=1)
        raise KeyboardInterrupt

    hide_cursor, show_cursor = "\x1b[?25l", "\x1b[?25h"
    assert words_on(terminal).rindex(show_cursor) > words_on(terminal).rindex(hide_cursor)
