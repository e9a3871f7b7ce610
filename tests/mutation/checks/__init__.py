"""What looks at mutants; nothing here knows of one, and all of it holds for the unchanged engine."""
