"""Steps that move difficulty between a layer's weight and its inputs before either is rounded."""
