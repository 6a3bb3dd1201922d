"""The machine that a process is on: its cores, what else wants them, and memory that is kept. Light."""
