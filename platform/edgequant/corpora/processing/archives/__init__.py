"""Archives of documents: zip, tar and single compressed files. They are listed once, read in place, never unpacked."""
