"""Commands of the export room."""
