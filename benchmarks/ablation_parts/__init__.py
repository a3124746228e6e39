"""Parts of `ablation.py`."""
