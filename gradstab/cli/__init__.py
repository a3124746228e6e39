"""The command line: `main` and a module per command. Keras is imported when a command runs."""
