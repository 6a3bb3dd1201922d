"""Pictures of a search: the front, all trials side by side, how it went on."""
