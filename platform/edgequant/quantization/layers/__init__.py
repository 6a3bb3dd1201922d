"""The layers that take a linear's or an embedding's place, and what they quantise with."""
