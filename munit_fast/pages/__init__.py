"""Web pages of a run and of the demo, each one file that needs no network."""
