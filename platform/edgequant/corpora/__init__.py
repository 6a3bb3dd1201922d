"""Text in: standard benchmarks, the disaster corpus, and the pipeline from documents to a data set."""
