"""From a registered version to the champion: gates, promotion and rollback, and the model that is served."""
