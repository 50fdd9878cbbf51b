"""The density is a pure function of the step, and the learning rate follows it to a factor of 1."""

import math

import pytest

from impact_lightning.sparsity.density_schedule import Course, DensitySchedule
from impact_lightning.types import UserError

COURSES: list[Course] = ["linear", "cubic", "exponential"]


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("target", [1.0, 0.1, 0.015625])
def test_it_falls_from_one_to_exactly_the_target(course: Course, target: float) -> None:
    schedule = DensitySchedule(target, course, begin=0.1, end=0.5)
    densities = [schedule.density(step, 200) for step in range(201)]
    assert densities[:21] == [1.0] * 21
    assert densities[100:] == [target] * 101
    assert densities == sorted(densities, reverse=True)


def test_the_courses_are_their_formulas() -> None:
    for step in range(20, 100):
        way = (step - 20) / 80
        expected = {"linear": 1 - 0.9 * way, "cubic": 0.1 + 0.9 * (1 - way) ** 3, "exponential": 10**-way}
        for course in COURSES:
            density = DensitySchedule(0.1, course, 0.1, 0.5).density(step, 200)
            assert density == pytest.approx(expected[course], rel=1e-12)


@pytest.mark.parametrize("course", COURSES)
def test_the_sharkfin_is_one_at_full_sparsity(course: Course) -> None:
    schedule = DensitySchedule(0.04, course, end=0.5)
    assert schedule.sharkfin(0, 100) == pytest.approx(0.2)
    assert [schedule.sharkfin(step, 100) for step in range(50, 101)] == [1.0] * 51
    at_20 = math.sqrt(0.04 / schedule.density(20, 100))
    assert schedule.sharkfin(20, 100) == pytest.approx(at_20)


def test_a_dense_training_has_the_factor_one() -> None:
    schedule = DensitySchedule(1.0)
    assert {schedule.sharkfin(step, 10) for step in range(11)} == {1.0}
    assert {schedule.density(step, 10) for step in range(11)} == {1.0}


def test_sparse_from_the_start() -> None:
    assert DensitySchedule(0.1, end=0.0).density(0, 10) == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 0.0}, "density 0.0"),
        ({"target": 1.1}, "density 1.1"),
        ({"target": 0.1, "begin": 0.6}, "begin 0.6 and end 0.5"),
        ({"target": 0.1, "end": 1.5}, "end 1.5"),
    ],
)
def test_what_is_no_course_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DensitySchedule(**settings)  # type: ignore[arg-type]  # course is left out
