"""What `diagnosis.py` is made of: cases, and how a diagnosis of one is scored."""
