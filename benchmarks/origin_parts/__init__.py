"""Nets and injected faults of `bad_step_origin.py`."""
