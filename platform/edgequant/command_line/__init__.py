"""What stands between the words of a command line and a workflow's arguments: checked, and refused in one line."""
