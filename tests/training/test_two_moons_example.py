"""The example with a data loader, an optimiser and an evaluation of one's own."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_two_moons.py"


def test_the_example_learns_and_goes_on_from_its_folder(tmp_path):
    """The distance of samples to the data falls; a run that is done is only sampled again."""
    main = runpy.run_path(str(EXAMPLE))["main"]
    untrained = main(str(tmp_path / "short"), 1)
    trained = main(str(tmp_path / "run"), 500)
    assert trained < 0.06 < 0.09 < untrained
    assert main(str(tmp_path / "run"), 500) == trained
