"""What `mlc bench --vs` compares with: a file here for each, and what all of them share in `base` and `serve`."""
