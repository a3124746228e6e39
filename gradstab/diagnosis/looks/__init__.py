"""What a diagnosis measures: plain data that rules read, without Keras."""
