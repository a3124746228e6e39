"""Changes that answer findings: each rewrites a draft and shows itself as lines of code."""
