"""Files and folders that the commands write: names, locks, free space, whole or not at all."""
