"""What `mlc bench --vs` compares with: a file here for each, and the loop in `serve` that all of them share."""
