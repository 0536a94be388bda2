"""What a number about a person's network may be trusted for: one file a question."""
