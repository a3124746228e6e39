"""Parts of `signal_propagation.py`: what initializers, regularizers and layers do for a signal.

A part is a module with `NAME`, `wanted(quick)` (result name to expected seconds), `measure(name,
seeds, quick)` and `table(results)`.
"""
