"""llama.cpp as xllamacpp's wheels bring it: its C functions, one sequence in its memory, a process that times it."""
