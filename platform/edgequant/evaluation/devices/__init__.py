"""Device profiles: what a device grants a model, and whether a model that ships fits."""
