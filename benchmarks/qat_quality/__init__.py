"""The parts of qat_on_models.py: cells of its table, what makes each, processes that make them, the tables."""
