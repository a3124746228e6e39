"""How the weights of a residual net shrink with its depth."""

from __future__ import annotations

from gradstab._validation import check_int


def fixup_scale(num_branches: int, layers_per_branch: int) -> float:
    r"""Return Fixup's factor on the kernels of a branch, all but its last.

    $$L^{-1 / (2m - 2)}$$

    With $L$ branches of $m$ layers each, one step of gradient descent then changes what the whole
    net puts out by an amount that does not grow with $L$. A branch of one layer, $m = 1$, has no
    kernel but the last, and the factor is 1.

    Args:
        num_branches: L, the number of residual branches in the whole net.
        layers_per_branch: m, the number of layers with a kernel in each of them.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If an argument is below 1.

    Example:
        >>> fixup_scale(num_branches=16, layers_per_branch=3)
        0.5

    Reference: Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without
    normalization.
    """
    num_branches = check_int("num_branches", num_branches)
    layers_per_branch = check_int("layers_per_branch", layers_per_branch)
    if layers_per_branch == 1:
        return 1.0
    return float(num_branches ** (-1.0 / (2 * layers_per_branch - 2)))
