"""The table of cases, for all public transforms."""

import common_checks
import pytest

NAMES = sorted(common_checks.TRANSFORMS)
CHEAP = ("config_round_trip", "none_gradients", "zero_gradients", "acts")
COSTLY = ("every_mode", "over_micro_batches", "under_a_loss_scale", "with_sparse_rows", "in_fit")


def _every(checks, quick):
    """Return all pairs of a check and a transform. One in `quick` is quick, in turns."""
    return [
        pytest.param(check, name, marks=[pytest.mark.slow] if (place + turn) % quick else [])
        for turn, check in enumerate(checks)
        for place, name in enumerate(NAMES)
    ]


def test_every_public_transform_is_in_the_table():
    assert sorted(common_checks.public_transforms()) == NAMES


@pytest.mark.parametrize(("check", "name"), [*_every(CHEAP, 1), *_every(COSTLY, 4)])
def test_common(check, name):
    getattr(common_checks, check)(name)


@pytest.mark.parametrize(("dtype", "name"), _every(["float16", "bfloat16", "float64"], 3))
def test_dtypes(dtype, name):
    common_checks.dtypes(name, dtype)


@pytest.mark.parametrize(("num_replicas", "name"), [*_every([2], 3), *_every([4], len(NAMES))])
def test_over_replicas(num_replicas, name):
    common_checks.over_replicas(name, num_replicas)
