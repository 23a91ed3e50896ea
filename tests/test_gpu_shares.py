"""Each slot has its own GPUs; what is not free is waited for, what does not come back is a leak.

No machine of the tests has a GPU: the driver's answers are given, what is made of them is real.
"""

import asyncio
import threading

import pytest

from attempts import gpu_shares
from attempts.gpu_shares import (
    GpuMemoryShort,
    GpuShares,
    allowed,
    share_of,
    unexplained,
    visible,
)
from child import runner
from jobs import JOBS
from tests.children import UNRULY
from tests.unruly_jobs import Anything
from worker.gpus import Driver, Gpu, Gpus

GIB = 1 << 30


class Card:
    """What a driver would say of some cards, each with so many bytes free."""

    def __init__(self, *free):
        self.free = [*free]
        #: By program, on each of them.
        self.held = {}
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return Gpus(
            tuple(
                Gpu(
                    number=n,
                    uuid=f"GPU-{n}",
                    name=f"card {n}",
                    total_bytes=80 * GIB,
                    free_bytes=free,
                    busy_percent=0,
                    held_bytes=self.held,
                )
                for n, free in enumerate(self.free)
            ),
            "610.47",
            "13.2",
        )


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(gpu_shares, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(gpu_shares, "LOOK_AGAIN_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("cards", "slots", "shares"),
    [
        (0, 2, [[], []]),
        (1, 1, [[0]]),
        (4, 1, [[0, 1, 2, 3]]),
        (4, 2, [[0, 2], [1, 3]]),
        (3, 2, [[0, 2], [1]]),
        (1, 3, [[0], [0], [0]]),
        (2, 3, [[0], [1], [0]]),
    ],
)
def test_each_slot_has_its_own_devices_and_none_is_left_over(cards, slots, shares):
    gpus = [*Card(*[GIB] * cards)().devices]
    assert [[g.number for g in share_of(gpus, slots, slot)] for slot in range(slots)] == shares


@pytest.mark.parametrize(
    ("operators", "left"),
    [(None, [0, 1, 2]), ("1", [1]), ("0, 2", [0, 2]), ("GPU-1", [1]), ("", []), ("MIG-x", [])],
)
def test_what_the_operator_does_not_allow_is_nobodys(operators, left):
    gpus = [*Card(GIB, GIB, GIB)().devices]
    assert [gpu.number for gpu in allowed(gpus, operators)] == left


async def test_who_is_to_stop_waits_for_no_memory():
    """The run that asked sees itself that it is to stop."""
    stopping, card = asyncio.Event(), Card(GIB)
    stopping.set()
    async with GpuShares(1, Driver(card)).taken(0, 2 * GIB, unless=stopping):
        assert card.asked == 1


async def test_while_the_driver_does_not_answer_the_last_shares_hold():
    card = Card(GIB, GIB)
    shares = GpuShares(2, Driver(card))
    assert await environment_of(shares, 1) == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    card.free = []
    assert await environment_of(shares, 1) == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


async def environment_of(shares, slot):
    async with shares.taken(slot, 0, unless=asyncio.Event()) as environment:
        return environment


def test_what_cuda_may_see_is_said_by_uuid():
    assert visible([*Card(1, 1)().devices]) == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}
    assert visible([]) == {}


async def test_a_slot_that_has_all_leaves_the_environment_as_it_is():
    async with GpuShares(1, Driver(Card(GIB, GIB))).taken(
        0, 0, unless=asyncio.Event()
    ) as environment:
        assert environment == {}


async def test_what_another_program_holds_is_not_free():
    shares = GpuShares(1, Driver(Card(GIB)))
    with pytest.raises(
        GpuMemoryShort, match="1024 of 81920 MiB free, and 2048 are needed"
    ) as short:
        async with shares.taken(0, 2 * GIB, unless=asyncio.Event()):
            pytest.fail("it began without the memory it needs")
    assert "a program outside of it holds the rest" in str(short.value)


async def test_who_waits_in_vain_for_a_shared_device_is_told_that_it_was_for_another_attempt():
    card = Card(70 * GIB)
    shares = GpuShares(2, Driver(card))
    async with shares.taken(0, 0, unless=asyncio.Event()):
        card.free = [30 * GIB]
        with pytest.raises(GpuMemoryShort, match="another attempt of this worker runs on it"):
            await held(shares, 60 * GIB)
        card.free = [70 * GIB]


@pytest.mark.parametrize(
    ("before", "now", "free_now", "lacks"),
    [
        ({7: 10}, {7: 30}, 50, 0),  # it has grown
        ({7: 10}, {7: 30}, 40, 10),  # it has grown, and something is left behind
        ({7: 10}, {}, 70, 10),  # it has ended, and what it had is held by nobody
        ({}, {8: 20}, 50, 20),  # one that came meanwhile cannot be told from what was left behind
    ],
)
def test_what_a_program_took_that_was_there_before_is_no_leak(before, now, free_now, lacks):
    card = Card(70)().devices[0]
    assert lacks == unexplained(
        card._replace(held_bytes=before), card._replace(held_bytes=now, free_bytes=free_now)
    )


async def test_another_programs_growth_does_not_have_the_worker_replaced():
    card = Card(70 * GIB)
    card.held = {7: 5 * GIB}
    shares = GpuShares(1, Driver(card))
    async with shares.taken(0, 0, unless=asyncio.Event()):
        card.free, card.held = [40 * GIB], {7: 35 * GIB}
    assert not shares.leaked


async def test_memory_that_comes_free_in_time_is_enough():
    card = Card(GIB)
    taking = asyncio.create_task(held(GpuShares(1, Driver(card)), 2 * GIB))
    while not card.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    card.free = [3 * GIB]
    assert await taking


async def held(shares, needed):
    async with shares.taken(0, needed, unless=asyncio.Event()):
        return True


async def test_what_does_not_come_back_is_a_leak(caplog):
    card = Card(70 * GIB)
    shares = GpuShares(1, Driver(card))
    async with shares.taken(0, 0, unless=asyncio.Event()):
        card.free = [30 * GIB]  # the attempt's own use
    assert shares.leaked
    assert "40960 MiB did not come back" in caplog.text


async def test_what_comes_back_is_none_be_it_late():
    card = Card(70 * GIB)
    shares = GpuShares(1, Driver(card))
    taking = asyncio.create_task(freed_late(shares, card))
    await taking
    assert not shares.leaked


async def freed_late(shares, card):
    async with shares.taken(0, 0, unless=asyncio.Event()):
        card.free = [30 * GIB]
        asked = card.asked
        asyncio.get_running_loop().create_task(free_when_asked(card, asked))


async def free_when_asked(card, asked):
    while card.asked <= asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    card.free = [70 * GIB]


async def test_on_a_shared_device_the_other_attempts_memory_is_no_leak():
    card = Card(70 * GIB)
    shares = GpuShares(2, Driver(card))
    async with shares.taken(0, 0, unless=asyncio.Event()):
        card.free = [50 * GIB]
        async with shares.taken(1, 0, unless=asyncio.Event()):
            card.free = [30 * GIB]
        assert not shares.leaked
        card.free = [70 * GIB]
    assert not shares.leaked


async def test_a_driver_that_hangs_keeps_no_job_from_running(monkeypatch):
    monkeypatch.setattr(gpu_shares, "ASK_SECONDS", 0.01)
    wake = threading.Event()

    def hang():
        wake.wait()
        return Gpus()

    try:
        assert await held(GpuShares(1, Driver(hang)), GIB)
    finally:
        wake.set()


# ---- in real processes


@pytest.fixture
def show_environment(monkeypatch):
    monkeypatch.setitem(JOBS, "show_environment", JOBS["sleep"]._replace(params=Anything))
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))


def with_cards(worker, card):
    worker.manager.parts.gpus._driver = Driver(card)
    return worker


async def test_two_attempts_at_a_time_see_different_devices(crowd, show_environment):
    worker = with_cards(crowd.worker(slots=2), Card(GIB, GIB))
    ends = await asyncio.gather(
        *(worker("start", name, kind="show_environment", process_id=name) for name in "ab")
    )
    seen = {end["result"]["CUDA_VISIBLE_DEVICES"] for end in ends}
    assert seen == {"GPU-0", "GPU-1"}


async def test_a_kind_that_needs_more_than_is_free_fails_with_the_numbers(
    crowd, show_environment, monkeypatch
):
    needy = JOBS["show_environment"]._replace(gpu_bytes=2 * GIB)
    monkeypatch.setitem(JOBS, "show_environment", needy)
    worker = with_cards(crowd.worker(), Card(GIB))
    end = await worker("start", "p", kind="show_environment", process_id="p")
    assert end["failure"]["code"] == "gpu_memory_short"
    assert end["why"]["code"] == "cuda_memory"
    assert end["failure"]["retryable"]


async def test_only_a_leak_has_the_worker_replaced(crowd):
    """RunPod's SDK takes `refresh_worker` out of the reply and ends the worker."""
    card = Card(70 * GIB)
    worker = with_cards(crowd.worker(), card)
    assert "refresh_worker" not in await worker.start("a")
    task = await worker.running("b", seconds=0.5, steps=5)
    card.free = [30 * GIB]
    assert (await task)["refresh_worker"] is True
