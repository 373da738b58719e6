"""The one error that a person's input can cause."""


class InputError(ValueError):
    """Bad input. Its message is one line that names what was asked and what exists.

    The command line prints it and exits with code 2; any other exception is a defect of the
    project and keeps its traceback.
    """
