"""Commands of the bench room."""
