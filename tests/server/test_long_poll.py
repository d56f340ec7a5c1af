"""A site's question for tasks waits until some have been sent, so that a round need not wait for the next question."""

import asyncio
import os
import time

import pytest

from server import long_poll
from server.long_poll import LongPoll


@pytest.fixture
def sent(tmp_path):
    file = tmp_path / "sent"

    def send():
        file.touch()
        os.utime(file, ns=(time.time_ns(),) * 2)  # a coarse clock must not hide it

    return file, send


async def asked_once(file):
    """Return where site A has asked its first question, which does not wait."""
    holding = LongPoll(file)
    await holding.wait("A")
    return holding


def test_the_first_question_is_asked_at_once(sent):
    file, _ = sent

    assert asyncio.run(LongPoll(file).wait("A"))


def test_the_next_question_is_asked_as_soon_as_tasks_have_been_sent(sent):
    file, send = sent

    async def ask_twice():
        holding = await asked_once(file)
        asking = asyncio.create_task(holding.wait("A"))
        waits = not (await asyncio.wait([asking], timeout=3 * long_poll.LOOK_S))[0]
        send()
        return waits, await asyncio.wait_for(asking, long_poll.HOLD_S / 2)

    assert asyncio.run(ask_twice()) == (True, True)


def test_tasks_that_are_sent_between_two_questions_are_not_missed(sent):
    file, send = sent

    async def ask_twice():
        holding = await asked_once(file)
        send()
        return await asyncio.wait_for(holding.wait("A"), long_poll.HOLD_S / 2)

    assert asyncio.run(ask_twice())


def test_a_question_is_asked_after_a_while_without_tasks(sent, monkeypatch):
    file, _ = sent
    monkeypatch.setattr(long_poll, "HOLD_S", 0.1)

    async def ask_twice():
        holding = await asked_once(file)
        return await asyncio.wait_for(holding.wait("A"), 10)

    assert asyncio.run(ask_twice())


@pytest.mark.parametrize("again", ["asks again", "comes in anew"])
def test_a_question_that_nobody_waits_for_takes_no_task(sent, again):
    file, send = sent

    async def die_and_return():
        holding = await asked_once(file)
        dead = asyncio.create_task(holding.wait("A"))
        await asyncio.sleep(0)
        if again == "comes in anew":
            holding.forget("A")
        alive = asyncio.create_task(holding.wait("A"))
        await asyncio.sleep(0)
        send()
        return await asyncio.gather(dead, alive)

    assert asyncio.run(die_and_return()) == [False, True]


def test_no_question_waits_or_is_asked_at_a_fence_that_closes(sent):
    file, _ = sent

    async def close():
        holding = await asked_once(file)
        asking = asyncio.create_task(holding.wait("A"))
        await asyncio.sleep(0)
        holding.close()
        return await asyncio.wait_for(asking, long_poll.HOLD_S / 2), await holding.wait("B")

    assert asyncio.run(close()) == (False, False)


def test_sites_wait_for_themselves(sent):
    file, send = sent

    async def ask():
        holding = await asked_once(file)
        first = await holding.wait("B")
        both = asyncio.gather(holding.wait("A"), holding.wait("B"))
        await asyncio.sleep(0)
        send()
        return first, await both

    assert asyncio.run(ask()) == (True, [True, True])
