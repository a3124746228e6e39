"""Parts of `benchmarks/robustness.py`: each makes attacks and says of every one what came of it."""
