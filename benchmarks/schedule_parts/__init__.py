"""The parts of `benchmarks/schedules.py`: data and models, runs, and what they come to."""
