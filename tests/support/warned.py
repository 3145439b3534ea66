"""The texts of warnings, and whose lines they name."""

import warnings


def texts_of(file, run):
    """The texts of the warnings of a run, which must all stand in the lines of one file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    assert all(w.filename == file for w in caught)
    return [str(w.message) for w in caught]
