"""The one error that a user is meant to read, and what is worth telling of another."""


class UserError(ValueError):
    """Bad input: the message names the thing, its value, what was expected and the fix.

    The command line prints it as one line and exits with 2; everything else keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line with text in an error's message, without blanks around it; empty where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
