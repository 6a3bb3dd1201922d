"""Files to a data set: each file to chunks in worker processes or on Ray, kept in a cache, and put together."""
