"""What examples.predict and examples.evaluate do."""
