"""The device mesh and the table that lays parameters out over it."""
