"""A grid numbers all combinations of its factors in row-major order."""

import numpy as np
import pytest

from impact_lightning.data.factors import FactorGrid

GRID = FactorGrid(("shape", "hue", "x"), (2, 3, 4), levels=(("cube", "ball"), ("red", "green", "blue"), ()))


def test_factors_are_those_that_numpy_unravels() -> None:
    index = np.arange(len(GRID))
    assert np.array_equal(GRID.factors_of(index), np.stack(np.unravel_index(index, GRID.sizes), axis=1))


def test_index_undoes_factors() -> None:
    index = np.random.default_rng(0).permutation(len(GRID))
    assert np.array_equal(GRID.index_of(GRID.factors_of(index)), index)


def test_the_label_of_one_factor_is_its_level() -> None:
    factors = GRID.factors_of(np.arange(len(GRID)))
    assert np.array_equal(GRID.label_of(factors, "hue"), factors[:, 1])


@pytest.mark.parametrize("names", [["hue", "shape"], ["x", "hue", "shape"], ["shape"]])
def test_the_label_of_several_factors_numbers_their_combinations(names: list[str]) -> None:
    factors = GRID.factors_of(np.arange(len(GRID)))
    columns = [GRID.names.index(name) for name in names]
    expected = np.ravel_multi_index(tuple(factors[:, columns].T), [GRID.sizes[column] for column in columns])
    assert np.array_equal(GRID.label_of(factors, names), expected)
    assert GRID.n_classes(names) == expected.max() + 1


def test_class_names_follow_the_labels() -> None:
    assert GRID.class_names("hue") == ["red", "green", "blue"]
    assert GRID.class_names("x") == ["0", "1", "2", "3"]
    assert GRID.class_names(["hue", "shape"])[:3] == [
        "hue=red shape=cube",
        "hue=red shape=ball",
        "hue=green shape=cube",
    ]


def test_refuses_an_unknown_factor_and_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown factor 'colour'; known factors: shape, hue, x"):
        GRID.n_classes(["shape", "colour"])


def test_refuses_to_label_by_no_factor() -> None:
    with pytest.raises(ValueError, match="no factor named"):
        GRID.n_classes([])


@pytest.mark.parametrize("index", [-1, 24])
def test_refuses_an_index_outside_of_the_grid(index: int) -> None:
    with pytest.raises(ValueError, match="the grid goes from 0 to 23"):
        GRID.factors_of(np.array([0, index]))


def test_refuses_a_level_outside_of_its_factor() -> None:
    with pytest.raises(ValueError, match="sizes"):
        GRID.index_of(np.array([[0, 3, 0]]))


def test_refuses_fields_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 factor names"):
        FactorGrid(("shape", "hue"), (2,))
    with pytest.raises(ValueError, match="level names"):
        FactorGrid(("shape",), (2,), levels=(("cube",),))
