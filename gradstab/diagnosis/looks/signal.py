"""The look at the signal: one batch forward and backward, layer by layer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerSignal:
    """What passed through one layer.

    Attributes:
        name: The layer's name.
        input_scale: Root mean square of what went in.
        mean: Mean of its output.
        scale: Root mean square of its output.
        variation: Deviation of its output from row to row, in units of its scale.
        finite: Share of its output that is finite.
        input_finite: Whether what went in was finite.
        input_minimum: Smallest entry that went in.
        input_maximum: Largest entry that went in.
        saturated: Share of its output within 1 % of a bound of its activation.
        dead: Share of its units that are zero on the whole batch.
        training_shift: How far its output in training lies from that in inference, in units of the
            deviation of the latter.
        gradient: Root mean square of the gradient to its weights.
        weight_scale: Root mean square of its weights.
        output_gradient: Root mean square of the gradient to its output.
        gradient_alike: Whether all units get the same gradient, or none.
        gradient_finite: Whether the gradient to its weights is finite.
        mixes_rows: Whether its output for a row changes with the other rows of the batch.
    """

    name: str
    input_scale: float = 0.0
    mean: float = 0.0
    scale: float = 0.0
    variation: float = 0.0
    finite: float = 1.0
    input_finite: bool = True
    input_minimum: float = 0.0
    input_maximum: float = 0.0
    saturated: float | None = None
    dead: float = 0.0
    training_shift: float = 0.0
    gradient: float | None = None
    weight_scale: float | None = None
    output_gradient: float | None = None
    gradient_alike: bool = False
    gradient_finite: bool = True
    mixes_rows: bool = False


@dataclasses.dataclass(frozen=True)
class SignalLook:
    """One batch through the model and back.

    Attributes:
        layers: Each layer that a tensor went through, in the order of the pass.
        loss: The loss without penalties.
        baseline: Loss of the best constant output, where it is known.
        penalty: Sum of the penalties.
        outputs_finite: Whether the outputs were finite.
        loss_of_probabilities: The loss of the outputs turned into probabilities.
        disconnected: Trained variables that the loss does not reach.
        rows_agree: Whether the outputs have as many rows as the inputs.
        error: What the pass raised, or `""`.
    """

    layers: tuple[LayerSignal, ...] = ()
    loss: float | None = None
    baseline: float | None = None
    penalty: float = 0.0
    outputs_finite: bool = True
    loss_of_probabilities: float | None = None
    disconnected: tuple[str, ...] = ()
    rows_agree: bool = True
    error: str = ""

    def layer(self, name: str | None) -> LayerSignal | None:
        """Return the layer of that name."""
        return next((each for each in self.layers if each.name == name), None)
