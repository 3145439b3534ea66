"""What a checkpoint that cannot be trusted raises."""


class CheckpointError(ValueError):
    """A damaged, unfinished or foreign checkpoint; the text names path, file and what differs."""
