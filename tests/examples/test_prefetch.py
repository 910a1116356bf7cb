"""Batches prepared ahead are the stream's own, whenever it is saved and taken up again."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.data.prefetch import Prefetched, data_thread


class Draws:
    """Random numbers that go on from a state; every third draw takes a while."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = 0
        self.threads = set()

    def __next__(self):
        self.threads.add(threading.current_thread())
        self.drawn += 1
        if self.drawn % 3 == 0:
            time.sleep(0.002)
        return torch.rand((), generator=self.generator).item()

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


@pytest.fixture(scope="module")
def worker():
    with data_thread() as worker:
        yield worker


@given(before=st.integers(0, 5), after=st.integers(0, 5), other=st.integers(0, 5))
def test_it_is_the_same_stream_also_when_it_goes_on_from_a_state(before, after, other, worker):
    expected = [next(draws) for draws in [Draws(0)] for _ in range(before + after)]
    one, another = Prefetched(Draws(0), worker), Prefetched(Draws(1), worker)
    found = [next(one) for _ in range(before)]
    worker.submit(int).result()  # the thread is ahead by now
    state = one.state_dict()
    for _ in range(other):
        next(one), next(another)
    for stream in (one, another):
        stream.load_state_dict(state)
        assert torch.equal(stream.state_dict()["generator"], state["generator"])
        assert found + [next(stream) for _ in range(after)] == expected


def test_the_next_item_is_prepared_while_this_one_is_in_use(worker):
    draws = Draws(0)
    stream = Prefetched(draws, worker)
    assert draws.drawn == 0
    next(stream)
    worker.submit(int).result()  # what was queued before is done
    assert draws.drawn == 2
    assert draws.threads.isdisjoint({threading.main_thread()})


def test_an_error_comes_with_the_item_it_belongs_to(worker):
    class Ends(Draws):
        def __next__(self):
            if self.drawn == 2:
                raise ValueError("no heart left")
            return super().__next__()

    stream = Prefetched(Ends(0), worker)
    assert [next(stream), next(stream)] == [next(draws) for draws in [Draws(0)] for _ in range(2)]
    with pytest.raises(ValueError, match="no heart left"):
        next(stream)


def test_the_thread_computes_as_the_main_one_does_and_alone():
    """The commands flush denormals; threads of PyTorch's own would compete with the training step's."""
    torch.set_flush_denormal(True)
    denormal = torch.full((8,), 1e-39)
    with data_thread() as worker:
        assert worker.submit(lambda: (denormal * 1).tolist()).result() == (denormal * 1).tolist() == [0] * 8
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with data_thread() as worker:
            assert worker.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
