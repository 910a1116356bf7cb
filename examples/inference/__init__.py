"""What examples.predict reads and writes."""
