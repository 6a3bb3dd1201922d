"""What answers behind `mlflow models serve`: requests as OpenAI's clients write them, by torch or by llama.cpp."""
