"""The look at the structure: layers, heads with their losses, and the optimizer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerStructure:
    """One layer, as far as it can be seen without running it.

    Attributes:
        name: The layer's name.
        kind: Its class, such as `"Dense"`.
        activation: Name of its activation; `"linear"` for none, `None` where it can't have one.
        units: Output units, where it has a kernel.
        fan_in: Inputs of a unit, where it has a kernel.
        fan_out: Outputs that an input goes to.
        trainable: Whether it has weights that are trained.
        weights: Number of its own weights.
        frozen: Number of its own weights that `trainable = False` keeps.
        kernel_scale: Root mean square of its kernel.
        kernel_offset: Mean of its kernel.
        kernel_alike: Whether all units have the same kernel.
        kernel_orthogonal: Whether its initializer is one that draws no independent entries.
        rate: Dropout rate, where it drops.
        penalty: Whether weights of it are penalized.
        output_rank: Axes of its output, with that of the batch.
        is_head: Whether its output is one of the model's.
    """

    name: str
    kind: str
    activation: str | None = None
    units: int | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    trainable: bool = False
    weights: int = 0
    frozen: int = 0
    kernel_scale: float | None = None
    kernel_offset: float | None = None
    kernel_alike: bool = False
    kernel_orthogonal: bool = False
    rate: float = 0.0
    penalty: bool = False
    output_rank: int | None = None
    is_head: bool = False


@dataclasses.dataclass(frozen=True)
class HeadLook:
    """One output with its loss.

    Attributes:
        output: Name of the output.
        layer: Name of the layer that gives it, where it is known.
        activation: The last activation on the way to it, `"linear"` for none, `None` where unknown.
        softmaxes: Softmaxes in a row at its end.
        shape: Shape of one row.
        loss: Class of the loss in Keras' spelling, such as `"BinaryCrossentropy"`; `"custom"` for
            others; `""` for none.
        from_logits: Whether the loss expects logits.
        metrics: Names of the metrics, in Keras' spelling of classes, `"accuracy"` for that word.
        minimum: Smallest entry of the output on a batch.
        maximum: Largest entry.
        sums_to_one: Whether its rows sum to 1 with no entry below 0.
        probe_error: What the loss raised on a batch, or `""`.
    """

    output: str
    layer: str | None
    activation: str | None
    softmaxes: int
    shape: tuple[int | None, ...]
    loss: str
    from_logits: bool = False
    metrics: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    sums_to_one: bool = False
    probe_error: str = ""

    @property
    def units(self) -> int | None:
        """Entries along the last axis."""
        return self.shape[-1] if self.shape else 1


@dataclasses.dataclass(frozen=True)
class StructureLook:
    """The model, its losses and its optimizer.

    Attributes:
        layers: The layers, in order of depth.
        heads: The outputs.
        optimizer: Class of the optimizer, without what wraps it.
        learning_rate: Its rate at the first step.
        is_scheduled: Whether the rate changes by a schedule.
        clipping: Bounds on gradients, by name.
        iterations: Steps that the optimizer made already.
        trainable_weights: Trained weights in all.
        precision: Name of the dtype policy.
        is_loss_scaled: Whether the optimizer scales the loss, as float16 needs.
        problems: What could not be looked at, in words.
    """

    layers: tuple[LayerStructure, ...]
    heads: tuple[HeadLook, ...]
    optimizer: str = ""
    learning_rate: float | None = None
    is_scheduled: bool = False
    clipping: dict[str, float] = dataclasses.field(default_factory=dict)
    iterations: int = 0
    trainable_weights: int = 0
    precision: str = "float32"
    is_loss_scaled: bool = False
    problems: tuple[str, ...] = ()

    def layer(self, name: str | None) -> LayerStructure | None:
        """Return the layer of that name."""
        return next((each for each in self.layers if each.name == name), None)
