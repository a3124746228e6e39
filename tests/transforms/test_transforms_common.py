"""The table of cases, for all public transforms."""

import common_checks
import pytest

NAMES = sorted(common_checks.TRANSFORMS)


def test_every_public_transform_is_in_the_table():
    assert sorted(common_checks.public_transforms()) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "check",
    [
        "config_round_trip",
        "none_gradients",
        "zero_gradients",
        "acts",
        "every_mode",
        "over_micro_batches",
        "under_a_loss_scale",
        "with_sparse_rows",
        "in_fit",
    ],
)
def test_common(check, name):
    getattr(common_checks, check)(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype, name):
    common_checks.dtypes(name, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_over_replicas(num_replicas, name):
    common_checks.over_replicas(name, num_replicas)
