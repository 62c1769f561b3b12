"""causalprune."""
