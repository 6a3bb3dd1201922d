"""Integer weights multiplied on the CPU without a kernel for them: unpacked piece by piece, or by an int8 product."""
