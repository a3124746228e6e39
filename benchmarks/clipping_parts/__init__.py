"""The parts of `clipping_study.py`."""
