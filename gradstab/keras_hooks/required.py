"""Every private name of Keras and TensorFlow that gradstab uses, and each public one it replaces.

A hook stays if a right result needs it, or if it gains 5 % of a whole step that is measured.
`tests/keras_hooks/test_required.py` tries each of them and fails when one changes.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True)
class Required:
    """One name that gradstab depends on without a promise.

    Attributes:
        name: The attribute.
        owner: The class or module that has it.
        where: Modules of `keras_hooks` that use it.
        why: What it is used for.
        without: What would happen without it.
    """

    name: str
    owner: str
    where: tuple[str, ...]
    why: str
    without: str


_OPTIMIZER = "keras.optimizers.Optimizer"
_STATE, _STEP, _WRAPPER = "optimizer_state", "one_step", "wrapper"

REQUIRED: Final = (
    Required(
        "_trainable_variables", _OPTIMIZER, (_STATE, _WRAPPER),
        why="the variables that an optimizer was built for, in the order of its slots",
        without="moments can't be assigned to their variables",
    ),
    Required(
        "_iterations", _OPTIMIZER, (_STATE, _STEP),
        why="the count of calls; read once in a step, and kept by a refused one",
        without="under accumulation the calls are not known; Adam's bias correction is computed "
        "once for each variable",
    ),
    Required(
        "_learning_rate", _OPTIMIZER, (_STATE, _STEP),
        why="the schedule behind a rate; a tensor that stands in for the rate of one step",
        without="`unwrap` and `Adjustable` find no schedule; rules on the rate have no effect",
    ),
    Required(
        "_variables", _OPTIMIZER, (_WRAPPER,),
        why="the wrapper's own variables apart from the inner optimizer's",
        without="the inner optimizer's variables are saved twice",
    ),
    Required(
        "_track_variable", _OPTIMIZER, (_WRAPPER,),
        why="to own the state of a seed generator",
        without="the noise of `AddGradientNoise` begins anew when a run is resumed",
    ),
    Required(
        "_get_variable_index", _OPTIMIZER, (_STATE,),
        why="the place of a variable in the lists of slots",
        without="StableAdamW, SPAM and ClippyAdagrad can't read their moments",
    ),
    Required(
        "_momentums", "keras.optimizers.Adam", (_STATE,),
        why="first moments",
        without="SPAM can't reset them",
    ),
    Required(
        "_velocities", "keras.optimizers.Adam", (_STATE,),
        why="second moments, as in RMSprop",
        without="effective learning rates are not known; no StableAdamW, no SPAM",
    ),
    Required(
        "_velocity_hats", "keras.optimizers.Adam", (_STATE,),
        why="the largest second moments, with AMSGrad",
        without="effective learning rates under AMSGrad are not known",
    ),
    Required(
        "_accumulators", "keras.optimizers.Adagrad", (_STATE,),
        why="sums of squared gradients",
        without="effective learning rates of Adagrad are not known; no ClippyAdagrad",
    ),
    Required(
        "_average_gradients", "keras.optimizers.RMSprop", (_STATE,),
        why="mean gradients, if centered",
        without="effective learning rates of a centered RMSprop are not known",
    ),
    Required(
        "_use_weight_decay", _OPTIMIZER, (_STATE,),
        why="whether weight decay holds for a variable",
        without="variables that are excluded from weight decay decay",
    ),
    Required(
        "_apply_weight_decay", _OPTIMIZER, (_STEP,),
        why="to have the decay depend on the verdict, and act once at the end of a window",
        without="a skipped step decays the weights",
    ),
    Required(
        "_backend_apply_gradients", _OPTIMIZER, (_STEP,),
        why="to apply the mean of a window without Keras' condition and accumulators",
        without="accumulation fails under every strategy, and clips micro-batches one by one",
    ),
    Required(
        "_backend_update_step", _OPTIMIZER, (_STEP,),
        why="the update itself, at the end of a window",
        without="as with `_backend_apply_gradients`",
    ),
    Required(
        "_all_reduce_sum_gradients", _OPTIMIZER, (_STEP,),
        why="not to sum over the replicas twice",
        without="gradients are divided by the number of replicas first and summed again",
    ),
    Required(
        "_model_variables_moving_average", _OPTIMIZER, (_STATE, _WRAPPER),
        why="averages of the weights, advanced after update transforms; `SwapEMAWeights` reads it",
        without="averages miss what update transforms change; the callback fails in half precision",
    ),
    Required(
        "_accumulated_gradients", _OPTIMIZER, (_STATE,),
        why="the inner optimizer's sums of an open window",
        without="a run can't go on without gradstab in the middle of a window",
    ),
    Required(
        "apply", "keras.optimizers.LossScaleOptimizer", ("loss_scale",),
        why="replaced: the step of a float16 run, judged on all replicas",
        without="an overflow on another replica than the first reaches the weights, uncounted",
    ),
    Required(
        "scale_loss", "keras.optimizers.LossScaleOptimizer", ("loss_scale",),
        why="replaced: the loss of a step, before it is scaled",
        without="rules that read the loss do not act in float16",
    ),
    Required(
        "__dict__", "keras.Variable", (_STEP,),
        why="a variable that reads as its value when the step began",
        without="the count of steps is read once for each variable",
    ),
    Required(
        "_kernel", "keras.layers.Dense", ("layer_kernels",),
        why="the variable behind `kernel` where LoRA or quantization acts",
        without="`lsuv` passes over such layers",
    ),
    Required(
        "_compile_config", "keras.Model", ("compiled_model",),
        why="the optimizer that is written to a model's file",
        without="a model that `unwrap` changed is saved with gradstab's optimizer",
    ),
    Required(
        "_initial_epoch", "keras.Model", ("compiled_model",),
        why="where `BackupAndRestore` has training go on",
        without="`training.train` begins at the first epoch with that callback",
    ),
    Required(
        "_get_metrics_result_or_logs", "keras.Model", ("epoch_logs",),
        why="replaced for a run: the logs of an epoch that every callback sees",
        without="callbacks before the monitor's miss its scalars",
    ),
    Required(
        "_autoconvert_optionals", "keras.Model", ("batches",),
        why="replaced while a train function is made: the batch of a step, outside of XLA",
        without="what began a step that was not finite is not known, as the batch is gone",
    ),
    Required(
        "_keras_history", "keras.KerasTensor", ("graph_history",),
        why="the call that a symbolic tensor comes from",
        without="a diagnosis does not find the layers before an output of a functional model",
    ),
    Required(
        "_inbound_nodes", "keras.Operation", ("graph_history",),
        why="the tensors that a call took",
        without="as with `_keras_history`",
    ),
    Required(
        "_self_", "keras.Layer", ("attributes",),
        why="the prefix of attributes that TensorFlow's tracking adds to objects",
        without="the optimizers that a model holds are looked for in its bookkeeping too",
    ),
    Required(
        "_set_attr", "tf.Operation", ("conditions",),
        why="to keep a condition whole",
        without="a step of many small layers takes a tenth longer",
    ),
    Required(
        "_lower_using_switch_merge", "tf.Operation", ("conditions",),
        why="the mark of a condition that is taken apart, as none under XLA is",
        without="as with `_set_attr`; and it is not known whether XLA compiles",
    ),
    Required(
        "strategy_supports_no_merge_call", "tf.__internal__.distribute", ("strategies",),
        why="whether the replicas can meet while a step is traced",
        without="XLA on several GPUs fails while a step is traced",
    ),
    Required(
        "Tensor", "tf.__internal__.types", ("log_numbers",),
        why="a number for the logs of which Keras finds out fast that it needs no conversion",
        without="7 scalars take 0.1 ms of each step, for which the next one waits: 7 % of the step "
        "of the MLP of benchmarks/monitor_overhead.py under XLA",
    ),
    Required(
        "abort_collective_ops", "tensorflow.python.eager.context.context()", ("collectives",),
        why="to end the wait for a worker that fell silent",
        without="the other workers wait for ever",
    ),
)  # fmt: skip
