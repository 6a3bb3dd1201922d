"""A built corpus on disk: data set, card, manifest."""
