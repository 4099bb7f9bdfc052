"""Pictures from a finished run's files; draws, decides nothing."""
