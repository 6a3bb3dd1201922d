"""Schemes, affine arithmetic, observers, fake quantisation, PTQ, QAT and integer execution; knows torch alone."""
