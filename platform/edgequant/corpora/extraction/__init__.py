"""Files of any kind to text with pages, sections and stated metadata."""
