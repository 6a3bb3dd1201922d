"""A tracking server that is away: the work goes on, what it logs waits on disk, and is filed when the server is back.

The process that logs, a search among them, talks to MLflow as ever; its clients of a server are patient (`stores`).
What they could not write is in the run's folder, `outputs/<workflow>/<run id>/unfiled` (`journal`), in the order in
which it was logged, with its steps and times. A database has no such journal: it is asked again.
"""
