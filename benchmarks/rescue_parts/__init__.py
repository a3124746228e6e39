"""Parts of `rescue.py`."""
