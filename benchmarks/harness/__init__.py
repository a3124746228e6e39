"""What the benchmarks share: where numbers come from, and contenders that take turns.

A script in this folder imports it by name, `from harness.turns import ratio`, since Python puts the
folder of the script that it runs on its path.
"""
