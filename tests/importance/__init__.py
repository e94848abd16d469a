"""One test file per criterion."""
