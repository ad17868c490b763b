"""What comes in and what goes back: tables, their columns, their numbers. No torch."""
