"""One file per architecture; its name is the checkpoint's `model_type`. See `registry` for what a file offers."""
