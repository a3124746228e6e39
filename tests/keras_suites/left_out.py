"""Which of Keras' own tests run with wrapped optimizers, and which are left out, and why.

A test is left out if it calls a private method of the optimizer, or checks how Keras' constructors
take arguments. Each has a public form beside this file where it says something about steps: that
takes steps, and reads off the weights what Keras' test reads off the private method.
"""

from typing import NamedTuple

# What runs together, relative to `keras/src` as node names are. One file has two replicas.
SUITES = {
    "optimizers": ("optimizers/*_test.py", "backend/tensorflow/optimizer_distribute_test.py"),
    "callbacks": ("callbacks/*_test.py",),
}

# Files of optional packages, which Keras' tests of them fail without.
NEEDS = {
    "callbacks/tensorboard_test.py": "tensorboard",
    "callbacks/orbax_checkpoint_test.py": "orbax.checkpoint",
    "callbacks/remote_monitor_test.py": "requests",
}

# Reasons with which Keras' tests skip themselves, wrapped or not.
KERAS_SKIPS = (
    "stateless_apply is not supported with the T",
    "Requires JAX backend",
    "tf_keras not installed",
)


class LeftOut(NamedTuple):
    """A test that does not run wrapped.

    Args:
        reason: Why.
        public_form: The test beside this file that says the same of steps, or `None` if Keras' test
            says nothing of them.
    """

    reason: str
    public_form: str | None


_CLIPPED = {
    **{
        f"{module}_test.py::{owner}Test": ("test_clip_norm", "test_clip_value")
        for module, owner in {
            "optimizers/adadelta": "Adadelta",
            "optimizers/adafactor": "Adafactor",
            "optimizers/adagrad": "Adagrad",
            "optimizers/adam": "Adam",
            "optimizers/adamax": "Adamax",
            "optimizers/adamw": "AdamW",
            "optimizers/ftrl": "Ftrl",
            "optimizers/lamb": "Lamb",
            "optimizers/lion": "Lion",
            "optimizers/muon": "Muon",
            "optimizers/nadam": "Nadam",
            "optimizers/rmsprop": "RMSprop",
            "optimizers/schedule_free_adamw": "ScheduleFreeAdamW",
            "optimizers/sgd": "SGD",
            "backend/tensorflow/optimizer_distribute": "OptimizerDistribute",
        }.items()
    },
    "optimizers/optimizer_test.py::OptimizerTest": (
        "test_clip_norm",
        "test_clip_value",
        "test_global_clip_norm",
    ),
}
CLIPPING = [f"{owner}::{test}" for owner, tests in _CLIPPED.items() for test in tests]
_MUON = "optimizers/muon_test.py::MuonTest::"
_MULTI = "optimizers/multi_optimizer_test.py::MultiOptimizerTest::"

LEFT_OUT = {
    **dict.fromkeys(
        CLIPPING,
        LeftOut(
            "Calls the private `_clip_gradients`. Here a transform clips.",
            "test_public_clipping.py::test_change_is_that_of_the_clipped_gradient",
        ),
    ),
    "optimizers/optimizer_test.py::OptimizerTest::test_clip_args": LeftOut(
        "Checks construction: what Keras' constructor does with its clipping arguments.",
        "test_public_clipping.py::test_clipping_arguments_are_taken_over_and_given_back",
    ),
    _MUON + "test_should_use_adamw": LeftOut(
        "Calls the private `_should_use_adamw`.",
        "test_public_forms.py::test_muon_treats_excluded_and_flat_variables_as_adamw",
    ),
    _MUON + "test_muon_weight_decay": LeftOut(
        "Calls the private `_apply_weight_decay`.",
        "test_public_forms.py::test_muon_decays_weights",
    ),
    _MUON + "test_adamw_weight_decay": LeftOut(
        "Calls the private `_apply_weight_decay`.",
        "test_public_forms.py::test_muon_decays_weights",
    ),
    _MULTI + "test_multi_optimizer_blocks_nested_optimizers": LeftOut(
        "Checks construction: which optimizers a MultiOptimizer refuses as its parts. A wrapped "
        "MultiOptimizer is none. It runs where the parts are wrapped.",
        None,
    ),
}
