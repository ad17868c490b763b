"""What a fitted model says of rows: scores, codes, conditional values."""
