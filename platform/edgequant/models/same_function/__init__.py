"""What a merge, a conversion or a fold must keep: the function that a model computes."""
