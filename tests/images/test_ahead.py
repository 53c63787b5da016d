from __future__ import annotations

import threading

import pytest

from detres.images.ahead import read_ahead


def test_the_next_is_read_while_one_is_used_and_no_more():
    begun = {number: threading.Event() for number in range(4)}

    def read(number: int) -> int:
        begun[number].set()
        return number * 10

    for number, future in read_ahead(range(4), read):
        assert future.result() == number * 10
        if number < 3:
            assert begun[number + 1].wait(timeout=30)
        assert not any(begun[later].is_set() for later in range(number + 2, 4))


def test_an_error_comes_with_its_item_and_ends_nothing():
    def read(number: int) -> int:
        if number == 1:
            raise OSError("damaged")
        return number

    found = []
    for number, future in read_ahead([0, 1, 2], read):
        try:
            found.append((number, future.result()))
        except OSError as error:
            found.append((number, str(error)))
    assert found == [(0, 0), (1, "damaged"), (2, 2)]


def test_nothing_to_read():
    assert list(read_ahead([], pytest.fail)) == []


def test_an_iteration_that_is_given_up_leaves_no_thread():
    before = threading.active_count()
    iteration = read_ahead([1, 2, 3], str)
    next(iteration)
    iteration.close()
    assert threading.active_count() == before
