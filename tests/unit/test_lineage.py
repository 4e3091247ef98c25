import numpy as np

from online_models.lineage import Change, redrawn


def told(shared: list[list[float]], unused: int = 3) -> tuple[list[int], list[Change]]:
    before = np.arange(len(shared), dtype=np.int32)
    ids, changes = redrawn(np.array(shared, np.float64), before, unused)
    return ids.tolist(), changes


def test_segments_that_keep_their_customers_keep_their_ids_wherever_they_stand() -> None:
    assert told([[0, 95, 5], [3, 2, 80], [70, 4, 1]]) == ([2, 0, 1], [])


def test_the_larger_part_of_a_segment_split_keeps_the_id() -> None:
    ids, changes = told([[60, 0, 40], [0, 100, 0]])
    assert ids == [0, 1, 3]
    assert changes == [Change("split", 3, 0, 1.0)]


def test_the_larger_of_two_segments_merged_gives_its_id() -> None:
    ids, changes = told([[70, 0], [30, 0], [0, 100]])
    assert ids == [0, 2]
    assert changes == [Change("merged", 1, 0, 1.0)]


def test_a_segment_of_customers_from_everywhere_is_born() -> None:
    ids, changes = told([[100, 0, 40], [0, 100, 40], [0, 100, 40]])
    assert ids[2] == 3
    assert changes[0] == Change("born", 3, -1, 1 / 3)


def test_a_segment_whose_customers_scatter_is_retired() -> None:
    ids, changes = told([[200, 0, 0], [0, 200, 0], [0, 0, 200], [30, 30, 30]], unused=4)
    assert ids == [0, 1, 2]
    assert changes == [Change("retired", 3, -1, 1 / 3)]


def test_the_first_segments_are_all_born() -> None:
    ids, changes = redrawn(np.zeros((0, 2)), np.zeros(0, np.int32), 0)
    assert ids.tolist() == [0, 1]
    assert changes == [Change("born", 0, -1, 0.0), Change("born", 1, -1, 0.0)]
