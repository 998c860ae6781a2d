"""What becomes of a sparse network once it is trained: files that are really smaller."""
