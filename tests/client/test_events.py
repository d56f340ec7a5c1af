"""Whoever watches a site reads one line for each thing that happens, from whichever of its processes."""

from client.events import Events
from fedgan.audit import Audit


def test_each_event_is_told_once_and_what_was_before_is_not(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.record("joined")
    events = Events(path)

    audit.record("joined")
    audit.record("task", task="0f3a", run="tiny", round=2)
    first = list(events.lines())
    audit.record("answered", task="0f3a", round=2, seconds=7)
    audit.record("task", task="0f3d", run="tiny", scores=2)
    audit.record("refused", task="0f3b", reason="TaskTooLong")
    audit.record("refused", task="0f3c", reason="BudgetExhausted")
    audit.record("refused", reason="BundleRefused", bundle="ab" * 32)
    audit.record("answer refused", reason="redirect")
    second = list(events.lines())

    assert first == ["connected; waiting for a task", "task 0f3a: round 2 of tiny"]
    assert second[0] == "task 0f3a: round 2 of tiny answered after 7 s; waiting for the next"
    assert second[1] == "task 0f3d: scores of round 2 of tiny"
    assert second[2].startswith("task 0f3b: refused (TaskTooLong)")
    assert "the privacy budget is exhausted" in second[3]
    assert second[4].startswith("refused code")
    assert "(redirect)" in second[5]
    assert list(events.lines()) == []


def test_a_line_that_is_being_written_is_told_when_it_is_whole(tmp_path):
    path = tmp_path / "audit.jsonl"
    events = Events(path)
    with path.open("a") as file:
        file.write('{"event": "join')
    before = list(events.lines())

    with path.open("a") as file:
        file.write('ed"}\n')

    assert before == []
    assert list(events.lines()) == ["connected; waiting for a task"]
