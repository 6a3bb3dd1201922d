"""PEFT adapters: loaded over the base that they name, in floating point or in integers."""
