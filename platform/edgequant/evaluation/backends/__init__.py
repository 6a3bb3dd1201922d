"""What scores and generates: transformers, llama.cpp, and a cache before either."""
