"""Every published loss: a formula over a flow map's identities, with its citation and defaults."""
