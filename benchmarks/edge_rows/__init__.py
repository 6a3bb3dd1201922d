"""The rows of `edge_vs_llama_cpp.py`: which files there are and who makes them, what is measured of each, the table."""
