"""What operators see: health now; statistics and metrics with their own capability."""
