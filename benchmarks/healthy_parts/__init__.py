"""The parts of `healthy_runs.py`."""
