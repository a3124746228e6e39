"""Fills the looks: everything in the diagnosis that needs Keras."""
