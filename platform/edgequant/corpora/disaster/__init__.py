"""The bundled disaster-management corpus, its question sets and the classifier of its domains."""
