"""The suite `training`: error against seconds, ours with its defaults beside tuned peers."""
