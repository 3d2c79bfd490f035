"""What was observed, judged: statuses, expectations and the reading of kernel logs."""
