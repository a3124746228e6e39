"""Where the first value that was not finite came from, in a step that was refused for it."""
