"""What makes rows of documents: annotation, deduplication, splits, augmentation."""
