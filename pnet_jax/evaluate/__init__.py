"""What a number about a participant's network may be trusted for: one file a question."""
