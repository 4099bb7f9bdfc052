"""All that speaks to a tracker, and only that."""
