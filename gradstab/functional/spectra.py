"""Singular values of kernels, and how far kernels are from orthogonal.

All in float32 at least, for matrices of shape (inputs, outputs). Where only the largest singular
value is wanted, power iteration finds it from a fixed start: nothing has to be remembered from one
step to the next, and the same kernel gives the same value on every replica, in every mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from gradstab.functional.norms import widen

_TINY = 1e-30


def as_matrix(kernel: Any) -> Any:
    """Return a kernel, channels last, as a matrix (inputs, outputs) of at least float32.

    Args:
        kernel: Tensor of rank 2 or more: a dense kernel (in, out), or one of a convolution
            (..., in, out), whose output is a function of all places of a patch.

    Raises:
        ValueError: If the kernel has fewer than two axes.
    """
    if len(kernel.shape) < 2:
        raise ValueError(
            "`kernel` must have at least two axes, (inputs, outputs) or (..., inputs, outputs). "
            f"Received: a shape of {tuple(kernel.shape)}. Penalize kernels, not biases"
        )
    return ops.reshape(widen(kernel), (-1, kernel.shape[-1]))


def gram_minus_identity(matrix: Any) -> Any:
    """Return WᵀW − I of a matrix W, or WWᵀ − I where W has more columns than rows.

    Only so many vectors can be orthonormal as they have entries.
    """
    inputs, outputs = matrix.shape
    transposed = ops.transpose(matrix)
    gram = matrix @ transposed if inputs < outputs else transposed @ matrix
    return gram - ops.eye(min(inputs, outputs), dtype=gram.dtype)


def sum_of_squares(tensor: Any) -> Any:
    """Return the sum of the squares of all entries."""
    return ops.sum(ops.square(tensor))


def largest_singular_value(matrix: Any, num_iterations: int, seed: int) -> Any:
    """Return an estimate from below of ‖W‖₂, differentiable in W.

    v ← Wᵀ(Wv), normalized, `num_iterations` times; then σ = ‖Wv‖. As v is held constant, the
    gradient is uvᵀ with u = Wv/σ, which for singular vectors is that of σ itself.
    """
    start = np.random.default_rng(seed).standard_normal(matrix.shape[1])
    fixed = ops.stop_gradient(matrix)
    vector = _iterate(
        lambda v: ops.transpose(fixed) @ (fixed @ v), start, num_iterations, matrix.dtype
    )
    return _length(matrix @ vector)


def spectral_radius(matrix: Any, num_iterations: int, seed: int) -> Any:
    """Return an estimate from below of the largest |eigenvalue| of a symmetric matrix A.

    As `largest_singular_value`, with one product by A where that takes two: with v ← Av,
    normalized, ‖Av‖ tends to it even where the eigenvalues λ and −λ tie, and v to no one vector.
    """
    start = np.random.default_rng(seed).standard_normal(matrix.shape[1])
    fixed = ops.stop_gradient(matrix)
    vector = _iterate(lambda v: fixed @ v, start, num_iterations, matrix.dtype)
    return _length(matrix @ vector)


def _iterate(product: Callable[[Any], Any], start: Any, num_iterations: int, dtype: Any) -> Any:
    def multiply(_: Any, vector: Any) -> Any:
        image = product(vector)
        # Where the product is 0 there is no direction to go on in, and 0 is the answer.
        return image * ops.rsqrt(sum_of_squares(image) + _TINY)

    vector = ops.convert_to_tensor((start / np.linalg.norm(start))[:, None], dtype)
    # A loop, since so many steps for each kernel would make a graph that takes XLA long to compile.
    return ops.stop_gradient(ops.fori_loop(0, num_iterations, multiply, vector))


def _length(vector: Any) -> Any:
    """Return the norm of a vector, with a gradient of 0 where the norm is 0."""
    total = sum_of_squares(vector)
    positive = total > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, total, 1.0)), 0.0)
