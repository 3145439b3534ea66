"""What the commands train, sample and evaluate do: a run from its configuration to its pictures."""
