"""Grids, affine arithmetic, packing: numbers without layers."""
