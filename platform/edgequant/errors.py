"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Bad input: the message names the thing, its value, what was expected and the fix.

    The command line prints it as one line and exits with 2; everything else keeps its traceback.
    """
