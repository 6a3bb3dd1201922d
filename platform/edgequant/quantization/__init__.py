"""Schemes, affine arithmetic, observers, fake quantisation, PTQ, QAT and integer execution; knows torch and nothing above."""
