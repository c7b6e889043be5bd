"""What strategies cost, and what they save, against what people write by hand."""
