"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """Bad input or an unusable environment: shown as one line, exit status 2, no traceback."""


def closest(name: str, valid: list[str], count: int = 3) -> str:
    """A hint such as ``; did you mean 'Pong' or 'Boxing'?``, or an empty string."""
    import difflib

    folded = {entry.casefold(): entry for entry in valid}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=count, cutoff=0.5)
    if not near:
        return ""
    return "; did you mean " + " or ".join(repr(folded[entry]) for entry in near) + "?"
