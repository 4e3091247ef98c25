from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream.processing.customer import Rows, blank
from stream.rows import RowCache


def rows(*events: int) -> Rows:
    """Rows told apart by their count of events."""
    found = blank(len(events))
    found["events"] = events
    return found


def put(cache: RowCache, *customers: str, events: int = 1) -> None:
    cache.put(customers, rows(*[events] * len(customers)), ())


def held(cache: RowCache, *customers: str) -> dict[str, int]:
    """The events of each of the customers that the cache has."""
    found, known = cache.gather(customers, {})
    return {customer: int(found["events"][i]) for i, customer in enumerate(customers) if known[i]}


def test_a_row_comes_back_as_it_was_put() -> None:
    cache, given = RowCache(10), rows(3, 4)
    cache.put(["a", "b"], given, ())
    found, known = cache.gather(["b", "x", "a"], {})
    assert (found[[2, 0]].tobytes(), known.tolist()) == (given.tobytes(), [True, False, True])
    assert found[1].tobytes() == blank(1).tobytes()


def test_what_is_not_here_is_taken_from_what_was_loaded() -> None:
    cache = RowCache(10)
    put(cache, "a", events=3)
    loaded = {"a": rows(8).tobytes(), "b": rows(9).tobytes()}
    found, known = cache.gather(["a", "b", "c"], loaded)
    assert (found["events"].tolist(), known.tolist()) == ([3, 9, 0], [True, True, False])


def test_missing_are_those_that_must_be_loaded() -> None:
    cache = RowCache(10)
    put(cache, "a")
    assert cache.missing(["b", "a", "c"]) == ["b", "c"]


def test_gathered_rows_are_copies() -> None:
    cache = RowCache(10)
    put(cache, "a", events=3)
    cache.gather(["a"], {})[0]["events"] = 99
    assert held(cache, "a") == {"a": 3}


def test_put_rows_are_copies() -> None:
    cache, given = RowCache(10), rows(3)
    cache.put(["a"], given, ())
    given["events"] = 99
    assert held(cache, "a") == {"a": 3}


def test_the_least_recently_put_is_given_up_first() -> None:
    cache = RowCache(3)
    put(cache, "a", "b", "c")
    put(cache, "a", events=2)
    put(cache, "d", events=3)
    assert held(cache, "a", "b", "c", "d") == {"a": 2, "c": 1, "d": 3}


def test_a_forgotten_customer_is_gone_and_leaves_room() -> None:
    cache = RowCache(2)
    put(cache, "a", "b")
    cache.put(["c"], rows(5), ["a", "never"])
    assert (held(cache, "a", "b", "c"), len(cache)) == ({"b": 1, "c": 5}, 2)


def test_a_tick_of_more_customers_than_there_is_room_leaves_no_old_row_behind() -> None:
    cache = RowCache(3)
    put(cache, "a", "b", "c")
    put(cache, "a", "d", "e", "f", "g", events=2)
    assert held(cache, *"abcdefg") == {"e": 2, "f": 2, "g": 2}


def test_a_cache_grows_to_its_capacity_and_not_beyond() -> None:
    cache = RowCache(3_000)
    for start in range(0, 5_000, 500):
        put(cache, *(str(i) for i in range(start, start + 500)), events=start + 1)
    assert len(cache) == 3_000
    assert held(cache, "1999", "2000", "4999") == {"2000": 2_001, "4999": 4_501}


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6)


@given(st.integers(1, 5), st.lists(st.tuples(NAMES, NAMES), max_size=15))
@examples(max_examples=200, deadline=None)
def test_a_cache_is_a_bounded_map_in_the_order_of_use(capacity: int, ticks: list[tuple[list[str], list[str]]]) -> None:
    cache, model = RowCache(capacity), OrderedDict[str, int]()
    for number, (customers, forgotten) in enumerate(ticks, 1):
        gone = [name for name in forgotten if name not in customers]
        cache.put(customers, rows(*[number] * len(customers)), gone)
        for name in gone:
            model.pop(name, None)
        for name in customers:
            model[name] = number
            model.move_to_end(name)
        while len(model) > capacity:
            model.popitem(last=False)
        assert held(cache, *"abcdefgh") == dict(sorted(model.items()))
        assert len(cache) == len(model) <= capacity
        assert cache.missing(list("abcdefgh")) == [name for name in "abcdefgh" if name not in model]
    assert np.array_equal(cache.gather([], {})[1], np.zeros(0, bool))
