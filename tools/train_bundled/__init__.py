"""Trains the small chat model that ships in `mlc/bundled`, from text that `corpus` writes. Needs the extra `dev`."""
