"""What `cmsolvers train` does: a configuration becomes a run in a folder."""

from cmsolvers.runs.train.train_run import AnotherProcessFailed, dry_run, train

__all__ = ["AnotherProcessFailed", "dry_run", "train"]
