"""Rules from looks to findings: pure functions, a family per file, without Keras."""
