"""Looks written by hand: a healthy classifier, and what makes it sick."""

import dataclasses

import numpy as np

from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.data import DataLook, InputLook, look_at_target
from gradstab.diagnosis.looks.signal import LayerSignal, SignalLook
from gradstab.diagnosis.looks.structure import HeadLook, LayerStructure, StructureLook
from gradstab.diagnosis.looks.trial import Point, Run, TrialLook

LABELS = np.arange(300) * 7 % 10


def layer(name, activation="relu", **changes):
    kernel = {
        "kind": "Dense", "units": 32, "fan_in": 32, "fan_out": 32, "trainable": True,
        "kernel_scale": 0.18, "kernel_offset": 0.0, "output_rank": 2, "weights": 2,
    }  # fmt: skip
    return LayerStructure(name, activation=activation, **(kernel | changes))


def signal(name, **changes):
    usual = {
        "input_scale": 1.0, "scale": 1.0, "variation": 0.5, "gradient": 0.01, "weight_scale": 0.2,
    }  # fmt: skip
    return LayerSignal(name, **(usual | changes))


def run(change, *merits, finite=True, steps=100, **changes):
    """A training whose measures at even distances are these numbers."""
    points = [
        Point(int(steps * place / max(len(merits) - 1, 1)), merit, merit)
        for place, merit in enumerate(merits)
    ]
    usual = {"first_loss": 2.3, "last_loss": 0.4, "worst_loss": 2.4, "output_variation": 0.3}
    return Run(change, steps, tuple(points), finite=finite, **(usual | changes))


HEAD = HeadLook("out", "out", "softmax", 1, (10,), "SparseCategoricalCrossentropy",
                minimum=0.0, maximum=0.9, sums_to_one=True)  # fmt: skip


def healthy():
    """A classifier of three layers that learns."""
    return Looks(
        DataLook(
            rows=300,
            inputs=(InputLook("x", (32,), "float", 300, features=32),),
            targets=(dataclasses.replace(look_at_target("y", LABELS), neighbours_agree=0.6),),
            batch_size=32,
            steps_per_epoch=10,
            epochs=10,
        ),
        StructureLook(
            layers=(layer("first"), layer("second"), layer("out", "softmax", units=10)),
            heads=(HEAD,),
            optimizer="Adam",
            learning_rate=1e-3,
            trainable_weights=2400,
        ),
        SignalLook(
            layers=(signal("first"), signal("second"), signal("out", variation=0.3)),
            loss=2.4,
            baseline=2.3,
        ),
        TrialLook(runs=(run("plan", 0.0, 0.4, 0.8),), planned_steps=100, batch_size=32),
    )


def with_head(targets=None, **changes):
    looks = healthy()
    structure = dataclasses.replace(looks.structure, heads=(dataclasses.replace(HEAD, **changes),))
    data = looks.data
    if targets is not None:
        data = dataclasses.replace(data, targets=(look_at_target("y", np.asarray(targets)),))
    return dataclasses.replace(looks, structure=structure, data=data)


def with_layers(*layers, signals=None):
    looks = healthy()
    structure = dataclasses.replace(looks.structure, layers=layers)
    looks = dataclasses.replace(looks, structure=structure)
    return looks if signals is None else with_signals(*signals, of=looks)


def with_signals(*signals, of=None, **changes):
    looks = of or healthy()
    return dataclasses.replace(
        looks, signal=dataclasses.replace(looks.signal, layers=signals, **changes)
    )


def with_runs(*runs, of=None, planned=100, **changes):
    looks = of or healthy()
    return dataclasses.replace(looks, trial=TrialLook(runs, planned, 32, **changes))


def with_data(**changes):
    looks = healthy()
    return dataclasses.replace(looks, data=dataclasses.replace(looks.data, **changes))


def with_input(**changes):
    (given,) = healthy().data.inputs
    return with_data(inputs=(dataclasses.replace(given, **changes),))


def codes(findings, severity=None):
    return [each.code for each in findings if severity in (None, each.severity)]
