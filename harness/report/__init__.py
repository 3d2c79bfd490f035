"""What was judged, written down: results directory, JUnit, summary and the final table."""
