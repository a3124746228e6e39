"""What an operation does that makes something not finite of finite numbers, in words."""

from __future__ import annotations

from typing import Final

_HALF_LIMIT: Final = "beyond 65504, the largest number of float16"

# By type of the operation: a short name, and what must have gone in.
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "Log": ("log", "log of 0 or of a negative number"),
    "Log1p": ("log", "log1p of -1 or less"),
    "Lgamma": ("log", "log-gamma of 0 or of a negative integer"),
    "Xlogy": ("log", "log of 0 or of a negative number"),
    "RealDiv": ("division", "division by 0"),
    "Div": ("division", "division by 0"),
    "Xdivy": ("division", "division by 0"),
    "Reciprocal": ("division", "division by 0"),
    "Inv": ("division", "division by 0"),
    "FloorMod": ("division", "remainder of a division by 0"),
    "Sqrt": ("root", "root of a negative number"),
    "SqrtGrad": ("root", "the gradient of a root at 0"),
    "Rsqrt": ("root", "one over the root of 0 or of a negative number"),
    "RsqrtGrad": ("root", "the gradient of one over a root at 0"),
    "Pow": ("power", "0 to a negative power, or a negative number to a power that is no integer"),
    "Exp": ("exp", "exp of a large number"),
    "Expm1": ("exp", "exp of a large number"),
    "Sinh": ("exp", "sinh of a large number"),
    "Cosh": ("exp", "cosh of a large number"),
    "Acos": ("arc", "acos of a number outside [-1, 1]"),
    "Asin": ("arc", "asin of a number outside [-1, 1]"),
    "Atanh": ("arc", "atanh of 1 or -1, or of a number outside [-1, 1]"),
    "Acosh": ("arc", "acosh of a number below 1"),
    "Softmax": ("softmax", "softmax of a row without a finite entry, as a mask of all makes it"),
    "Const": ("constant", "a constant that is not finite"),
    "SparseSoftmaxCrossEntropyWithLogits": ("cross-entropy", "a label outside the classes"),
}
# Numbers of any size go into these, and what comes out is too large.
_OVERFLOW: Final = ("overflow", "numbers so large that the result overflows")
_LOOPS: Final = frozenset(
    (
        "While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "PartitionedCall",
        "StatefulPartitionedCall",
    )
)  # fmt: skip
# What overflows by size alone, so that a wider type helps.
SIZES: Final = frozenset(("overflow", "exp"))


def named(kind: str, dtype: str = "float32", *, on_the_way_back: bool = False) -> tuple[str, str]:
    """Return a short name of what went wrong in an operation, and words for it.

    Args:
        kind: Type of the operation.
        dtype: Type of what comes out.
        on_the_way_back: Whether it belongs to a gradient.

    >>> named("RealDiv")
    ('division', 'division by 0')
    """
    if kind in _LOOPS:
        return "loop", "something within its loop or condition, which can't be looked into"
    name, words = _WORDS.get(kind, _OVERFLOW)
    if on_the_way_back and name in ("division", "power", "log"):
        words = f"its gradient holds {'a ' if name == 'power' else ''}{words}"
    if dtype == "float16" and name in SIZES:
        words = f"{words}, {_HALF_LIMIT}" if name == "exp" else f"a result {_HALF_LIMIT}"
    return name, words
