"""GGUF files, read by their own fields: configuration, weights and tokenizer are what the file says, or it is refused.

transformers' reader knows few of the fields (no scaled rotary frequencies, no biases, no layer pattern) and says
nothing about the rest; its tokenizers differ from version to version. Here every field that belongs to the architecture
is either understood or named in the refusal.
"""
