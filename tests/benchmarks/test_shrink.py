"""How students of the pruning benchmark are compared."""

from benchmarks.shrink import solver_over


def test_two_students_are_compared_on_the_seeds_that_both_have() -> None:
    found = solver_over([1.0, 2.0, 30.0], [2.0, 4.0])
    assert found == {"solver_over": 0.5, "solver_over_interval": [0.5, 0.5]}
