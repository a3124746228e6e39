"""Parts of the benchmarks of what a step and a start cost."""
