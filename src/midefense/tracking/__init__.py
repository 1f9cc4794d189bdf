"""What is told of a run, and to whom: a local folder, its mirror, bars and endings."""
